"""Vector files begin as their suffix says, before any library opens them."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import SettingsError

FILE_SIGNATURES = {
    ".gpkg": b"SQLite format 3\0",
    ".geojson": b"{",
    ".parquet": b"PAR1",
    ".geoparquet": b"PAR1",
    ".fgb": b"fgb\x03",
    ".shp": b"\x00\x00\x27\x0a",
}
"""How each kind begins; GDAL goes by content, and might take another file for one that names further files."""


def check_signature(path: Path) -> None:
    """Refuse a file that is not of the kind that its name says.

    Raises:
        SettingsError: its suffix is unknown, or it does not begin like one.
        OSError: it cannot be read.
    """
    suffix = path.suffix.lower()
    wanted = FILE_SIGNATURES.get(suffix)
    if wanted is None:
        raise SettingsError(f"{path}: no kind of vector file that is read; use one of {', '.join(FILE_SIGNATURES)}")
    with path.open("rb") as file:
        head = file.read(64)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip() if suffix == ".geojson" else head
    if not text.startswith(wanted):
        raise SettingsError(f"{path}: does not begin like a {suffix} file; write it again, or rename it")
