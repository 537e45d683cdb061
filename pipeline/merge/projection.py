"""Geometry carried from one scene's pixel plane to another's, and to the CRS of the result.

Scenes whose pixels lie on one lattice have whole numbers on each other's planes, so what they have in common is found
exactly.
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

ON_CORNER_PX = 1e-3
"""Vertices so near to a corner of the plane's pixels are put on it: floats of two transforms differ by less."""
EDGE_M = 1000.0
"""Longer edges get further vertices before they change their CRS, since straight lines bend."""
DEGREE_M = 111_320.0
"""Metres of a degree of latitude, about."""

Geometries = NDArray[np.object_]


def onto_plane(geometry: Geometries, crs: CRS, grid: RasterGrid) -> Geometries:
    """Geometry in a CRS -> the pixel plane of a grid, `x = col, y = row`."""
    middle = (grid.bounds[0] + grid.bounds[2]) / 2 if grid.crs.is_geographic else None
    placed = _reprojected(geometry, crs, grid.crs, middle)
    a, b, c, d, e, f = tuple(~grid.transform)[:6]

    def to_pixels(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return _on_corners(np.column_stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f]))

    moved: Geometries = shapely.transform(placed, to_pixels)
    vertices = shapely.get_coordinates(moved)
    return moved if np.array_equal(vertices, np.round(vertices)) else _sound(moved)


def off_plane(geometry: Geometries, transform: Affine) -> Geometries:
    """Geometry on a pixel plane -> CRS coordinates; rings keep the turn that they have on the plane."""
    a, b, c, d, e, f = tuple(transform)[:6]

    def to_crs(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f])

    moved: Geometries = shapely.transform(geometry, to_crs)
    return moved


def to_result(geometry: Geometries, grid: RasterGrid, target: CRS) -> Geometries:
    """Polygons of a scene in the CRS of the result; those of degrees are cut at the antimeridian (RFC 7946).

    Args:
        geometry: in the scene's CRS.
        grid: of the scene.
        target: CRS of the result; where it is the scene's own nothing is changed.

    Raises:
        SceneError: nothing leads from one CRS to the other, or the polygons lie where the other has no place.
    """
    if grid.crs == target or not len(geometry):
        return geometry
    if not target.is_geographic:
        return repaired(_reprojected(geometry, grid.crs, target, None))
    left, _, right, _ = outline_polygon(grid).bounds
    moved = _reprojected(geometry, grid.crs, target, (left + right) / 2)
    west, _, east, _ = shapely.bounds(moved).T
    for place in np.flatnonzero(east - west > FULL_CIRCLE_DEG / 2):  # round a pole, or half the Earth
        moved[place] = _areas(to_geographic(geometry[place], grid.crs.to_wkt()))
    moved = repaired(moved)
    west, _, east, _ = shapely.bounds(moved).T
    for place in np.flatnonzero((west < -FULL_CIRCLE_DEG / 2) | (east > FULL_CIRCLE_DEG / 2)):
        moved[place] = _within_a_turn(moved[place])
    return moved


def repaired(geometry: Geometries) -> Geometries:
    """Polygons, made valid where rounding or a change of CRS has folded them; shells counter-clockwise."""
    oriented: Geometries = shapely.orient_polygons(_sound(geometry))
    return oriented


def _sound(geometry: Geometries) -> Geometries:
    """Geometry; of what is not valid the areas."""
    sound = np.array(geometry, dtype=object)
    for place in np.flatnonzero(~shapely.is_valid(geometry)):
        sound[place] = _areas(shapely.make_valid(geometry[place]))
    return sound


def _within_a_turn(geometry: shapely.Geometry) -> shapely.Geometry:
    """What lies beyond -180 or 180 degrees on the other side."""
    turns = [
        shapely.transform(geometry, partial(unwrap_longitudes, by=by))
        for by in (-FULL_CIRCLE_DEG, 0.0, FULL_CIRCLE_DEG)
    ]
    inside = shapely.intersection(turns, shapely.box(-FULL_CIRCLE_DEG / 2, -90, FULL_CIRCLE_DEG / 2, 90))
    return _areas(shapely.union_all(inside))


def _areas(geometry: shapely.Geometry) -> shapely.Geometry:
    """The polygons of a geometry, without points and lines."""
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.multipolygons(parts[shapely.get_dimensions(parts) == 2])


def _reprojected(geometry: Geometries, source: CRS, target: CRS, middle: float | None) -> Geometries:
    """Geometry in another CRS; of longitudes those nearest to `middle`, also past 180."""
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

    if transformer is not None:
        geometry = _followed(geometry, source)
    moved: Geometries = shapely.transform(geometry, move)
    return moved


def _followed(geometry: Geometries, crs: CRS) -> Geometries:
    """Geometry whose long edges have further vertices."""
    longest = EDGE_M / (DEGREE_M if crs.is_geographic else float(crs.linear_units_factor[1]))
    bounds = shapely.bounds(geometry).reshape(-1, 4)
    large = np.nanmax(bounds[:, 2:] - bounds[:, :2], axis=1, initial=0) > longest
    if not large.any():
        return geometry
    followed = np.array(geometry, dtype=object)
    followed[large] = shapely.segmentize(followed[large], longest)
    return followed


def _on_corners(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    corners = np.round(xy)
    return np.where(np.abs(xy - corners) < ON_CORNER_PX, corners, xy)


@lru_cache(maxsize=64)
def _transformer(source: str, target: str) -> Transformer:
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(source, target, always_xy=True)
    except ProjError as error:
        raise SceneError(f"nothing leads from one CRS of the scenes to another: {error}; set merge.crs") from error
