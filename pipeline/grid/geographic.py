"""Where things lie, in longitudes and latitudes: rings are followed in small steps, and stay in one piece.

Along a ring longitudes are unwrapped, so beyond the antimeridian they go on past 180; a ring that does not close then
has gone round a pole, and is closed there. A grid that has no such outline, since a part of it lies beyond the horizon
of its projection or on a pole, gets a box instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.errors import SceneError
from pipeline.grid.raster_grid import RasterGrid

if TYPE_CHECKING:
    from pyproj import Transformer

STEPS = 64
"""Along the longer side of what it bounds a ring is followed in so many steps, since edges bend between CRSs."""
MESH = 65
"""Rows and columns of the points that find a box."""
DIGITS = 8
"""Decimals of degrees that are kept: about a millimetre."""
FULL_CIRCLE_DEG = 360.0
"""Degrees around the Earth."""
POLE_TOLERANCE_DEG = 1e-9
"""Degrees; nearer to a pole a longitude means nothing."""

Points = NDArray[np.float64]
"""`(n, 2)`: x and y, or longitude and latitude."""


def outline(grid: RasterGrid) -> Points | None:
    """Longitudes and latitudes once round a grid; None when no point of it lies on the Earth."""
    corners = np.array([(0, 0), (0, grid.height), (grid.width, grid.height), (grid.width, 0), (0, 0)], float)
    ring = _densified(pixels_to_map(grid, corners), grid.crs.to_wkt())
    if not np.isfinite(ring).all():
        return _box(grid)
    # On a pole only the longitude of a grid in degrees means something.
    if not grid.crs.is_geographic and (np.abs(ring[:, 1]) >= 90 - POLE_TOLERANCE_DEG).any():
        return _box(grid)
    return unwrap_ring(ring)


def outline_polygon(grid: RasterGrid) -> shapely.Geometry:
    """The area of a grid, valid, and empty where no point of it lies on the Earth."""
    ring = outline(grid)
    return shapely.Polygon() if ring is None else shapely.make_valid(shapely.Polygon(ring))


def to_geographic(geometry: shapely.Geometry, crs: str) -> shapely.Geometry:
    """A geometry, made valid, in EPSG:4326, longitude first; what lies beyond the horizon is left out.

    Raises:
        SceneError: nothing leads from the CRS to longitudes and latitudes.
    """
    if crs.upper() in ("EPSG:4326", "OGC:CRS84"):
        return geometry if geometry.is_valid else shapely.make_valid(geometry)
    return shapely.union_all([_to_geographic_part(part, crs) for part in shapely.get_parts(geometry)])


def intersects_bbox(footprint: shapely.Geometry, bbox: tuple[float, float, float, float]) -> bool:
    """Whether a valid footprint in longitudes and latitudes and `(left, bottom, right, top)` have a point in common.

    A box whose left is over its right crosses the antimeridian.
    """
    left, bottom, right, top = bbox
    return intersects(footprint, shapely.box(left, bottom, right + (FULL_CIRCLE_DEG if left > right else 0), top))


def intersects(one: shapely.Geometry, other: shapely.Geometry) -> bool:
    """Whether two valid geometries in longitudes and latitudes have a point in common, in whichever turn they are."""
    turned = [
        shapely.transform(other, partial(unwrap_longitudes, by=turn))
        for turn in (-FULL_CIRCLE_DEG, 0.0, FULL_CIRCLE_DEG)
    ]
    return bool(shapely.intersects(one, turned).any())


def smallest_extent(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The shortest stretch of longitudes that holds all spans, from a west in [-180, 180) to an east that may pass 180.

    Args:
        spans: `(west, east)` in the same form, at least one.

    >>> smallest_extent([(10, 20), (-5, 0)]), smallest_extent([(170, 185), (-170, -160)])
    ((-5, 20), (170, 200))
    """
    ordered = sorted(spans)
    reach = max(east for _, east in ordered) - 360
    invert_runs = []
    for west, east in ordered:
        invert_runs.append((west - reach, west))
        reach = max(reach, east)
    widest, west = max(invert_runs)
    return (west, west + 360 - widest) if widest > 0 else (-180.0, 180.0)


def unwrap_longitudes(points: Points, by: float) -> Points:
    """Points moved by so many degrees."""
    moved: Points = points + np.array([by, 0.0])
    return moved


def unwrap_ring(ring: Points) -> Points:
    """A followed ring with unwrapped longitudes; one that goes once round the Earth bounds the cap of its pole."""
    lon, lat = np.unwrap(ring[:, 0], period=FULL_CIRCLE_DEG), ring[:, 1]
    ring = np.column_stack([lon, lat])
    if abs(lon[-1] - lon[0]) < FULL_CIRCLE_DEG / 2:
        return ring
    pole = math.copysign(90, lat.mean())
    return np.vstack([ring, [(lon[-1], pole), (lon[0], pole)]])


def pixels_to_map(grid: RasterGrid, pixels: Points) -> Points:
    """`(x, y)` in the grid's CRS of `(col, row)`."""
    t = grid.transform
    return np.column_stack(
        [t.a * pixels[:, 0] + t.b * pixels[:, 1] + t.c, t.d * pixels[:, 0] + t.e * pixels[:, 1] + t.f]
    )


def _to_geographic_part(part: shapely.Geometry, crs: str) -> shapely.Geometry:
    """A part in longitudes and latitudes: a polygon, or the points of anything else and of what is too small."""
    if part.geom_type != "Polygon":
        return _as_points(_lonlat(shapely.get_coordinates(part), crs))
    rings = [_densified(shapely.get_coordinates(ring), crs) for ring in shapely.get_rings(part)]
    seen = [ring[np.isfinite(ring).all(axis=1)] for ring in rings]
    if len(seen[0]) < 4:
        return _as_points(seen[0])
    shell, *holes = [shapely.make_valid(shapely.Polygon(unwrap_ring(ring))) for ring in seen if len(ring) >= 4]
    return shapely.difference(shell, shapely.union_all([_in_turn_of(hole, shell) for hole in holes]))


def _as_points(lonlat: Points) -> shapely.Geometry:
    return shapely.multipoints(lonlat[np.isfinite(lonlat).all(axis=1)])


def _in_turn_of(hole: shapely.Geometry, shell: shapely.Geometry) -> shapely.Geometry:
    """A hole in the turn round the Earth that its shell is in."""
    west, east = shell.bounds[0] - hole.bounds[0], shell.bounds[2] - hole.bounds[2]
    return shapely.transform(
        hole, partial(unwrap_longitudes, by=FULL_CIRCLE_DEG * round((west + east) / 2 / FULL_CIRCLE_DEG))
    )


def _densified(ring: Points, crs: str) -> Points:
    """Longitudes and latitudes of a closed ring in small steps; not finite beyond the horizon of the projection."""
    step = float(np.ptp(ring, axis=0).max()) / STEPS
    return _lonlat(shapely.get_coordinates(shapely.segmentize(shapely.LineString(ring), step)) if step else ring, crs)


def _lonlat(points: Points, crs: str) -> Points:
    """Longitudes and latitudes of points, rounded."""
    lon, lat = _transformer(crs).transform(points[:, 0], points[:, 1])
    lat = np.where(np.isfinite(lat), np.clip(lat, -90, 90), lat)
    return np.round(np.column_stack([lon, lat]), DIGITS)


def _box(grid: RasterGrid) -> Points | None:
    """The box around the points of a mesh that lie on the Earth."""
    rows, cols = np.meshgrid(np.linspace(0, grid.height, MESH), np.linspace(0, grid.width, MESH), indexing="ij")
    mesh = _lonlat(pixels_to_map(grid, np.column_stack([cols.ravel(), rows.ravel()])), grid.crs.to_wkt())
    found = mesh[np.isfinite(mesh).all(axis=1)]
    if not len(found):
        return None
    south, north = found[:, 1].min(), found[:, 1].max()
    apart = found[np.abs(found[:, 1]) < 90 - POLE_TOLERANCE_DEG, 0]
    west, east = smallest_extent([(each, each) for each in ((apart + 180) % 360 - 180).tolist()] or [(-180.0, 180.0)])
    return np.array([(west, south), (east, south), (east, north), (west, north)])


@lru_cache(maxsize=16)
def _transformer(crs: str) -> Transformer:
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    except ProjError as error:
        raise SceneError(f"its CRS leads to no longitudes and latitudes: {error}; give the true one") from error
