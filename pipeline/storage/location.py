"""Paths and addresses of rasters, and GDAL's names and options for them.

Only schemes of an allow-list are accepted, so that no catalog can make GDAL open other files:
GDAL's virtual paths (`/vsi...`) and driver prefixes (`NETCDF:...`) are refused.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import rasterio
from rasterio.session import DummySession

from pipeline.errors import DamagedSceneError, SceneError, TransientError
from pipeline.storage.remote import SIDECARS, may_have_sidecars, remote_version
from pipeline.storage.retries import REQUEST_RETRIES
from pipeline.storage.s3 import store_access

_PREFIX_OF_SCHEME = {"s3": "/vsis3/", "https": "/vsicurl/https://", "http": "/vsicurl/http://"}

_REMOTE_OPTIONS = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "120",
    "GDAL_HTTP_MAX_RETRY": f"{len(REQUEST_RETRIES.pauses_s)}",
    "GDAL_HTTP_RETRY_DELAY": f"{REQUEST_RETRIES.pauses_s[0]:g}",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    # No cache of a closed file: it may be replaced, and a worker process runs many scenes.
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/",
    "VSI_CACHE": "TRUE",
    "VSI_CACHE_SIZE": "67108864",
}

_FILE_KINDS = {
    b"II*\0": "a TIFF",
    b"MM\0*": "a TIFF",
    b"II+\0": "a BigTIFF",
    b"MM\0+": "a BigTIFF",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x89PNG": "a PNG picture",
    b"<VRT": "a GDAL virtual raster (VRT)",
    b"\0\0\0\x0cjP": "a JPEG 2000 file",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run git lfs pull",
    b"PK\x03\x04": "a zip archive",
    b"\x89HDF": "an HDF5 file",
    b"<!DOCTYPE": "a web page, perhaps an error page saved under this name",
    b"<html": "a web page, perhaps an error page saved under this name",
}


SIGNATURE_PARAMETERS = {"signature", "sig", "x-amz-signature", "x-goog-signature"}
"""Query parameters that hold the signature of a URL."""
SIGNING_PARAMETERS = SIGNATURE_PARAMETERS | {
    *("awsaccesskeyid", "expires", "policy", "key-pair-id", "googleaccessid"),
    *("sv", "st", "se", "sr", "sp", "spr", "sip", "ss", "srt", "skoid", "sktid", "skt", "ske", "sks", "skv"),
}
"""These and the parameters that accompany a signature of Amazon, Google or Azure."""


@dataclass(frozen=True)
class Location:
    """A raster's path or address as given, and the path for GDAL."""

    text: str
    """As given."""
    gdal_path: str
    """The path that GDAL opens."""
    is_remote: bool = False
    """True = on a server."""

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
    def size_bytes(self) -> int | None:
        """Size of a local file, None when remote."""
        return None if self.is_remote else Path(self.gdal_path).stat().st_size

    @property
    def modified_ns(self) -> int | None:
        """Modification time of a local file, None when remote."""
        return None if self.is_remote else Path(self.gdal_path).stat().st_mtime_ns

    @property
    def is_missing(self) -> bool:
        """True when a local file does not exist."""
        return not self.is_remote and not Path(self.gdal_path).exists()

    def may_have_sidecars(self) -> bool:
        """Whether a remote file may have sidecars that change how it is read; lists the store.

        Raises:
            AccessError: there are no credentials.
        """
        return self.is_remote and _names_a_file(self.text) and may_have_sidecars(self.text)

    def environment(self, *, ignore_sidecars: bool = False) -> rasterio.Env:
        """GDAL options for reading this file; use as a context manager around every GDAL call.

        Args:
            ignore_sidecars: do not look for sidecars of a remote file; a local file is read with them all the same.

        Raises:
            AccessError: there are no credentials.
        """
        if not self.is_remote:
            return rasterio.Env(session=DummySession())
        options = _REMOTE_OPTIONS | _sidecar_options(self.text, ignore_sidecars)
        if not self.gdal_path.startswith(_PREFIX_OF_SCHEME["s3"]):
            return rasterio.Env(session=DummySession(), **options)
        access = store_access()
        return rasterio.Env(session=access.session, **options, **access.options)

    def check_exists(self) -> str | None:
        """Check that the file exists and is readable; returns the version of a remote file, see `remote_version`.

        Raises:
            SceneError: it is missing, a folder or empty, or a local file is not readable.
            TransientError: disk, network or store fail.
        """
        if self.is_remote:
            return remote_version(self.text)
        path = Path(self.gdal_path)
        try:
            size = path.stat().st_size
            path.open("rb").close()
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise SceneError(f"{self}: no such file; check the path") from error
        except IsADirectoryError as error:
            raise SceneError(f"{self}: a folder, not a raster file") from error
        except PermissionError as error:
            raise SceneError(f"{self}: may not be read by this user; check the file's permissions") from error
        except OSError as error:
            raise TransientError(f"{self}: cannot be read: {error.strerror}; check the path and the disk") from error
        if size == 0:
            raise DamagedSceneError(f"{self}: an empty file (0 bytes); fetch it again")
        return None

    def unreadable_error(self, drivers: Sequence[str], errors: list[str]) -> SceneError:
        """The error for a local file that no allowed driver opens."""
        with Path(self.gdal_path).open("rb") as file:
            head = file.read(64).lstrip()
        kind = next((name for signature, name in _FILE_KINDS.items() if head.startswith(signature)), None)
        allowed = ", ".join(drivers)
        if kind in ("a TIFF", "a BigTIFF"):
            return DamagedSceneError(
                f"{self}: {kind} that cannot be opened: {errors[0]}; write or fetch it again{_codec_hint(errors[0])}"
            )
        what = f"is {kind}" if kind else "is not a raster this system knows"
        return SceneError(
            f"{self}: {what}; allowed drivers are {allowed}. If you trust the file, convert it to GeoTIFF "
            "or add its GDAL driver to reading.drivers"
        )


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


def _sidecar_options(address: str, ignore_sidecars: bool) -> dict[str, str]:
    """Restrict GDAL's search to the sidecars that change a scene: a mask and georeferencing, not thirty others."""
    if not _names_a_file(address):
        return {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    suffix = PurePosixPath(urlsplit(address).path).suffix
    return {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR" if ignore_sidecars else "TRUE",
        "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ",".join((suffix, *SIDECARS)),
    }


def _names_a_file(address: str) -> bool:
    """Whether an address ends in a file suffix and has no query, so that sidecar names can be derived from it."""
    parts = urlsplit(address)
    return not parts.query and re.fullmatch(r"\.\w+", PurePosixPath(parts.path).suffix) is not None


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
    """A name that is safe as a folder: letters, digits, dot, dash and underscore; not hidden, at most 200 characters.

    >>> sanitize_name("Banepa (north)"), sanitize_name(".."), sanitize_name("../up")
    ('Banepa_north_', 'scene', '_up')
    """
    return re.sub(r"[^\w.\-]+", "_", text).lstrip(".")[:200] or "scene"


def _codec_hint(error: str) -> str:
    return ", with a codec this build has (e.g. DEFLATE or ZSTD)" if "codec" in error or "compression" in error else ""
