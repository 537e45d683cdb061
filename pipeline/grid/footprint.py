"""GeoJSON footprint of a grid (RFC 7946): longitude and latitude, cut at the antimeridian, closed around poles."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import shapely

from pipeline.grid.geographic import DIGITS, Points, outline, smallest_extent, unwrap_longitudes
from pipeline.grid.raster_grid import RasterGrid

SIMPLIFY_SHARE = 1e-5
"""Tolerance of simplification, as a share of the outline's size."""

Bbox = tuple[float, float, float, float]
"""`(west, south, east, north)` in degrees; west exceeds east where the box crosses the antimeridian."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """A footprint in WGS 84 longitude and latitude."""

    geometry: Mapping[str, object]
    """GeoJSON Polygon, or MultiPolygon where the antimeridian cuts it."""
    bbox: Bbox
    """Its bounds."""


def resolve_footprint(grid: RasterGrid) -> Footprint | None:
    """The footprint of a grid; None when no point of it lies on the Earth."""
    ring = outline(grid)
    return None if ring is None else _cut(ring)


def bbox_of(spans: Sequence[tuple[float, float]], south: float, north: float) -> Bbox:
    """The bounding box of spans of longitude, as in `smallest_extent`, and a range of latitude."""
    west, east = smallest_extent(spans)
    return (round(west, DIGITS), south, round(east if east <= 180 else east - 360, DIGITS), north)


def join_bboxes(bboxes: Sequence[Bbox]) -> Bbox:
    """The union of bounding boxes, the shorter way round the Earth."""
    spans = [(west, east if west <= east else east + 360) for west, _, east, _ in bboxes]
    return bbox_of(spans, min(box[1] for box in bboxes), max(box[3] for box in bboxes))


def _cut(ring: Points) -> Footprint:
    """Cut a ring of unwrapped longitudes into polygons between -180 and 180."""
    west = ring[:, 0].min()
    whole = shapely.make_valid(shapely.Polygon(unwrap_longitudes(ring, by=-360 * math.floor((west + 180) / 360))))
    west, south, east, north = map(float, whole.bounds)
    whole = shapely.simplify(whole, SIMPLIFY_SHARE * max(east - west, north - south))
    pieces = []
    for turn in range(math.ceil((east - 180) / 360) + 1):
        inside = whole & shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90)
        pieces += [
            shapely.transform(part, partial(unwrap_longitudes, by=-360 * turn)) for part in shapely.get_parts(inside)
        ]
    geometry = shapely.union_all([piece for piece in pieces if piece.area > 0])
    return Footprint(geometry=_geojson(geometry), bbox=bbox_of([(west, min(east, west + 360))], south, north))


def _geojson(geometry: shapely.Geometry) -> dict[str, object]:
    """GeoJSON with rounded coordinates and ring orientation of RFC 7946."""
    rounded = shapely.transform(geometry, partial(np.round, decimals=DIGITS))
    record: dict[str, object] = json.loads(shapely.to_geojson(shapely.orient_polygons(rounded)))
    return record
