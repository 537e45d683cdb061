"""Synthetic town: pixels, grid, reference buildings and land cover of one generated scene."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.features import rasterize
from shapely.affinity import affine_transform, rotate

from pipeline.errors import SettingsError
from pipeline.grid import RasterGrid
from pipeline.storage import atomic_path, atomic_write, create_raster
from pipeline.training.synthetic.houses import Building
from pipeline.training.synthetic.light import draw_cloud, draw_sun
from pipeline.training.synthetic.paint import COVERS, PIXEL_M, burn
from pipeline.training.synthetic.render import draw_sky, layer, render
from pipeline.training.synthetic.scenery import populate

BANDS = ("red", "green", "blue", "nir")
NODATA = 0
"""Pixel value outside the valid area."""
COVER_NODATA = 255
"""Land cover value outside the valid area."""
MIN_SIDE = 256
"""Smallest height and width in pixels."""
MIN_AREA_M2 = 4.0
"""Parts of buildings cut off at the border of the valid area are dropped when smaller."""


@dataclass(frozen=True, kw_only=True)
class Town:
    """A synthetic scene with its reference labels."""

    seed: int
    """Seed of the generator: the same seed and size give the same bytes."""
    grid: RasterGrid
    """Half a metre per pixel in UTM zone 33 north."""
    pixels: NDArray[np.uint16]
    """`(4, height, width)` in the order of `BANDS`: reflectance times 10000, at least 1; 0 = nodata."""
    buildings: tuple[shapely.Polygon, ...]
    """Outlines of all roofs in CRS coordinates, cut off at the border of the valid area; they do not overlap."""
    cover: NDArray[np.uint8]
    """Land cover at each pixel's centre, `(height, width)`: an index in `COVERS`; 255 = nodata."""

    def mask(self) -> NDArray[np.uint8]:
        """1 where a pixel's centre lies in a building, 0 elsewhere, `(height, width)`."""
        shapes = [(polygon, 1) for polygon in self.buildings]
        mask = np.zeros(self.grid.shape, np.uint8)
        if shapes:
            rasterize(shapes, out=mask, transform=self.grid.transform)
        return mask

    def write(self, path: Path) -> None:
        """Write the pixels atomically as a Cloud-Optimized GeoTIFF with overviews."""
        options = {"driver": "COG", "compress": "ZSTD", "level": 1, "predictor": "YES", "blocksize": 512}
        options |= {"overview_resampling": "average", "num_threads": "ALL_CPUS"}
        profile = self._profile(count=len(BANDS), dtype="uint16", nodata=NODATA)
        with atomic_path(path) as partial, create_raster(partial, **profile, **options) as dataset:
            dataset.write(self.pixels)
            dataset.descriptions = BANDS
            dataset.colorinterp = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined]
            dataset.update_tags(SOURCE=f"invented town, seed {self.seed}")

    def write_truth(self, path: Path) -> None:
        """Write the buildings as GeoJSON in the scene's CRS (named in the legacy `crs` member, which GDAL reads)."""
        features = [
            {"type": "Feature", "properties": {"class": "building"}, "geometry": shapely.geometry.mapping(polygon)}
            for polygon in self.buildings
        ]
        crs = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{self.grid.crs.to_epsg()}"}}
        atomic_write(path, json.dumps({"type": "FeatureCollection", "crs": crs, "features": features}))

    def write_cover(self, path: Path) -> None:
        """Write `cover` atomically as a GeoTIFF on the scene's grid, nodata 255."""
        profile = self._profile(count=1, dtype="uint8", nodata=COVER_NODATA)
        options = {"driver": "GTiff", "compress": "ZSTD", "tiled": True}
        with atomic_path(path) as partial, create_raster(partial, **profile, **options) as file:
            file.write(self.cover, 1)

    def _profile(self, *, count: int, dtype: str, nodata: int) -> dict[str, Any]:
        grid = self.grid
        georeference = {"crs": grid.crs, "transform": grid.transform, "height": grid.height, "width": grid.width}
        return georeference | {"count": count, "dtype": dtype, "nodata": nodata}


def build_town(seed: int, height: int = 4096, width: int = 4096) -> Town:
    """A town: roofs, streets, fields, trees, water, shadows, thin cloud, blur, noise and a slanted nodata border.

    The same seed (>= 0) and size (at least 256 px per side) give the same bytes; SettingsError when out of range.
    """
    if min(height, width) < MIN_SIDE:
        raise SettingsError(f"a town needs at least {MIN_SIDE} x {MIN_SIDE} px, not {height} x {width}")
    if seed < 0:
        raise SettingsError(f"seed must be >= 0, not {seed}")

    # The order of the draws is part of the format: another order changes every town.
    generator = np.random.default_rng(seed)
    sun = draw_sun(generator)
    cloud = draw_cloud(generator, height * PIXEL_M, width * PIXEL_M)
    sky = draw_sky(generator, sun, cloud)
    scenery = populate(generator, sun, height, width)
    valid_area = _valid_area(generator, height, width)
    grid = _grid(generator, height, width)
    pixels, crowns_on_top = render(layer(scenery, sun), sky, seed)
    cover = scenery.painting.cover_values()[scenery.ids]
    cover[crowns_on_top] = COVERS.index("tree")

    # Nodata comes last, so that blur and noise do not mix with it.
    outside = burn([valid_area], height, width) == 0
    pixels[:, outside], cover[outside] = NODATA, COVER_NODATA
    buildings = _visible_footprints(scenery.buildings, valid_area, grid)
    return Town(seed=seed, grid=grid, pixels=pixels, buildings=buildings, cover=cover)


def write_town(path: Path, seed: int, height: int = 4096, width: int = 4096) -> Town:
    """Generate a town and write its scene; see `build_town` and `Town.write`."""
    town = build_town(seed, height, width)
    town.write(path)
    return town


def _valid_area(generator: np.random.Generator, height: int, width: int) -> shapely.Polygon:
    """The valid area: the frame, inset and rotated by a few degrees, as after orthorectification."""
    height_m, width_m = height * PIXEL_M, width * PIXEL_M
    inset = 0.02 * min(height_m, width_m)
    frame = shapely.box(0, 0, width_m, height_m)
    angle = generator.uniform(1.5, 4.0) * generator.choice((-1, 1))
    return rotate(frame.buffer(-inset, join_style="mitre"), angle).intersection(frame)


def _grid(generator: np.random.Generator, height: int, width: int) -> RasterGrid:
    """A grid at a random position in UTM zone 33 north."""
    left, top = generator.integers(300_000, 700_000), generator.integers(4_200_000, 6_500_000)
    transform = Affine(PIXEL_M, 0, float(left), 0, -PIXEL_M, float(top))
    return RasterGrid(crs=CRS.from_epsg(32633), transform=transform, height=height, width=width)


def _visible_footprints(
    buildings: tuple[Building, ...], valid_area: shapely.Polygon, grid: RasterGrid
) -> tuple[shapely.Polygon, ...]:
    """Footprints within the valid area, transformed from metres below the upper left corner to the CRS."""
    outlines = shapely.intersection([building.footprint for building in buildings], valid_area)
    parts = shapely.get_parts(outlines)
    large_parts = parts[(shapely.area(parts) >= MIN_AREA_M2) & (shapely.get_type_id(parts) == 3)]
    to_crs = (1, 0, 0, -1, grid.transform.c, grid.transform.f)
    return tuple(affine_transform(polygon, to_crs) for polygon in large_parts)
