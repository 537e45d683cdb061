"""Reprojection of an area to the pixel coordinates of a grid, with edges densified until they are straight there.

    polygons ──clipped near the grid──▶ rings ──densified and reprojected──▶ rings in (col, row)

Parts far from the grid may lie beyond the horizon of its projection, so they are clipped away before reprojection.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import shapely
from rasterio.crs import CRS

from pipeline.errors import SceneError
from pipeline.grid.area import Area
from pipeline.grid.geographic import FULL_CIRCLE_DEG, STEPS, Points, pixels_to_map, unwrap_longitudes, unwrap_ring
from pipeline.grid.raster_grid import RasterGrid

if TYPE_CHECKING:
    from pyproj import Transformer

MARGIN = 0.02
"""Parts nearer to a grid than this share of its longer side, or than `MARGIN_PX`, are kept."""
MARGIN_PX = 16
MESH = 9
"""Rows and columns of the points that the clip polygon must contain."""
MAX_DEVIATION_PX = 0.01
"""Largest distance of the middle of a densified edge from its true position, in pixels."""
MAX_HALVINGS = 16
"""An edge that is still not straight after this many halvings crosses a discontinuity of a projection."""
DECIMALS = 6
"""Decimals of pixel coordinates; rounding makes a border that two parts share equal to the last bit."""


def area_rings_px(grid: RasterGrid, area: Area) -> list[Points]:
    """Rings of `(col, row)`, closed by their first points; a point in an odd number of them lies in the area."""
    if area.crs == grid.crs:
        rings = _rings_of(_cut(area, _box_around(grid)))
    else:
        move = _Reprojector(area.crs, grid)
        rings = [each for ring in _rings_of(_cut(area, _surroundings(grid, area.crs))) for each in move.all(ring)]
    if not all(np.isfinite(ring).all() for ring in rings):
        raise SceneError(
            f"the area {area.name} extends beyond the domain of the scene's CRS {grid.crs.to_string()[:60]}; "
            "draw it in that CRS"
        )
    return [np.round(_map_to_pixels(grid, ring), DECIMALS) for ring in rings]


def _box_around(grid: RasterGrid) -> shapely.Polygon:
    """The grid and its margin, in its own CRS."""
    wide = max(MARGIN_PX, MARGIN * max(grid.shape))
    corners = [(-wide, -wide), (grid.width + wide, -wide), (grid.width + wide, grid.height + wide)]
    return shapely.Polygon(pixels_to_map(grid, np.array([*corners, (-wide, grid.height + wide)])))


def _surroundings(grid: RasterGrid, crs: CRS) -> shapely.Geometry | None:
    """A polygon around the grid and its margin in another CRS; None where there is no valid one."""
    box = _box_around(grid)
    left, bottom, right, top = box.bounds
    ring = shapely.get_coordinates(shapely.segmentize(box.exterior, max(right - left, top - bottom) / STEPS))
    if grid.crs.is_geographic:
        ring[:, 1] = np.clip(ring[:, 1], -90, 90)
    moved = _reproject(_transformer(grid.crs, crs), ring)
    if not np.isfinite(moved).all():
        return None
    found = shapely.make_valid(shapely.Polygon(unwrap_ring(moved) if crs.is_geographic else moved))
    return _at_most_one_turn(found, crs) if _holds(found, grid, crs) else None


def _holds(found: shapely.Geometry, grid: RasterGrid, crs: CRS) -> bool:
    """Whether points all over the grid lie inside: a reprojected outline may be torn, or inside out."""
    cols, rows = np.meshgrid(np.linspace(0, grid.width, MESH), np.linspace(0, grid.height, MESH))
    points = _reproject(_transformer(grid.crs, crs), pixels_to_map(grid, np.column_stack([cols.ravel(), rows.ravel()])))
    inside = [shapely.intersects_xy(found, *unwrap_longitudes(points, by).T) for by in _turns(crs)]
    return bool(np.any(inside, axis=0).all())


def _at_most_one_turn(found: shapely.Geometry, crs: CRS) -> shapely.Geometry:
    """Clip to 360 degrees of longitude, so that no point of the Earth counts twice."""
    west, south, east, north = found.bounds
    if not crs.is_geographic or east - west <= FULL_CIRCLE_DEG:
        return found
    middle = (west + east) / 2
    return found & shapely.box(middle - FULL_CIRCLE_DEG / 2, south, middle + FULL_CIRCLE_DEG / 2, north)


def _cut(area: Area, near: shapely.Geometry | None) -> shapely.Geometry:
    """The part of the area inside `near`, with longitudes in the range of `near`."""
    if near is None:
        return area.shape
    parts = []
    for turn in _turns(area.crs):
        there = shapely.transform(near, partial(unwrap_longitudes, by=-turn))
        parts.append(shapely.transform(area.shape & there, partial(unwrap_longitudes, by=turn)))
    return shapely.union_all(parts)


def _turns(crs: CRS) -> tuple[float, ...]:
    return (-FULL_CIRCLE_DEG, 0.0, FULL_CIRCLE_DEG) if crs.is_geographic else (0.0,)


def _rings_of(shape: shapely.Geometry) -> list[Points]:
    """The rings of all polygons of a shape; points and lines, where it only touches the clip border, are dropped."""
    polygons = [part for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    return [shapely.get_coordinates(ring) for ring in shapely.get_rings(polygons)]


class _Reprojector:
    """Reprojects rings from the CRS of an area to that of a grid."""

    def __init__(self, source: CRS, grid: RasterGrid) -> None:
        self._transformer = _transformer(source, grid.crs)
        self._grid = grid
        self._to_degrees = grid.crs.is_geographic
        self._from_degrees = source.is_geographic

    def all(self, ring: Points) -> list[Points]:
        """The densified ring, once for each multiple of 360 degrees at which it may intersect the grid."""
        moved = self._densified(ring)
        if self._from_degrees or not self._to_degrees:
            return [moved]
        moved = unwrap_ring(moved)
        left, _, right, _ = self._grid.bounds
        copies = [unwrap_longitudes(moved, FULL_CIRCLE_DEG * turn) for turn in range(-2, 3)]
        return [each for each in copies if each[:, 0].min() < right and each[:, 0].max() > left]

    def _densified(self, ring: Points) -> Points:
        step = float(np.ptp(ring, axis=0).max()) / STEPS
        source = shapely.get_coordinates(shapely.segmentize(shapely.LineString(ring), step))
        moved = self._project(source)
        for _ in range(MAX_HALVINGS):
            # Bisect the edges whose middle, reprojected, lies off the straight edge between the reprojected ends.
            middles = (source[1:] + source[:-1]) / 2
            true = self._project(middles)
            with np.errstate(invalid="ignore"):
                miss = np.abs(
                    _map_to_pixels(self._grid, true) - _map_to_pixels(self._grid, (moved[1:] + moved[:-1]) / 2)
                )
            bent = np.flatnonzero((miss > MAX_DEVIATION_PX).any(axis=1))
            if not len(bent):
                break
            source = np.insert(source, bent + 1, middles[bent], axis=0)
            moved = np.insert(moved, bent + 1, true[bent], axis=0)
        return moved

    def _project(self, points: Points) -> Points:
        """Reproject points; from degrees to degrees, longitudes stay within 180 degrees of the source."""
        moved = _reproject(self._transformer, points)
        if self._from_degrees and self._to_degrees:
            moved[:, 0] += FULL_CIRCLE_DEG * np.round((points[:, 0] - moved[:, 0]) / FULL_CIRCLE_DEG)
        return moved


def _transformer(source: CRS, target: CRS) -> Transformer:
    return _transformer_of(source.to_wkt(), target.to_wkt())


@lru_cache(maxsize=16)
def _transformer_of(source: str, target: str) -> Transformer:
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(source, target, always_xy=True)
    except ProjError as error:
        raise SceneError(
            f"PROJ has no transformation from the area's CRS to the scene's: {error}; "
            "draw it in longitudes and latitudes"
        ) from error


def _reproject(transformer: Transformer, points: Points) -> Points:
    """Points in another CRS; not finite outside its domain."""
    return np.column_stack(transformer.transform(points[:, 0], points[:, 1]))


def _map_to_pixels(grid: RasterGrid, points: Points) -> Points:
    """`(col, row)` of `(x, y)`."""
    back = ~grid.transform
    there: Points = points @ np.array([[back.a, back.d], [back.b, back.e]]) + np.array([back.c, back.f])
    return there
