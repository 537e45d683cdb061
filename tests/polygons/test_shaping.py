from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rasterio.crs import CRS
from rasterio.features import rasterize
from support.fake_mosaic import classes_source, one_class_source, polygons_of

from pipeline.errors import SettingsError
from pipeline.grid.raster_grid import RasterGrid
from pipeline.polygons.shaping import Polygons, PolygonSpec, pixels_to_map, shape_polygons
from pipeline.polygons.stream import vectorize

NORTH_UP = Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
GRIDS = {
    "north-up": NORTH_UP,
    "south-up": Affine(0.5, 0, 500_000, 0, 0.5, 5_400_000),
    "mirrored": Affine(-0.5, 0, 500_000, 0, -0.5, 5_400_000),
    "rotated": NORTH_UP @ Affine.rotation(30),
    "sheared": NORTH_UP @ Affine.shear(20, 0),
}
MASKS = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 1, 1, 2]))


def shaped(mask: np.ndarray, spec: PolygonSpec | None = None, **options: object) -> list[Polygons]:
    source, spec = classes_source(mask, **options), spec or PolygonSpec()
    return list(shape_polygons(vectorize(source, spec), source.grid, spec))


@given(mask=MASKS, layout=st.sampled_from(sorted(GRIDS)))
def test_burning_the_placed_polygons_gives_the_mask_on_any_grid(mask: np.ndarray, layout: str):
    grid = GRIDS[layout]
    for polygons in shaped(mask, transform=grid):
        assert shapely.is_valid(polygons.geometry).all()
        assert shapely.is_ccw(shapely.get_exterior_ring(polygons.geometry)).all()
        rings = [ring for polygon in polygons.geometry for ring in polygon.interiors]
        assert not shapely.is_ccw(rings).any()
        shapes = zip(polygons.geometry, polygons.class_value.tolist(), strict=True)
        assert (rasterize(shapes, mask.shape, transform=grid, dtype="uint8") == mask).all()


def test_multipolygons_are_placed_like_their_parts():
    batch = polygons_of(one_class_source(np.eye(3)), PolygonSpec(connectivity=8))
    (placed,) = pixels_to_map(batch.geometry, NORTH_UP)
    assert placed.geom_type == "MultiPolygon"
    assert shapely.is_ccw([part.exterior for part in placed.geoms]).all()
    assert placed.bounds == (500_000, 5_399_998.5, 500_001.5, 5_400_000)


@pytest.mark.parametrize(
    ("crs", "transform", "true_m2"),
    [
        ("EPSG:32633", Affine(10, 0, 500_000, 0, -10, 5_400_000), 100.08),  # scale 0.9996 on the central meridian
        ("EPSG:3857", Affine(10, 0, 0, 0, -10, 8_399_738), 25.1),  # 60 degrees north: scale about 2
        ("EPSG:4326", Affine(1e-4, 0, 0, 0, -1e-4, 60), 62.17),
    ],
)
def test_areas_are_true_square_metres_in_any_crs(crs: str, transform: Affine, true_m2: float):
    mask = np.zeros((3, 3), np.uint8)
    mask[1, 1] = 1
    (polygons,) = shaped(mask, crs=crs, transform=transform)
    assert polygons.area_m2[0] == pytest.approx(true_m2, rel=2e-3)
    assert polygons.perimeter_m[0] == pytest.approx(4 * np.sqrt(true_m2), rel=0.15)


def test_whole_polygons_below_the_minimum_area_are_dropped():
    mask = np.zeros((10, 10), np.uint8)
    mask[0, 0] = mask[2, :5] = mask[9, 2:9] = 1
    polygons = shaped(mask, PolygonSpec(min_area_m2=4))
    assert sorted(polygons[0].pixel_count.tolist()) == [5, 7]
    assert shaped(mask, PolygonSpec(min_area_m2=40)) == []


def test_a_polygon_of_exactly_the_minimum_area_is_kept():
    mask = np.zeros((10, 10), np.uint8)
    mask[2, :5] = mask[9, 2:9] = 1
    (found,) = shaped(mask)
    least = float(found.area_m2.min())
    assert [len(polygons) for polygons in shaped(mask, PolygonSpec(min_area_m2=least))] == [2]
    assert [len(polygons) for polygons in shaped(mask, PolygonSpec(min_area_m2=np.nextafter(least, 1e9)))] == [1]


def test_a_polygon_in_slivers_is_not_filtered_before_it_is_whole():
    mask = np.zeros((3, 64), np.uint8)
    mask[1] = 1
    source, spec = one_class_source(mask), PolygonSpec(min_area_m2=60)
    batches = vectorize(source, spec, block_size=2)
    (polygons,) = shape_polygons(batches, source.grid, spec)
    assert polygons.pixel_count.tolist() == [64]


def test_pixel_counts_and_probabilities_travel_along():
    mask = np.array([[1, 1, 0, 2]], np.uint8)
    (polygons,) = shaped(mask)
    batch = polygons_of(classes_source(mask))
    assert polygons.class_value.tolist() == [1, 2]
    assert polygons.pixel_count.tolist() == [2, 1]
    assert polygons.mean_probability.tolist() == batch.mean_probability.tolist()
    assert (polygons.max_probability >= polygons.mean_probability).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_area_m2": -3}, "min_area_m2 must be >= 0, not -3"),
        ({"fill_holes_m2": float("nan")}, "fill_holes_m2 must be >= 0, not nan"),
        ({"simplify_m": float("inf")}, "simplify_m must be >= 0, not inf"),
        ({"threshold": 0.0}, "threshold must be above 0 and at most 1, not 0"),
        ({"connectivity": 6}, "connectivity must be 4 or 8, not 6"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, float], message: str):
    with pytest.raises(SettingsError, match=message):
        PolygonSpec(**settings)


def test_shaping_is_lazy():
    grid = RasterGrid(crs=CRS.from_epsg(32633), transform=NORTH_UP, height=3, width=3)

    def batches():
        yield polygons_of(one_class_source(np.ones((3, 3))))
        raise AssertionError("asked for too much")

    assert len(next(shape_polygons(batches(), grid, PolygonSpec()))) == 1
