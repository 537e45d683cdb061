"""Longitude and latitude of grids and geometries: rings are densified, reprojected and unwrapped.

Along a ring longitudes are unwrapped, so they continue past 180 at the antimeridian; a ring that then does not close
goes round a pole, and is closed there. A grid without such an outline, because a part of it lies beyond the horizon of
its projection or on a pole, gets a bounding box instead.
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
"""Steps along the longer side of a densified ring, since edges bend between CRSs."""
MESH = 65
"""Rows and columns of the points that a bounding box is computed from."""
DIGITS = 8
"""Decimals of degrees: about a millimetre."""
FULL_CIRCLE_DEG = 360.0
"""Degrees around the Earth."""
POLE_TOLERANCE_DEG = 1e-9
"""Within this distance of a pole longitude is undefined, degrees."""

Points = NDArray[np.float64]
"""`(n, 2)`: x and y, or longitude and latitude."""


def outline(grid: RasterGrid) -> Points | None:
    """Longitudes and latitudes of the outline of a grid; None when no point of it lies on the Earth."""
    corners = np.array([(0, 0), (0, grid.height), (grid.width, grid.height), (grid.width, 0), (0, 0)], float)
    ring = _densified(pixels_to_map(grid, corners), grid.crs.to_wkt())
    if not np.isfinite(ring).all():
        return _box(grid)
    # On a pole longitude is defined only for a grid in degrees.
    if not grid.crs.is_geographic and (np.abs(ring[:, 1]) >= 90 - POLE_TOLERANCE_DEG).any():
        return _box(grid)
    return unwrap_ring(ring)


def outline_polygon(grid: RasterGrid) -> shapely.Geometry:
    """The outline of a grid as a valid polygon; empty where no point of it lies on the Earth."""
    ring = outline(grid)
    return shapely.Polygon() if ring is None else shapely.make_valid(shapely.Polygon(ring))


def to_geographic(geometry: shapely.Geometry, crs: str) -> shapely.Geometry:
    """A geometry in EPSG:4326, longitude first, made valid; parts beyond the horizon of its projection are dropped.

    Raises:
        SceneError: PROJ has no transformation to longitudes and latitudes.
    """
    if crs.upper() in ("EPSG:4326", "OGC:CRS84"):
        return geometry if geometry.is_valid else shapely.make_valid(geometry)
    return shapely.union_all([_to_geographic_part(part, crs) for part in shapely.get_parts(geometry)])


def intersects_bbox(footprint: shapely.Geometry, bbox: tuple[float, float, float, float]) -> bool:
    """Whether a valid footprint in longitudes and latitudes intersects `(left, bottom, right, top)`.

    A box whose left exceeds its right crosses the antimeridian.
    """
    left, bottom, right, top = bbox
    return intersects(footprint, shapely.box(left, bottom, right + (FULL_CIRCLE_DEG if left > right else 0), top))


def intersects(one: shapely.Geometry, other: shapely.Geometry) -> bool:
    """Whether two valid geometries in longitudes and latitudes intersect, modulo 360 degrees of longitude."""
    turned = [
        shapely.transform(other, partial(unwrap_longitudes, by=turn))
        for turn in (-FULL_CIRCLE_DEG, 0.0, FULL_CIRCLE_DEG)
    ]
    return bool(shapely.intersects(one, turned).any())


def smallest_extent(spans: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The shortest range of longitudes that contains all spans: west in [-180, 180), east may exceed 180.

    Args:
        spans: at least one `(west, east)` in the same form.

    >>> smallest_extent([(10, 20), (-5, 0)]), smallest_extent([(170, 185), (-170, -160)])
    ((-5, 20), (170, 200))
    """
    ordered = sorted(spans)
    # The easternmost end, one turn earlier: the first gap may lie across the antimeridian.
    reach = max(east for _, east in ordered) - 360
    invert_runs = []
    for west, east in ordered:
        invert_runs.append((west - reach, west))
        reach = max(reach, east)
    widest, west = max(invert_runs)
    return (west, west + 360 - widest) if widest > 0 else (-180.0, 180.0)


def unwrap_longitudes(points: Points, by: float) -> Points:
    """Points shifted by `by` degrees of longitude."""
    moved: Points = points + np.array([by, 0.0])
    return moved


def unwrap_ring(ring: Points) -> Points:
    """A densified ring with unwrapped longitudes; one that goes round the Earth is closed along its pole."""
    lon, lat = np.unwrap(ring[:, 0], period=FULL_CIRCLE_DEG), ring[:, 1]
    ring = np.column_stack([lon, lat])
    if abs(lon[-1] - lon[0]) < FULL_CIRCLE_DEG / 2:
        return ring
    pole = math.copysign(90, lat.mean())
    return np.vstack([ring, [(lon[-1], pole), (lon[0], pole)]])


def pixels_to_map(grid: RasterGrid, pixels: Points) -> Points:
    """Map coordinates `(x, y)` in the grid's CRS of `(col, row)`."""
    t = grid.transform
    return np.column_stack(
        [t.a * pixels[:, 0] + t.b * pixels[:, 1] + t.c, t.d * pixels[:, 0] + t.e * pixels[:, 1] + t.f]
    )


def _to_geographic_part(part: shapely.Geometry, crs: str) -> shapely.Geometry:
    """A part in longitudes and latitudes: a polygon, or points for other geometry types and degenerate polygons."""
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
    """A hole with longitudes in the range of its shell."""
    west, east = shell.bounds[0] - hole.bounds[0], shell.bounds[2] - hole.bounds[2]
    return shapely.transform(
        hole, partial(unwrap_longitudes, by=FULL_CIRCLE_DEG * round((west + east) / 2 / FULL_CIRCLE_DEG))
    )


def _densified(ring: Points, crs: str) -> Points:
    """Longitudes and latitudes of a densified closed ring; not finite beyond the horizon of the projection."""
    step = float(np.ptp(ring, axis=0).max()) / STEPS
    return _lonlat(shapely.get_coordinates(shapely.segmentize(shapely.LineString(ring), step)) if step else ring, crs)


def _lonlat(points: Points, crs: str) -> Points:
    """Longitudes and latitudes of points, rounded."""
    lon, lat = _transformer(crs).transform(points[:, 0], points[:, 1])
    lat = np.where(np.isfinite(lat), np.clip(lat, -90, 90), lat)
    return np.round(np.column_stack([lon, lat]), DIGITS)


def _box(grid: RasterGrid) -> Points | None:
    """The bounding box of the points of a mesh that lie on the Earth."""
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
        raise SceneError(
            f"its CRS has no transformation to longitude and latitude: {error}; give the true one"
        ) from error
