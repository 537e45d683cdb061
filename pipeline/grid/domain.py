"""Domain of a raster grid: whether its pixels lie on the Earth, by a round trip of points through its projection.

A grid in degrees leads off the Earth if the centre of a pixel lies beyond a pole, or more than a turn beyond the
antimeridian. A projected grid does if no point of a mesh of pixel centres returns from longitude and latitude: part of
a full-disk view or of a map of the world lies beyond the horizon, and its pixels there are nodata.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SceneError
from pipeline.grid.crs import geodetic_transformer
from pipeline.grid.raster_grid import RasterGrid

MESH = 33
"""Rows and columns of the mesh."""
MAX_LATITUDE_DEG = 90 + 1e-9
"""Largest latitude of the centre of a pixel, degrees; in grids of centres the first row lies on the pole."""
MAX_LONGITUDE_DEG = 540.0
"""Largest longitude, degrees: a turn beyond the antimeridian."""
CIRCUMFERENCE_M = 40_075_017.0
"""Length of the equator."""
MAX_ERROR = 1e-5
"""Largest error of a round trip, as a share of the larger coordinate; or a pixel, if that is more."""


def check_on_earth(grid: RasterGrid) -> None:
    """Refuse a grid that leads off the Earth in its CRS.

    Raises:
        SceneError: it does, or PROJ does not understand the CRS.
    """
    left, bottom, right, top = grid.bounds
    reason = None
    if grid.crs.is_geographic:
        reason = _beyond_degrees(grid)
    elif not _on_earth(grid).any():
        reason = f"x {left:.8g} to {right:.8g}, y {bottom:.8g} to {top:.8g} is no place in its CRS"
    if reason is not None:
        raise SceneError(
            f"leads off the Earth: {reason}; correct the transform with gdal_edit -a_ullr, or the CRS with gdal_edit "
            "-a_srs, and see whether x and y are swapped"
        )


def _beyond_degrees(grid: RasterGrid) -> str | None:
    """The latitudes or longitudes of pixel centres of a geographic grid that do not exist."""
    rows, cols = np.array([0.5, grid.height - 0.5]), np.array([0.5, grid.width - 0.5])
    centres = _at(grid, rows, cols) * math.degrees(grid.crs.units_factor[1])
    for axis, name, largest in ((1, "latitudes", MAX_LATITUDE_DEG), (0, "longitudes", MAX_LONGITUDE_DEG)):
        low, high = float(centres[axis].min()), float(centres[axis].max())
        if max(-low, high) > largest:
            return f"its {name} run from {low:.8g} to {high:.8g} degrees"
    return None


def _on_earth(grid: RasterGrid) -> NDArray[np.bool_]:
    """Where the points of a mesh of pixel centres return from longitude and latitude, at most a turn further east."""
    rows, cols = (0.5 + np.linspace(0, length - 1, min(MESH, length)) for length in grid.shape)
    points = _at(grid, rows, cols).reshape(2, -1)
    transformer = geodetic_transformer(grid.crs)
    returned = np.stack(transformer.transform(*transformer.transform(*points), direction="INVERSE"))
    found = np.isfinite(returned).all(axis=0)
    error = np.abs(np.where(found, returned - points, 0))
    t = grid.transform
    tolerance = np.maximum(MAX_ERROR * np.abs(points).max(axis=0), np.hypot(abs(t.a) + abs(t.b), abs(t.d) + abs(t.e)))
    turn = CIRCUMFERENCE_M * 1.01 / grid.crs.linear_units_factor[1]
    return np.asarray(found & (error[1] <= tolerance) & ((error[0] <= tolerance) | (error[0] <= turn)))


def _at(grid: RasterGrid, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> NDArray[np.float64]:
    """`(2, rows, cols)`: x and y of points of the grid."""
    t, down, across = grid.transform, rows[:, None], cols[None, :]
    return np.stack([t.a * across + t.b * down + t.c, t.d * across + t.e * down + t.f])
