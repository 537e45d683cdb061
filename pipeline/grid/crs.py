"""Coordinate reference systems: parsing, checking, short names."""

from __future__ import annotations

from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import SettingsError


def parse_crs(text: str) -> CRS:
    """Parse the CRS of a setting.

    Raises:
        SettingsError: PROJ does not know it, or it is not tied to the Earth.
    """
    try:
        crs = CRS.from_user_input(text)
    except CRSError as error:
        raise SettingsError(f"crs must be a CRS that PROJ knows, e.g. EPSG:32633, not {text!r}") from error
    if not is_on_earth(crs):
        raise SettingsError(f"crs must be tied to the Earth, e.g. EPSG:32633, not {text!r}")
    return crs


def is_on_earth(crs: CRS | None) -> bool:
    """Whether a CRS is projected or geographic, and not a local one."""
    return crs is not None and bool(crs.is_projected or crs.is_geographic)


def short_crs(crs: CRS | None) -> str:
    """A CRS as text for messages: its code, or the beginning of its definition."""
    if crs is None:
        return "no CRS"
    text = str(crs.to_string())
    return text if len(text) <= 40 else f"{text[:40]}..."
