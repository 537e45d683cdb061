"""File signatures of vector formats, checked against the suffix before any library opens the file."""

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
"""First bytes by suffix. GDAL goes by content, and could open a file of another format that refers to other files."""


def check_signature(path: Path) -> None:
    """Refuse a file whose first bytes do not match its suffix.

    Raises:
        SettingsError: the suffix is unknown, or the signature is another.
        OSError: the file cannot be read.
    """
    suffix = path.suffix.lower()
    signature = FILE_SIGNATURES.get(suffix)
    if signature is None:
        raise SettingsError(f"{path}: not a supported vector format; use one of {', '.join(FILE_SIGNATURES)}")
    with path.open("rb") as file:
        head = file.read(64)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip() if suffix == ".geojson" else head
    if not text.startswith(signature):
        raise SettingsError(f"{path}: does not begin like a {suffix} file; write it again, or rename it")
