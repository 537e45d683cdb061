"""Where scenes lie, in longitudes and latitudes, and which of them touch a bounding box."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.errors import SceneError
from pipeline.grid import RasterGrid

if TYPE_CHECKING:
    from pyproj import Transformer

PIECES = 32
"""An outline is followed in so many steps or more, since edges bend from one CRS to another."""
TURN = 360.0
"""Degrees around the Earth."""


def outline(grid: RasterGrid) -> shapely.Geometry:
    """The area of a grid in longitudes and latitudes."""
    corners = [grid.transform @ xy for xy in ((0, 0), (grid.width, 0), (grid.width, grid.height), (0, grid.height))]
    return to_lonlat(shapely.Polygon(corners), grid.crs.to_wkt())


def to_lonlat(geometry: shapely.Geometry, crs: str) -> shapely.Geometry:
    """A geometry, made valid, in EPSG:4326, longitude first; beyond the antimeridian longitudes go on past 180.

    Of polygons in other CRSs the shells are kept and their holes are filled.

    Raises:
        SceneError: nothing leads from the CRS to longitudes and latitudes.
    """
    if crs.upper() in ("EPSG:4326", "OGC:CRS84"):
        return geometry if geometry.is_valid else shapely.make_valid(geometry)
    return shapely.union_all([_moved(part, crs) for part in shapely.get_parts(geometry)])


def touches(footprint: shapely.Geometry, bbox: tuple[float, float, float, float]) -> bool:
    """Whether a valid footprint in longitudes and latitudes and `(left, bottom, right, top)` have a point in common.

    A box whose left is over its right crosses the antimeridian.
    """
    left, bottom, right, top = bbox
    right += TURN if left > right else 0
    boxes = [shapely.box(left + turn, bottom, right + turn, top) for turn in (-TURN, 0, TURN)]
    return bool(shapely.intersects(footprint, boxes).any())


def _moved(part: shapely.Geometry, crs: str) -> shapely.Geometry:
    """A part in longitudes and latitudes: the polygon of its shell, or its points."""
    is_area = part.geom_type == "Polygon"
    left, bottom, right, top = part.bounds
    step = max(right - left, top - bottom) / PIECES
    xy = shapely.get_coordinates(shapely.segmentize(part.exterior, step) if is_area and step > 0 else part)
    lonlat = np.column_stack(_transformer(crs).transform(xy[:, 0], xy[:, 1]))
    lonlat = lonlat[np.isfinite(lonlat).all(axis=1)]
    if not is_area or len(lonlat) < 4:
        return shapely.multipoints(lonlat)
    lonlat[:, 0] = np.unwrap(lonlat[:, 0], period=TURN)
    return shapely.make_valid(shapely.Polygon(_closed_at_pole(lonlat)))


def _closed_at_pole(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """A ring that goes once round the Earth bounds the cap of its pole; any other is left as it is."""
    if abs(ring[-1, 0] - ring[0, 0]) < TURN / 2:
        return ring
    pole = np.copysign(90.0, ring[:, 1].mean())
    return np.vstack([ring, [[ring[-1, 0], pole], [ring[0, 0], pole]]])


@lru_cache(maxsize=16)
def _transformer(crs: str) -> Transformer:
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        return Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    except ProjError as error:
        raise SceneError(f"its CRS cannot be taken to longitudes and latitudes: {error}; leave bbox out") from error
