"""Paths and addresses of rasters, and GDAL's paths for them; no I/O.

Only schemes of an allow-list are accepted, so that no catalog can make GDAL open other files:
GDAL's virtual paths (`/vsi...`) and driver prefixes (`NETCDF:...`) are refused.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from pipeline.errors import SceneError
from pipeline.text import is_utf8

_PREFIX_OF_SCHEME = {"s3": "/vsis3/", "https": "/vsicurl/https://", "http": "/vsicurl/http://"}

SIGNATURE_PARAMETERS = {"signature", "sig", "x-amz-signature", "x-goog-signature"}
"""Query parameters that hold the signature of a URL."""
SIGNING_PARAMETERS = SIGNATURE_PARAMETERS | {
    *("awsaccesskeyid", "expires", "policy", "key-pair-id", "googleaccessid"),
    *("sv", "st", "se", "sr", "sp", "spr", "sip", "ss", "srt", "skoid", "sktid", "skt", "ske", "sks", "skv"),
}
"""These and the parameters that accompany a signature of Amazon, Google or Azure."""

MAX_NAME_BYTES = 200
"""File systems take 255 bytes; hidden files and folders next to a result have longer names than it."""
DOCUMENT_SUFFIXES = (".json", ".gpkg", ".parquet")
"""Suffixes of the files that a run writes next to the scenes' folders, in any case."""


@dataclass(frozen=True)
class Location:
    """A raster's path or address as given, and the path for GDAL."""

    text: str
    """As given."""
    gdal_path: str
    is_remote: bool = False

    def __str__(self) -> str:
        return self.text

    @property
    def stem(self) -> str:
        """The file name without folder and last suffix, as a safe folder name; the scene's default id."""
        path = unquote(urlsplit(self.text).path) if self.is_remote else Path(self.text).name
        return sanitize_name(PurePosixPath(path).stem)

    @property
    def persistent_path(self) -> str:
        """The GDAL path without the signature of a signed URL, which changes from day to day."""
        return _without_signature(self.gdal_path) if self.is_remote else self.gdal_path

    @property
    def ends_in_suffix(self) -> bool:
        """Whether an address ends in a file suffix and has no query, so that sidecar names can be derived from it."""
        parts = urlsplit(self.text)
        return not parts.query and re.fullmatch(r"\.\w+", PurePosixPath(parts.path).suffix) is not None


def resolve_location(location: str | Path) -> Location:
    """Parse a path or address; only allowed schemes are accepted.

    Raises:
        SceneError: a scheme or virtual path that is not allowed.
    """
    text = str(location)
    if posixpath.normpath(text).lstrip("/").startswith("vsi") and text.startswith("/"):
        raise SceneError(f"{text}: GDAL's virtual paths are not accepted; give a local path, s3:// or https:// address")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Location(text, str(Path(text).expanduser().absolute()))
    if scheme.lower() not in _PREFIX_OF_SCHEME:
        raise SceneError(f"{text}: the scheme {scheme}:// is not accepted; use a local path, s3:// or https://")
    return Location(text, _PREFIX_OF_SCHEME[scheme.lower()] + rest, is_remote=True)


def check_utf8(path: str | Path) -> None:
    """Refuse a path that GDAL cannot take, with SceneError: each byte that is not UTF-8 is a lone surrogate here."""
    if not is_utf8(str(path)):
        raise SceneError(f"{path}: the name is not UTF-8, which GDAL needs; rename it")


def _without_signature(address: str) -> str:
    """An address without its signing parameters.

    >>> _without_signature("https://a/b.tif?year=2026&X-Amz-Date=20261120&X-Amz-Signature=ab12")
    'https://a/b.tif?year=2026'
    >>> _without_signature("https://a/b.tif?st=4")
    'https://a/b.tif?st=4'
    """
    path, _, query = address.partition("?")
    parts = query.split("&")
    names = [part.partition("=")[0].lower() for part in parts]
    if not SIGNATURE_PARAMETERS & {*names}:
        return address
    kept = [
        part
        for part, name in zip(parts, names, strict=True)
        if name not in SIGNING_PARAMETERS and not name.startswith(("x-amz-", "x-goog-"))
    ]
    return f"{path}?{'&'.join(kept)}" if kept else path


def sanitize_name(text: str) -> str:
    """A name that is safe as a folder of results: letters, digits, dot, dash and underscore; not hidden.

    At most 200 bytes in UTF-8, as a file system counts them. A run writes documents such as `run.json` next to the
    folders, so no name ends like one: its last dot becomes an underscore.

    >>> sanitize_name("Banepa (north)"), sanitize_name(".."), sanitize_name("../up"), sanitize_name("run.json")
    ('Banepa_north_', 'scene', '_up', 'run_json')
    """
    name = re.sub(r"[^\w.\-]+", "_", text).lstrip(".")
    name = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    if name.lower().endswith(DOCUMENT_SUFFIXES):
        name = "_".join(name.rsplit(".", 1))
    return name or "scene"
