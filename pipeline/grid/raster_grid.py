"""Raster grid (CRS, transform, shape), and geodesic areas and lengths of polygons.

A grid maps pixels to map coordinates; it owns no pixels and opens no files. Lengths and areas
are measured on the ellipsoid, so they are true metres in any CRS: degrees, Web Mercator or UTM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from pipeline.errors import SceneError
from pipeline.grid.crs import geodetic_transformer

if TYPE_CHECKING:
    from pyproj import Geod

MAX_EDGE_M = 2_000.0
"""Edges longer than this are densified before they are measured; a straight line of 2 km bends by
about 8 cm x tan(latitude) between a projected CRS and the plane on which areas are summed: 4e-5 of its square."""
MAX_COORDINATE = 1e9
"""No coordinate on the Earth is larger, in any unit in use."""


@dataclass(frozen=True, kw_only=True)
class RasterGrid:
    """Georeferencing of a raster: `x, y = transform @ (col, row)` for pixel corners."""

    crs: CRS
    """Coordinate reference system of `transform`'s output."""
    transform: Affine
    """Pixel to CRS, `(col, row) -> (x, y)`; may be south-up, rotated or sheared, never singular."""
    height: int
    """Rows, at least 1."""
    width: int
    """Columns, at least 1."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise SceneError(f"a grid needs at least 1 x 1 px, not {self.height} x {self.width}")
        if self.transform.determinant == 0 or not np.isfinite(self.transform.determinant):
            raise SceneError(f"the transform {tuple(self.transform)[:6]} does not map pixels to an area")
        if not max(map(abs, self.bounds)) < MAX_COORDINATE:
            raise SceneError(f"the transform {tuple(self.transform)[:6]} leads off the Earth")

    @property
    def shape(self) -> tuple[int, int]:
        """`(height, width)`."""
        return self.height, self.width

    @property
    def window(self) -> Window:
        """The window of all pixels."""
        return Window(0, 0, self.width, self.height)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """`(left, bottom, right, top)` in CRS units, also of a rotated or south-up grid."""
        corners = [self.transform @ xy for xy in ((0, 0), (self.width, 0), (0, self.height), (self.width, self.height))]
        xs, ys = zip(*corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    @property
    def is_north_up(self) -> bool:
        """True when rows run along x and downwards, the usual layout."""
        t = self.transform
        return bool(t.b == 0 and t.d == 0 and t.a > 0 and t.e < 0)

    @cached_property
    def resolution_m(self) -> float:
        """Side in metres of a square with the true area of the centre pixel."""
        row, col = self.height // 2, self.width // 2
        corners = [self.transform @ xy for xy in ((col, row), (col + 1, row), (col + 1, row + 1), (col, row + 1))]
        area_m2, _ = measure_on_ground(shapely.polygons([corners]), self.crs)
        return float(np.sqrt(area_m2[0]))

    def part(self, window: Window) -> RasterGrid:
        """The grid of a window: `part(w).transform @ (0, 0) == transform @ (w.col_off, w.row_off)`."""
        shift = Affine.translation(window.col_off, window.row_off)
        return RasterGrid(
            crs=self.crs, transform=self.transform @ shift, height=int(window.height), width=int(window.width)
        )

    def resampled(self, resolution_m: float) -> RasterGrid:
        """The same extent in pixels of about `resolution_m` true metres, at least 1 x 1 px."""
        ratio = resolution_m / self.resolution_m
        height, width = max(1, round(self.height / ratio)), max(1, round(self.width / ratio))
        scale = Affine.scale(self.width / width, self.height / height)
        return RasterGrid(crs=self.crs, transform=self.transform @ scale, height=height, width=width)


def measure_on_ground(
    geometries: Sequence[shapely.Geometry] | NDArray[np.object_], crs: CRS
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True area and perimeter of polygons or multipolygons.

    Vertices go to longitude and latitude. The area is the shoelace formula on the ellipsoid's
    cylindrical equal-area plane (authalic latitude; Snyder 1987, Map Projections, eq. 3-12 and
    10-14); lengths use the metric `ds^2 = (M dphi)^2 + (N cos(phi) dlambda)^2` at edge middles
    (Snyder, eq. 4-18 to 4-20). Long edges are densified first.

    Args:
        geometries: `n` polygons or multipolygons in `crs` coordinates.
        crs: of the coordinates.

    Returns:
        `(area_m2, perimeter_m)`, each float64 of shape `(n,)`, holes subtracted and their edges counted.
    """
    from pyproj import Geod

    geometries = np.asarray(geometries, dtype=object)
    to_geographic = geodetic_transformer(crs)
    rings, owner, sign = _rings_of(geometries)
    rings = _densify(rings, crs)
    coordinates, ring_of_vertex = shapely.get_coordinates(rings, return_index=True)
    if len(coordinates) == 0:
        return np.zeros(len(geometries)), np.zeros(len(geometries))

    lon, lat = to_geographic.transform(coordinates[:, 0], coordinates[:, 1])
    lon, lat = _clamp_to_earth(np.radians(lon), np.radians(lat), ring_of_vertex)
    same_ring = ring_of_vertex[1:] == ring_of_vertex[:-1]
    # Steps of longitude in [-pi, pi), so that the antimeridian is no jump.
    d_lon = np.remainder(np.diff(lon) + np.pi, 2 * np.pi) - np.pi
    d_lon[~same_ring] = 0.0

    geod = to_geographic.target_crs.get_geod() if to_geographic.target_crs is not None else None
    geod = geod or Geod(ellps="WGS84")
    q = _authalic_q(np.sin(lat), geod.es)

    # Trapezoids below each edge, measured from the ring's first vertex, which reduces cancellation.
    first_of_ring = np.searchsorted(ring_of_vertex, np.arange(len(rings)))
    slab = d_lon * ((q[1:] + q[:-1]) / 2 - q[first_of_ring][ring_of_vertex[:-1]])
    length = np.hypot(*_edge_m(lat, d_lon, geod))
    length[~same_ring] = 0.0
    below, turns = (np.bincount(ring_of_vertex[:-1], v, minlength=len(rings)).astype(float) for v in (slab, d_lon))
    ring_area = np.abs(_around_pole(below, turns, q[first_of_ring], geod.es)) * geod.a**2 / 2
    ring_length = np.bincount(ring_of_vertex[:-1], length, minlength=len(rings))

    # Holes have sign -1 in the area, and count in full in the perimeter.
    n = len(geometries)
    area_m2, perimeter_m = (np.zeros(n) for _ in range(2))
    np.add.at(area_m2, owner, sign * ring_area)
    np.add.at(perimeter_m, owner, ring_length)
    return area_m2, perimeter_m


def _densify(rings: NDArray[np.object_], crs: CRS) -> NDArray[np.object_]:
    """Rings without long edges. Not polygons: GEOS repairs those when densified, at worst to nothing."""
    unit_m = 111_320.0 if crs.is_geographic else float(crs.linear_units_factor[1])
    longest = MAX_EDGE_M / unit_m
    bounds = shapely.bounds(rings).reshape(-1, 4)
    large = np.nanmax(bounds[:, 2:] - bounds[:, :2], axis=1, initial=0) > longest
    if not large.any():
        return rings
    rings = rings.copy()
    rings[large] = shapely.segmentize(rings[large], longest)
    return rings


def _rings_of(
    geometries: NDArray[np.object_],
) -> tuple[NDArray[np.object_], NDArray[np.intp], NDArray[np.float64]]:
    """All rings with the index of their geometry and +1 for a shell, -1 for a hole."""
    parts, owner_of_part = shapely.get_parts(geometries, return_index=True)
    rings, part_of_ring = shapely.get_rings(parts, return_index=True)
    is_shell = np.r_[True, part_of_ring[1:] != part_of_ring[:-1]][: len(rings)]
    return rings, owner_of_part[part_of_ring], np.where(is_shell, 1.0, -1.0)


def _clamp_to_earth(
    lon: NDArray[np.float64], lat: NDArray[np.float64], ring_of_vertex: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Replace vertices beyond the horizon of a projection by the last one of their ring that lies on the Earth."""
    found = np.isfinite(lon) & np.isfinite(lat)
    if found.all():
        return lon, lat
    place = np.where(found, np.arange(len(lon)), -1)
    last = np.full(ring_of_vertex[-1] + 1, -1)
    np.maximum.at(last, ring_of_vertex, place)
    start = np.searchsorted(ring_of_vertex, ring_of_vertex)
    before = np.maximum.accumulate(place)
    source = np.where(before >= start, before, last[ring_of_vertex])
    return np.where(source < 0, 0.0, lon[source]), np.where(source < 0, 0.0, lat[source])


def _authalic_q(sin_lat: NDArray[np.float64], es: float) -> NDArray[np.float64]:
    """Snyder 1987, eq. 3-12: `q(phi)`; the area between two latitudes is `a^2/2 * dlambda * dq`."""
    if es == 0:
        return np.asarray(2 * sin_lat)
    e = np.sqrt(es)
    return np.asarray((1 - es) * (sin_lat / (1 - es * sin_lat**2) + np.arctanh(e * sin_lat) / e))


def _around_pole(
    below: NDArray[np.float64], turns: NDArray[np.float64], q0: NDArray[np.float64], es: float
) -> NDArray[np.float64]:
    """Ring areas on the equal-area plane; a ring that goes round (`turns` = 2 pi) bounds the cap of its pole."""
    pole = np.copysign(_authalic_q(np.ones(1), es), q0)
    return np.where(np.abs(turns) > np.pi, (pole - q0) * turns - below, below)


def _edge_m(
    lat: NDArray[np.float64], d_lon: NDArray[np.float64], geod: Geod
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """North and east metres of each edge from the radii of curvature at its middle latitude."""
    middle = (lat[1:] + lat[:-1]) / 2
    w2 = 1 - geod.es * np.sin(middle) ** 2
    meridian, normal = geod.a * (1 - geod.es) / w2**1.5, geod.a / np.sqrt(w2)
    return meridian * np.diff(lat), normal * np.cos(middle) * d_lon
