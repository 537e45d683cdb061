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
from pipeline.storage.http.hosts import NAMED_BY_OPERATOR, HostRules
from pipeline.text import is_utf8, without_secrets, without_signature

_PREFIX_OF_SCHEME = {"s3": "/vsis3/", "https": "/vsicurl/https://", "http": "/vsicurl/http://"}
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
"""Names of buckets; with other characters a name could change the host of the request."""

MAX_NAME_BYTES = 200
"""File systems take 255 bytes; hidden files and folders next to a result have longer names than it."""
DOCUMENT_SUFFIXES = (".json", ".gpkg", ".parquet")
"""Suffixes of the files that a run writes next to the scenes' folders, in any case."""


@dataclass(frozen=True)
class Location:
    """A raster's path or address as given, and the path for GDAL; as text without secrets, see `without_secrets`."""

    text: str
    """As given, for opening only."""
    gdal_path: str
    is_remote: bool = False
    rules: HostRules = NAMED_BY_OPERATOR
    """The hosts that requests for it may reach."""

    def __str__(self) -> str:
        return without_secrets(self.text) if self.is_remote else self.text

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    @property
    def stem(self) -> str:
        """The file name without folder and last suffix, as a safe folder name; the scene's default id."""
        path = unquote(urlsplit(self.text).path) if self.is_remote else Path(self.text).name
        return sanitize_name(PurePosixPath(path).stem)

    @property
    def persistent_path(self) -> str:
        """The GDAL path without the signature of a signed URL, which changes from day to day."""
        return without_signature(self.gdal_path) if self.is_remote else self.gdal_path

    @property
    def ends_in_suffix(self) -> bool:
        """Whether an address ends in a file suffix and has no query, so that sidecar names can be derived from it."""
        parts = urlsplit(self.text)
        return not parts.query and re.fullmatch(r"\.\w+", PurePosixPath(parts.path).suffix) is not None


def resolve_location(location: str | Path, rules: HostRules | None = None) -> Location:
    """Parse a path or address; only allowed schemes are accepted.

    Args:
        location: a path, or an `s3://`, `https://` or `http://` address.
        rules: the hosts that requests for it may reach; None: those of an address that the operator named.

    Raises:
        SceneError: a scheme, virtual path, bucket or form of address that is not allowed.
    """
    text = str(location)
    if posixpath.normpath(text).lstrip("/").startswith("vsi") and text.startswith("/"):
        raise SceneError(f"{text}: GDAL's virtual paths are not accepted; give a local path, s3:// or https:// address")
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Location(text, str(Path(text).expanduser().absolute()))
    if scheme.lower() not in _PREFIX_OF_SCHEME:
        raise SceneError(f"{text}: the scheme {scheme}:// is not accepted; use a local path, s3:// or https://")
    host = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    if "@" in host:
        # Messages are redacted, but a password may hold what ends an address in a text, such as a quotation mark.
        shown = f"{scheme}://{host.rpartition('@')[2]}{rest[len(host) :]}"
        raise SceneError(f"{shown}: holds a user name or password, which logs would show; write them into .netrc")
    if scheme.lower() == "s3" and not _BUCKET.fullmatch(host):
        raise SceneError(f"{text}: {host!r} is not the name of a bucket; correct the address")
    if not host or not text.isprintable():
        raise SceneError(f"{text!r}: not an address: it has no host, or holds a line break; correct it")
    return Location(text, _PREFIX_OF_SCHEME[scheme.lower()] + rest, is_remote=True, rules=rules or NAMED_BY_OPERATOR)


def check_utf8(path: str | Path) -> None:
    """Refuse a path that GDAL cannot take, with SceneError: each byte that is not UTF-8 is a lone surrogate here."""
    if not is_utf8(str(path)):
        raise SceneError(f"{path}: the name is not UTF-8, which GDAL needs; rename it")


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
