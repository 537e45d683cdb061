"""Where a raster lies: a local path or an object-store address, and how GDAL reaches it.

Schemes are an allow-list, so nothing in a catalog can make GDAL read what the operator did not name:
GDAL's own virtual paths (`/vsi...`) and driver prefixes (`NETCDF:...`) are refused.
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
from pipeline.storage.s3 import store_access

_PREFIX_OF_SCHEME = {"s3": "/vsis3/", "https": "/vsicurl/https://", "http": "/vsicurl/http://"}

_REMOTE_OPTIONS = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "120",
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "0.5",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    # Nothing is kept of a file once it is closed: it may be replaced, and a worker lives for many scenes.
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/",
    "VSI_CACHE": "TRUE",
    "VSI_CACHE_SIZE": "67108864",
}

_MAGIC = {
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


SIGNATURES = {"signature", "sig", "x-amz-signature", "x-goog-signature"}
"""Names of parameters that sign a web address."""
SIGNED_WITH = SIGNATURES | {
    *("awsaccesskeyid", "expires", "policy", "key-pair-id", "googleaccessid"),
    *("sv", "st", "se", "sr", "sp", "spr", "sip", "ss", "srt", "skoid", "sktid", "skt", "ske", "sks", "skv"),
}
"""Those that come with a signature of Amazon, Google or Azure."""


@dataclass(frozen=True)
class Location:
    """A raster's address as the user gave it, and GDAL's name for it."""

    text: str
    """What the user wrote."""
    gdal_path: str
    """What GDAL opens."""
    is_remote: bool = False
    """True when a network lies between."""

    def __str__(self) -> str:
        return self.text

    @property
    def stem(self) -> str:
        """The file name without folder and last suffix, made safe as a folder's name; names the scene."""
        path = unquote(urlsplit(self.text).path) if self.is_remote else Path(self.text).name
        return sanitize_name(PurePosixPath(path).stem)

    @property
    def persistent_path(self) -> str:
        """What GDAL opens, without the signature that a web address may bear: the same from day to day."""
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
    def has_vanished(self) -> bool:
        """True when a local file is no longer there."""
        return not self.is_remote and not Path(self.gdal_path).exists()

    def may_have_sidecars(self) -> bool:
        """Whether files may lie beside a remote one that change how it is read; a store is asked for that.

        Raises:
            AccessError: the place needs credentials, and there are none.
        """
        return self.is_remote and _names_a_file(self.text) and may_have_sidecars(self.text)

    def environment(self, *, alone: bool = False) -> rasterio.Env:
        """GDAL's settings for reading from here; use as a context manager around every GDAL call.

        Args:
            alone: nothing beside a remote file is looked for; a local one is read with its sidecars all the same.

        Raises:
            AccessError: the place needs credentials, and there are none.
        """
        if not self.is_remote:
            return rasterio.Env(session=DummySession())
        options = _REMOTE_OPTIONS | _sidecar_options(self.text, alone)
        if not self.gdal_path.startswith(_PREFIX_OF_SCHEME["s3"]):
            return rasterio.Env(session=DummySession(), **options)
        access = store_access()
        return rasterio.Env(session=access.session, **options, **access.options)

    def check_exists(self) -> str | None:
        """Find out whether a file is there that can be read.

        Returns:
            What tells this version of a remote file from any other, where its server says it; see `remote_version`.

        Raises:
            SceneError: it is missing, a folder or empty, or a local one may not be read.
            TransientError: disk, network or store refuse.
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

    def unreadable_error(self, drivers: Sequence[str], faults: list[str]) -> SceneError:
        """The error for a local file that none of the allowed drivers opens."""
        with Path(self.gdal_path).open("rb") as file:
            head = file.read(64).lstrip()
        kind = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
        allowed = ", ".join(drivers)
        if kind in ("a TIFF", "a BigTIFF"):
            return DamagedSceneError(
                f"{self}: {kind} that cannot be opened: {faults[0]}; write or fetch it again{_codec(faults[0])}"
            )
        what = f"is {kind}" if kind else "is not a raster this system knows"
        return SceneError(
            f"{self}: {what}; allowed drivers are {allowed}. If you trust the file, convert it to GeoTIFF "
            "or add its GDAL driver to reading.drivers"
        )


def resolve_location(location: str | Path) -> Location:
    """Turn a path or address into a Location, refusing every scheme but the allowed ones.

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


def _sidecar_options(address: str, alone: bool) -> dict[str, str]:
    """Look for the sidecars that change a scene, a mask and georeferencing, and not for thirty others."""
    if not _names_a_file(address):
        return {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    suffix = PurePosixPath(urlsplit(address).path).suffix
    return {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR" if alone else "TRUE",
        "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ",".join((suffix, *SIDECARS)),
    }


def _names_a_file(address: str) -> bool:
    """Whether the names of a file's sidecars follow from its address: it ends with a suffix, and has no query."""
    parts = urlsplit(address)
    return not parts.query and re.fullmatch(r"\.\w+", PurePosixPath(parts.path).suffix) is not None


def _without_signature(address: str) -> str:
    """An address without what signs it for a while.

    >>> _without_signature("https://a/b.tif?year=2026&X-Amz-Date=20261120&X-Amz-Signature=ab12")
    'https://a/b.tif?year=2026'
    >>> _without_signature("https://a/b.tif?st=4")
    'https://a/b.tif?st=4'
    """
    path, _, query = address.partition("?")
    parts = query.split("&")
    names = [part.partition("=")[0].lower() for part in parts]
    if not SIGNATURES & {*names}:
        return address
    kept = [
        part
        for part, name in zip(parts, names, strict=True)
        if name not in SIGNED_WITH and not name.startswith(("x-amz-", "x-goog-"))
    ]
    return f"{path}?{'&'.join(kept)}" if kept else path


def sanitize_name(text: str) -> str:
    """A name that is safe as a folder: letters, digits, dot, dash and underscore; visible, at most 200 characters.

    >>> sanitize_name("Banepa (north)"), sanitize_name(".."), sanitize_name("../up")
    ('Banepa_north_', 'scene', '_up')
    """
    return re.sub(r"[^\w.\-]+", "_", text).lstrip(".")[:200] or "scene"


def _codec(fault: str) -> str:
    return ", with a codec this build has (e.g. DEFLATE or ZSTD)" if "codec" in fault or "compression" in fault else ""
