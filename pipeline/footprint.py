"""Where a grid lies in longitude and latitude, as RFC 7946 (GeoJSON) wants it: cut at the antimeridian, round poles.

The outline of the grid is followed in small steps. Longitudes are unwrapped along it, so that an outline that crosses
the antimeridian stays in one piece until it is cut there, and one that does not close has gone round a pole. What has
no such outline, since a part of it lies beyond the horizon of its projection or on a pole, gets a box instead.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.grid import RasterGrid

STEPS = 64
"""Points on each edge of an outline."""
MESH = 65
"""Rows and columns of the points that find a box."""
DIGITS = 8
"""Decimals of degrees that are kept: about a millimetre."""
STRAIGHT = 1e-5
"""Points that bend the outline by less than this share of its size are left out."""
AT_POLE = 1e-9
"""Degrees; nearer to a pole a longitude means nothing."""

Bbox = tuple[float, float, float, float]
"""`(west, south, east, north)` in degrees; west is over east where the antimeridian lies between."""


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Where something lies on the Earth, in WGS 84 longitude and latitude."""

    geometry: Mapping[str, object]
    """GeoJSON Polygon, or MultiPolygon where the antimeridian cuts it."""
    bbox: Bbox
    """Its bounds."""


def resolve_footprint(grid: RasterGrid) -> Footprint | None:
    """The footprint of a grid; None when no point of it lies on the Earth."""
    lon, lat = _on_earth(grid, _outline(grid))
    if not _has_longitudes(lon, lat, grid):
        return _box_of(grid)
    lon = np.unwrap(lon, period=360)
    turns = lon[-1] - lon[0]
    ring = np.column_stack([lon, lat])
    if abs(turns) > 180:
        pole = math.copysign(90, lat.mean())
        ring = np.vstack([ring, [(lon[-1], pole), (lon[0], pole)]])
    return _cut(ring)


def narrowest(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The shortest stretch of longitudes that holds all spans, from a west in [-180, 180) to an east that may pass 180.

    Args:
        spans: `(west, east)` in the same form, at least one.

    >>> narrowest([(10, 20), (-5, 0)]), narrowest([(170, 185), (-170, -160)])
    ((-5, 20), (170, 200))
    """
    ordered = sorted(spans)
    reach = max(east for _, east in ordered) - 360
    gaps = []
    for west, east in ordered:
        gaps.append((west - reach, west))
        reach = max(reach, east)
    widest, west = max(gaps)
    return (west, west + 360 - widest) if widest > 0 else (-180.0, 180.0)


def bbox_of(spans: Sequence[tuple[float, float]], south: float, north: float) -> Bbox:
    """The bounds of what lies between these longitudes and latitudes; spans as in `narrowest`."""
    west, east = narrowest(spans)
    return (round(west, DIGITS), south, round(east if east <= 180 else east - 360, DIGITS), north)


def join_bboxes(bboxes: Sequence[Bbox]) -> Bbox:
    """The bounds of several, the short way round the Earth."""
    spans = [(west, east if west <= east else east + 360) for west, _, east, _ in bboxes]
    return bbox_of(spans, min(box[1] for box in bboxes), max(box[3] for box in bboxes))


def _outline(grid: RasterGrid) -> NDArray[np.float64]:
    """Points `(col, row)` once round the grid; the last is the first."""
    corners = np.array([(0, 0), (0, grid.height), (grid.width, grid.height), (grid.width, 0), (0, 0)], float)
    along = np.linspace(0, 1, STEPS, endpoint=False)[:, None]
    edges = [start + (end - start) * along for start, end in pairwise(corners)]
    return np.vstack([*edges, corners[-1:]])


def _on_earth(grid: RasterGrid, pixels: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude and latitude of `(col, row)`, rounded; not finite beyond the horizon of the projection."""
    from pyproj import Transformer

    t = grid.transform
    x = t.a * pixels[:, 0] + t.b * pixels[:, 1] + t.c
    y = t.d * pixels[:, 0] + t.e * pixels[:, 1] + t.f
    lon, lat = Transformer.from_crs(grid.crs.to_wkt(), "EPSG:4326", always_xy=True).transform(x, y)
    return np.round(lon, DIGITS), np.round(np.where(np.isfinite(lat), np.clip(lat, -90, 90), lat), DIGITS)


def _has_longitudes(lon: NDArray[np.float64], lat: NDArray[np.float64], grid: RasterGrid) -> bool:
    """Whether every point has a longitude that means something: on a pole only that of a grid in degrees does."""
    if not (np.isfinite(lon) & np.isfinite(lat)).all():
        return False
    return bool(grid.crs.is_geographic or (np.abs(lat) < 90 - AT_POLE).all())


def _box_of(grid: RasterGrid) -> Footprint | None:
    """The box around the points of a mesh that lie on the Earth."""
    rows, cols = np.meshgrid(np.linspace(0, grid.height, MESH), np.linspace(0, grid.width, MESH), indexing="ij")
    lon, lat = _on_earth(grid, np.column_stack([cols.ravel(), rows.ravel()]))
    found = np.isfinite(lon) & np.isfinite(lat)
    if not found.any():
        return None
    south, north = lat[found].min(), lat[found].max()
    placed = found & (np.abs(lat) < 90 - AT_POLE)
    west, east = narrowest([(each, each) for each in ((lon[placed] + 180) % 360 - 180).tolist()] or [(-180.0, 180.0)])
    return _cut(np.array([(west, south), (east, south), (east, north), (west, north)]))


def _cut(ring: NDArray[np.float64]) -> Footprint:
    """A ring of unwrapped longitudes as polygons between -180 and 180."""
    west = ring[:, 0].min()
    whole = shapely.make_valid(shapely.Polygon(_moved(ring, by=-360 * math.floor((west + 180) / 360))))
    west, south, east, north = map(float, whole.bounds)
    whole = shapely.simplify(whole, STRAIGHT * max(east - west, north - south))
    pieces = []
    for turn in range(math.ceil((east - 180) / 360) + 1):
        inside = whole & shapely.box(360 * turn - 180, -90, 360 * turn + 180, 90)
        pieces += [shapely.transform(part, partial(_moved, by=-360 * turn)) for part in shapely.get_parts(inside)]
    geometry = shapely.union_all([piece for piece in pieces if piece.area > 0])
    return Footprint(geometry=_geojson(geometry), bbox=bbox_of([(west, min(east, west + 360))], south, north))


def _moved(points: NDArray[np.float64], by: float) -> NDArray[np.float64]:
    """Points `(longitude, latitude)` moved eastwards."""
    moved: NDArray[np.float64] = points + np.array([by, 0.0])
    return moved


def _geojson(geometry: shapely.Geometry) -> dict[str, object]:
    """Coordinates rounded, rings turned as RFC 7946 wants them."""
    rounded = shapely.transform(geometry, partial(np.round, decimals=DIGITS))
    record: dict[str, object] = json.loads(shapely.to_geojson(shapely.orient_polygons(rounded)))
    return record
