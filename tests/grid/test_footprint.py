"""Footprints are valid GeoJSON wherever a grid lies: in any CRS, across the antimeridian, round the poles."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from affine import Affine
from pyproj import Transformer
from rasterio.crs import CRS

from pipeline.grid.footprint import Footprint, join_bboxes, resolve_footprint
from pipeline.grid.geographic import DIGITS
from pipeline.grid.raster_grid import RasterGrid

WORLD_M = 20_037_508.342789244
"""Half the side of the Web Mercator world."""


def grid(crs: str, transform: tuple[float, ...], height: int, width: int) -> RasterGrid:
    return RasterGrid(crs=CRS.from_user_input(crs), transform=Affine(*transform), height=height, width=width)


def footprint(crs: str, transform: tuple[float, ...], height: int, width: int) -> Footprint:
    found = resolve_footprint(grid(crs, transform, height, width))
    assert found is not None
    return found


def shape_of(found: Footprint) -> shapely.Geometry:
    return shapely.from_geojson(json.dumps(found.geometry))


PLACES = {
    "one corner of a town": ("EPSG:32633", (0.5, 0, 500_000, 0, -0.5, 5_400_000), 40, 50),
    "a Sentinel-2 tile": ("EPSG:32633", (10, 0, 300_000, 0, -10, 5_400_000), 10_980, 10_980),
    "degrees": ("EPSG:4326", (0.01, 0, 10, 0, -0.01, 50), 100, 200),
    "south-up": ("EPSG:32719", (10, 0, 300_000, 0, 10, 8_000_000), 500, 500),
    "rotated": ("EPSG:32633", (3, 1, 500_000, 1, -3, 5_400_000), 200, 300),
    "pixels of a centimetre": ("EPSG:32633", (0.01, 0, 500_000, 0, -0.01, 5_400_000), 2, 3),
    "across the antimeridian": ("EPSG:32660", (10, 0, 700_000, 0, -10, 5_400_000), 10_980, 20_980),
    "the globe": ("EPSG:4326", (0.5, 0, -180, 0, -0.5, 90), 360, 720),
    "the globe from Greenwich": ("EPSG:4326", (0.5, 0, 0, 0, -0.5, 90), 360, 720),
    "the globe by pixel centres": ("EPSG:4326", (0.25, 0, -180.125, 0, -0.25, 90.125), 721, 1440),
    "the Web Mercator world": ("EPSG:3857", (WORLD_M / 128, 0, -WORLD_M, 0, -WORLD_M / 128, WORLD_M), 256, 256),
    "round the north pole": ("EPSG:3995", (1000, 0, -1_000_000, 0, -1000, 1_500_000), 3000, 3000),
    "round the south pole": ("EPSG:3031", (1000, 0, -1_000_000, 0, -1000, 1_500_000), 3000, 3000),
    "a corner on the pole": ("EPSG:3995", (1000, 0, 0, 0, -1000, 0), 3000, 3000),
    "an edge over the pole": ("EPSG:3995", (1000, 0, 0, 0, -1000, 1_500_000), 3000, 3000),
    "beyond the horizon": (
        "+proj=geos +h=35785831 +lon_0=-75 +sweep=x",
        (20_000, 0, -5_434_000, 0, -20_000, 5_434_000),
        542,
        542,
    ),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=list(PLACES))
def test_a_footprint_is_valid_on_the_map_and_holds_what_the_grid_holds(
    place: tuple[str, tuple[float, ...], int, int],
) -> None:
    crs, transform, height, width = place
    found = footprint(*place)
    shape = shape_of(found)
    assert shape.is_valid
    assert shape.area > 0
    assert shape.geom_type in ("Polygon", "MultiPolygon")
    west, south, east, north = shape.bounds
    assert -180 <= west < east <= 180
    assert -90 <= south < north <= 90
    inside = np.random.default_rng(0).uniform(0.01, 0.99, (500, 2)) * (width, height)
    x, y = Affine(*transform) @ inside.T
    lon, lat = Transformer.from_crs(crs, "EPSG:4326", always_xy=True).transform(x, y)
    there = np.isfinite(lon) & (np.abs(lat) < 90)
    points = shapely.points((np.asarray(lon)[there] + 180) % 360 - 180, np.asarray(lat)[there])
    held = shapely.intersects(shape.buffer(max(1e-4 * (east - west), 10**-DIGITS)), points)
    assert held.mean() > (0.97 if "geos" in crs else 0.999)


def test_an_outline_in_degrees_is_its_four_corners() -> None:
    shape = shape_of(footprint(*PLACES["degrees"]))
    assert shape.equals(shapely.box(10, 49, 12, 50))
    assert len(shape.exterior.coords) == 5


def test_the_outer_ring_runs_against_the_clock() -> None:
    for name in ("degrees", "south-up", "round the north pole"):
        assert shapely.is_ccw(shapely.get_exterior_ring(shape_of(footprint(*PLACES[name])))), name


def test_across_the_antimeridian_there_are_two_polygons_and_west_is_over_east() -> None:
    found = footprint(*PLACES["across the antimeridian"])
    west, _, east, _ = found.bbox
    assert found.geometry["type"] == "MultiPolygon"
    assert 179 < west < 180
    assert -178 < east < -177


@pytest.mark.parametrize(("name", "pole"), [("round the north pole", 90), ("round the south pole", -90)])
def test_round_a_pole_the_footprint_reaches_it_at_every_longitude(name: str, pole: int) -> None:
    found = footprint(*PLACES[name])
    west, south, east, north = found.bbox
    assert (west, east) == (-180, 180)
    assert pole in (south, north)


@pytest.mark.parametrize("name", ["the globe", "the globe from Greenwich", "the globe by pixel centres"])
def test_the_globe_is_the_whole_map(name: str) -> None:
    found = footprint(*PLACES[name])
    assert found.bbox == (-180, -90, 180, 90)
    assert shape_of(found).area == pytest.approx(360 * 180)


def test_a_grid_wholly_beyond_the_horizon_has_no_footprint() -> None:
    far = grid("+proj=geos +h=35785831 +lon_0=-75 +sweep=x", (1000, 0, 9_000_000, 0, -1000, 9_000_000), 10, 10)
    assert resolve_footprint(far) is None


@pytest.mark.parametrize(
    ("bboxes", "joined"),
    [
        ([(10, 0, 20, 5), (-5, -3, 0, 2)], (-5, -3, 20, 5)),
        ([(170, 0, -175, 5), (-170, 0, -160, 5)], (170, 0, -160, 5)),
        ([(170, 0, 175, 5), (-170, 0, -160, 5)], (170, 0, -160, 5)),
        ([(170, 0, -90, 1), (-170, 0, -160, 1), (-100, 0, -90, 1)], (170, 0, -90, 1)),
        ([(-180, -90, 180, 90), (5, 0, 6, 1)], (-180, -90, 180, 90)),
        ([(0, 0, 120, 1), (120, 0, -120, 1), (-120, 0, 0, 1)], (-180, 0, 180, 1)),
    ],
)
def test_bounds_are_joined_the_short_way_round(bboxes: list[tuple[float, ...]], joined: tuple[float, ...]) -> None:
    assert join_bboxes(bboxes) == joined  # type: ignore[arg-type]
