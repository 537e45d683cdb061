"""Polygons in longitudes and latitudes keep their holes, stay in one piece at the antimeridian and close at a pole."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from pyproj import Transformer

from pipeline.grid.geographic import intersects_bbox, to_geographic

FIJI = "EPSG:32760"
"""UTM zone 60 south, whose zone ends at the antimeridian."""


def ring(x: float, y: float, side: float) -> shapely.Polygon:
    return shapely.box(x - side, y - side, x + side, y + side)


@pytest.mark.parametrize("x", [500_000, 829_000, 833_000])  # the antimeridian is at 830,900
def test_a_polygon_with_a_hole_holds_what_it_held(x: float) -> None:
    drawn = shapely.difference(ring(x, 8_140_000, 20_000), ring(x + 5_000, 8_140_000, 4_000))
    moved = to_geographic(drawn, FIJI)
    assert moved.is_valid
    assert moved.bounds[2] - moved.bounds[0] < 1
    points = np.random.default_rng(0).uniform(-25_000, 25_000, (400, 2)) + np.array([x, 8_140_000])
    lon, lat = Transformer.from_crs(FIJI, "EPSG:4326", always_xy=True).transform(*points.T)
    lon = lon + 360 * np.round((moved.centroid.x - lon) / 360)
    held = shapely.contains_xy(drawn, points[:, 0], points[:, 1])
    assert (shapely.contains_xy(moved, lon, lat) == held).mean() > 0.995


def test_a_ring_about_a_pole_is_a_cap_without_a_smaller_cap() -> None:
    drawn = shapely.difference(ring(0, 0, 2_000_000), ring(0, 0, 500_000))
    moved = to_geographic(drawn, "EPSG:3413")
    assert intersects_bbox(moved, (10, 78, 11, 79))
    assert not intersects_bbox(moved, (10, 88, 11, 89))
    assert moved.bounds[2] - moved.bounds[0] == pytest.approx(360)
