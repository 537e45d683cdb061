"""Coordinate transformations between scenes' pixel planes, and to the CRS of the merged file.

Scenes whose pixels are on one lattice have integer coordinates in each other's pixel planes, so their intersections
are exact.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from pipeline.errors import SceneError
from pipeline.grid import FULL_CIRCLE_DEG, RasterGrid, outline_polygon, to_geographic, unwrap_longitudes

if TYPE_CHECKING:
    from pyproj import Transformer

SNAP_PX = 1e-3
"""Vertices within this distance of a pixel corner are snapped to it; two transforms differ by less."""
MAX_EDGE_M = 1000.0
"""Longer edges are densified before a change of CRS, which bends straight lines."""
DEGREE_M = 111_320.0
"""Metres of a degree of latitude, about."""

Geometries = NDArray[np.object_]


def to_pixel_plane(geometry: Geometries, crs: CRS, grid: RasterGrid) -> Geometries:
    """Transform geometry in a CRS to the pixel plane of a grid, `x = col, y = row`."""
    middle = (grid.bounds[0] + grid.bounds[2]) / 2 if grid.crs.is_geographic else None
    placed = _reprojected(geometry, crs, grid.crs, middle)
    a, b, c, d, e, f = tuple(~grid.transform)[:6]

    def to_pixels(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return _snap_to_corners(np.column_stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f]))

    moved: Geometries = shapely.transform(placed, to_pixels)
    vertices = shapely.get_coordinates(moved)
    return moved if np.array_equal(vertices, np.round(vertices)) else _valid_areas(moved)


def from_pixel_plane(geometry: Geometries, transform: Affine) -> Geometries:
    """Transform geometry in a pixel plane to CRS coordinates; the vertex order of rings is unchanged."""
    a, b, c, d, e, f = tuple(transform)[:6]

    def to_crs(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f])

    moved: Geometries = shapely.transform(geometry, to_crs)
    return moved


def to_target_crs(geometry: Geometries, grid: RasterGrid, target: CRS) -> Geometries:
    """Reproject polygons of a scene; in a geographic CRS they are cut at the antimeridian (RFC 7946).

    Polygons in the target CRS are unchanged. SceneError if there is no transformation, or they lie outside its domain.
    """
    if grid.crs == target or not len(geometry):
        return geometry
    if not target.is_geographic:
        return make_valid(_reprojected(geometry, grid.crs, target, None))
    left, _, right, _ = outline_polygon(grid).bounds
    moved = _reprojected(geometry, grid.crs, target, (left + right) / 2)
    west, _, east, _ = shapely.bounds(moved).T
    for index in np.flatnonzero(east - west > FULL_CIRCLE_DEG / 2):  # around a pole, or half the Earth
        moved[index] = _polygons_only(to_geographic(geometry[index], grid.crs.to_wkt()))
    moved = make_valid(moved)
    west, _, east, _ = shapely.bounds(moved).T
    for index in np.flatnonzero((west < -FULL_CIRCLE_DEG / 2) | (east > FULL_CIRCLE_DEG / 2)):
        moved[index] = _wrap_longitudes(moved[index])
    return moved


def make_valid(geometry: Geometries) -> Geometries:
    """Valid polygons, where rounding or reprojection has made them self-intersect; shells counter-clockwise."""
    oriented: Geometries = shapely.orient_polygons(_valid_areas(geometry))
    return oriented


def _valid_areas(geometry: Geometries) -> Geometries:
    """Geometry, with the invalid replaced by the polygons of its valid form."""
    valid = np.array(geometry, dtype=object)
    for index in np.flatnonzero(~shapely.is_valid(geometry)):
        valid[index] = _polygons_only(shapely.make_valid(geometry[index]))
    return valid


def _wrap_longitudes(geometry: shapely.Geometry) -> shapely.Geometry:
    """A geometry with its parts beyond -180 or 180 degrees moved to the other side."""
    shifted = [
        shapely.transform(geometry, partial(unwrap_longitudes, by=by))
        for by in (-FULL_CIRCLE_DEG, 0.0, FULL_CIRCLE_DEG)
    ]
    inside = shapely.intersection(shifted, shapely.box(-FULL_CIRCLE_DEG / 2, -90, FULL_CIRCLE_DEG / 2, 90))
    return _polygons_only(shapely.union_all(inside))


def _polygons_only(geometry: shapely.Geometry) -> shapely.Geometry:
    """The polygons of a geometry, without points and lines."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.multipolygons(parts[shapely.get_dimensions(parts) == 2])


def _reprojected(geometry: Geometries, source: CRS, target: CRS, middle: float | None) -> Geometries:
    """Geometry in another CRS; longitudes are unwrapped to those nearest to `middle`, also beyond 180."""
    if source == target and middle is None:
        return geometry
    transformer = None if source == target else _transformer(source.to_wkt(), target.to_wkt())

    def move(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = (xy[:, 0], xy[:, 1]) if transformer is None else transformer.transform(xy[:, 0], xy[:, 1])
        if not (np.isfinite(x).all() and np.isfinite(y).all()):
            raise SceneError(
                f"polygons lie where {target.to_string()} has no coordinates; set merge.crs to another CRS"
            )
        if middle is not None:
            x = x - FULL_CIRCLE_DEG * np.round((x - middle) / FULL_CIRCLE_DEG)
        return np.column_stack([x, y])

    # Straight edges become curves in the other CRS; added vertices follow them.
    if transformer is not None:
        geometry = _densified(geometry, source)
    moved: Geometries = shapely.transform(geometry, move)
    return moved


def _densified(geometry: Geometries, crs: CRS) -> Geometries:
    """Geometry with additional vertices on long edges."""
    # The limit in units of the CRS: degrees, or its linear unit.
    longest = MAX_EDGE_M / (DEGREE_M if crs.is_geographic else float(crs.linear_units_factor[1]))
    bounds = shapely.bounds(geometry).reshape(-1, 4)
    large = np.nanmax(bounds[:, 2:] - bounds[:, :2], axis=1, initial=0) > longest
    if not large.any():
        return geometry
    densified = np.array(geometry, dtype=object)
    densified[large] = shapely.segmentize(densified[large], longest)
    return densified


def _snap_to_corners(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    corners = np.round(xy)
    return np.where(np.abs(xy - corners) < SNAP_PX, corners, xy)


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> Transformer:
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(source, target, always_xy=True)
    except ProjError as error:
        raise SceneError(f"no transformation between the CRSs of the scenes: {error}; set merge.crs") from error
