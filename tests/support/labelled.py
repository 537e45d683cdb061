"""A small labelled scene for tests of training, and sources in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from conftest import MakeScene
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from pipeline.grid.raster_grid import RasterGrid
from pipeline.model.networks.registry import NetworkSpec
from pipeline.scene.describe import describe_scene
from pipeline.training.data.samples import LabelledScene
from pipeline.training.data.splits import Area
from pipeline.training.labels.polygon_labels import PolygonLabels, open_polygon_labels, read_polygons
from pipeline.training.sample import Sample
from pipeline.training.settings.augment import AugmentSpec, BrightnessSpec, ContrastSpec
from pipeline.training.settings.data import SamplesSpec, SplitSpec
from pipeline.training.settings.learning import OptimizationSpec
from pipeline.training.settings.spec import TrainSpec

UTM = "EPSG:32633"
ORIGIN = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)

SMALL = TrainSpec(
    classes=("roof",),
    network=NetworkSpec(depth=2, base_channels=8),
    samples=SamplesSpec(tile_size=32, batch_size=4, windows_per_epoch=32, threads=1),
    split=SplitSpec(block_size=32),
    augment=AugmentSpec(contrast=ContrastSpec(factor=0.1), brightness=BrightnessSpec(shift=0.1)),
    learning=OptimizationSpec(epochs=4, learning_rate=5e-3, precision="float32"),
)


def grid_of(side: int) -> RasterGrid:
    return RasterGrid(crs=CRS.from_string(UTM), transform=ORIGIN, height=side, width=side)


def rectangles(count: int, *, side: int = 96, seed: int = 0) -> list[shapely.Polygon]:
    """Squares of 8 px in pixel coordinates `(col, row)`, on a jittered lattice so that none overlap."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation([(r, c) for r in range(0, side, 16) for c in range(0, side, 16)])[:count]
    corners = [(c + rng.integers(1, 7), r + rng.integers(1, 7)) for r, c in cells]
    return [shapely.box(c, r, c + 8, r + 8) for c, r in corners]


def place(shapes: list[shapely.Geometry], transform: Affine = ORIGIN) -> geopandas.GeoSeries:
    matrix = [transform.a, transform.b, transform.d, transform.e, transform.c, transform.f]
    return geopandas.GeoSeries(shapes, crs=UTM).affine_transform(matrix)


class Town:
    """A small scene whose bright squares are the objects, and the files that say so."""

    def __init__(
        self, folder: Path, make_scene: MakeScene, name: str = "town", *, side: int = 96, seed: int = 0
    ) -> None:
        shapes = rectangles(side * side // 512, side=side, seed=seed)
        self.mask = rasterio.features.rasterize(shapes, out_shape=(side, side), dtype="uint8")
        noise = np.random.default_rng(seed).normal(0, 12, (3, side, side))
        self.pixels = np.clip(80 + 70 * self.mask[None] + noise, 1, 255).astype(np.uint8)
        self.image = make_scene(self.pixels, name=f"images/{name}.tif", crs=UTM, transform=ORIGIN)
        self.mask_file = make_scene(self.mask, name=f"masks/{name}.tif", crs=UTM, transform=ORIGIN)
        self.labels = folder / f"{name}.gpkg"
        self.frame = geopandas.GeoDataFrame({"kind": "roof"}, geometry=place(shapes), index=range(len(shapes)))
        self.frame.to_crs(4326).to_file(self.labels)


@pytest.fixture
def town(tmp_path: Path, make_scene: MakeScene) -> Town:
    return Town(tmp_path, make_scene)


def polygon_labels(town: Town, classes: tuple[str, ...] = ("roof",), field: str | None = None) -> PolygonLabels:
    table = read_polygons(town.labels, classes, field)
    return open_polygon_labels([table], describe_scene(town.image), classes=len(classes))


def area_of(town: Town, *held_out: Window) -> Area:
    return Area(source=LabelledScene(describe_scene(town.image), polygon_labels(town)), held_out=held_out)


class FakeSource:
    """A source in memory, without files."""

    def __init__(self, side: int, seed: int = 0, *, classes: int = 1, share: float = 0.01, name: str = "fake") -> None:
        rng = np.random.default_rng(seed)
        self.whole = Sample(
            pixels=rng.integers(1, 255, (2, side, side), np.uint8),
            target=(rng.random((classes, side, side)) < share).astype(np.uint8),
            valid=np.ones((side, side), bool),
        )
        self.scene: Any = FakeScene(side, name)

    def read(self, window: Window) -> Sample:
        rows, cols = window.toslices()
        whole = self.whole
        return Sample(
            pixels=whole.pixels[:, rows, cols], target=whole.target[:, rows, cols], valid=whole.valid[rows, cols]
        )

    def target(self, window: Window) -> NDArray[np.uint8]:
        """A view, so that a test may write into `whole`."""
        return self.read(window).target

    def close(self) -> None:
        pass


class FakeScene:
    """The part of a Scene that windows look at."""

    def __init__(self, side: int, name: str) -> None:
        self.grid = grid_of(side)
        self.id = name
        self.bands, self.band_numbers = ("a", "b"), (1, 2)
        self.scales, self.offsets = (1.0, 1.0), (0.0, 0.0)
