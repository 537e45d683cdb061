"""Coordinate reference systems: parsing, checking, short names."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import SceneError, SettingsError

if TYPE_CHECKING:
    from pyproj import Transformer

EARTH_RADIUS_M = (6.3e6, 6.45e6)
"""Range of the equatorial radii of ellipsoids and spheres in use for the Earth; that of Venus is 6.05e6 m."""


def parse_crs(text: str) -> CRS:
    """Parse the CRS of a setting.

    Raises:
        SettingsError: PROJ does not know it, or it is not tied to the Earth.
    """
    try:
        crs = CRS.from_user_input(text)
    except CRSError as error:
        raise SettingsError(f"crs must be a CRS that PROJ knows, e.g. EPSG:32633, not {text!r}") from error
    try:
        is_usable = is_on_earth(crs) and foreign_body(crs) is None
    except SceneError as error:
        raise SettingsError(f"crs must be a CRS that PROJ knows, e.g. EPSG:32633, not {text!r}: {error}") from error
    if not is_usable:
        raise SettingsError(f"crs must be tied to the Earth, e.g. EPSG:32633, not {text!r}")
    return crs


def is_on_earth(crs: CRS | None) -> bool:
    """Whether a CRS is projected or geographic, and not a local one."""
    return crs is not None and bool(crs.is_projected or crs.is_geographic)


def foreign_body(crs: CRS) -> str | None:
    """Name and radius of the body that a CRS describes if it is not the Earth, from its ellipsoid; else None.

    Raises:
        SceneError: PROJ does not understand the CRS.
    """
    found = _ellipsoid(crs.to_wkt())
    if found is None or EARTH_RADIUS_M[0] < found[1] < EARTH_RADIUS_M[1]:
        return None
    return f"the ellipsoid {found[0]!r} with a radius of {found[1] / 1000:,.6g} km"


def geodetic_transformer(crs: CRS) -> Transformer:
    """The transformation of `x, y` in a CRS to longitudes and latitudes of its own datum, in degrees.

    Raises:
        SceneError: PROJ does not understand the CRS, or it is not tied to the Earth.
    """
    return _geodetic_transformer(crs.to_wkt())


@lru_cache(maxsize=16)
def _ellipsoid(wkt: str) -> tuple[str, float] | None:
    """Name and equatorial radius in metres."""
    from pyproj import CRS as ProjCRS
    from pyproj.exceptions import ProjError

    try:
        ellipsoid = ProjCRS.from_user_input(wkt).ellipsoid
    except ProjError as error:
        raise SceneError(_not_understood(error)) from error
    return None if ellipsoid is None else (ellipsoid.name, ellipsoid.semi_major_metre)


@lru_cache(maxsize=16)
def _geodetic_transformer(wkt: str) -> Transformer:
    from pyproj import CRS as ProjCRS
    from pyproj import Transformer
    from pyproj.exceptions import ProjError

    try:
        source = ProjCRS.from_user_input(wkt)
        geodetic = source.geodetic_crs
        if geodetic is None:
            raise SceneError(
                f"the CRS {source.name!r} is not tied to the Earth, so areas cannot be measured; "
                "give the true CRS with --crs"
            )
        return Transformer.from_crs(source, ProjCRS.from_user_input(geodetic.to_2d()), always_xy=True)
    except ProjError as error:
        raise SceneError(_not_understood(error)) from error


def _not_understood(error: Exception) -> str:
    return f"PROJ does not understand the CRS: {' '.join(str(error).split())}"


def short_crs(crs: CRS | None) -> str:
    """A CRS as text for messages: its code, or the beginning of its definition."""
    if crs is None:
        return "no CRS"
    text = str(crs.to_string())
    return text if len(text) <= 40 else f"{text[:40]}..."
