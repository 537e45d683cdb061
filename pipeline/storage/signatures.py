"""File signatures: vector files are checked before any library opens them, and raster files that GDAL cannot open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import DamagedSceneError, SceneError, ScenemillError, SettingsError, TransientError
from pipeline.storage.files import check_regular
from pipeline.storage.http.relay import FORBIDDEN_STATUS
from pipeline.storage.location import Location
from pipeline.storage.remote import read_range

FILE_SIGNATURES = {
    ".gpkg": b"SQLite format 3\0",
    ".geojson": b"{",
    ".json": b"{",
    ".parquet": b"PAR1",
    ".geoparquet": b"PAR1",
    ".fgb": b"fgb\x03",
    ".shp": b"\x00\x00\x27\x0a",
}
"""First bytes by suffix. GDAL goes by content, and could open a file of another format that refers to other files."""

_NETWORK_ERRORS = ("HTTP response code", "CURL error", "does not exist in the file system", "Range downloading")
"""Parts of GDAL's errors for a file whose bytes it could not get."""
_REFUSED_BY_PROXY = f"response code: {FORBIDDEN_STATUS}"

_RASTER_SIGNATURES = {
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


def check_signature(path: Path) -> None:
    """Refuse a file whose first bytes do not match its suffix.

    Raises:
        SettingsError: the suffix is unknown, or the signature is another.
        OSError: the file cannot be read, or is a pipe, socket or device.
    """
    suffix = path.suffix.lower()
    signature = FILE_SIGNATURES.get(suffix)
    if signature is None:
        raise SettingsError(f"{path}: not a supported vector format; use one of {', '.join(FILE_SIGNATURES)}")
    check_regular(path)
    with path.open("rb") as file:
        head = file.read(64)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip() if signature == b"{" else head
    if not text.startswith(signature):
        raise SettingsError(f"{path}: does not begin like a {suffix} file; write it again, or rename it")


def unreadable_error(location: Location, drivers: Sequence[str], errors: Sequence[str]) -> ScenemillError:
    """The error for a raster that none of the allowed drivers opens, with GDAL's error of each.

    Of a remote file the first bytes are requested: if they arrive, and GDAL reports no fault of the network, the file
    is to blame.
    """
    if location.is_remote:
        if _REFUSED_BY_PROXY in errors[0]:
            return redirect_error(location)
        start = read_range(location, 0, 64)
        if start is None or any(text in errors[0] for text in _NETWORK_ERRORS):
            return TransientError(
                f"{location}: cannot be opened: {errors[0]}; check the address, credentials and network"
            )
        head = start.content
    else:
        with Path(location.gdal_path).open("rb") as file:
            head = file.read(64)
    kind = next((name for signature, name in _RASTER_SIGNATURES.items() if head.lstrip().startswith(signature)), None)
    if kind in ("a TIFF", "a BigTIFF"):
        is_codec = "codec" in errors[0] or "compression" in errors[0]
        hint = ", with a codec this build has (e.g. DEFLATE or ZSTD)" if is_codec else ""
        return DamagedSceneError(
            f"{location}: {kind} that cannot be opened: {errors[0]}; write or fetch it again{hint}"
        )
    problem = f"is {kind}" if kind else "is not a raster this system knows"
    return SceneError(
        f"{location}: {problem}; allowed drivers are {', '.join(drivers)}. If you trust the file, convert it to "
        "GeoTIFF or add its GDAL driver to reading.drivers"
    )


def redirect_error(location: Location) -> SceneError:
    """The error for a scene whose server redirects GDAL's requests to where they may not go."""
    return SceneError(
        f"{location}: its server redirects to a host that is not public, or to another protocol than http; if it is "
        "right, allow the host with catalog.hosts"
    )


def is_refused(error: BaseException) -> bool:
    """Whether a request of GDAL was refused by the policy of hosts."""
    return any(_REFUSED_BY_PROXY in text for text in _messages(error))


def is_undecodable(error: BaseException) -> bool:
    """Whether the bytes of a block arrived and could not be decoded; otherwise GDAL reports a read error."""
    messages = _messages(error)
    return any("IReadBlock failed" in text for text in messages) and not any("Read error" in text for text in messages)


def _messages(error: BaseException) -> list[str]:
    """The message of an error, and those of its causes."""
    messages = []
    cause: BaseException | None = error
    while cause is not None:
        messages.append(str(cause))
        cause = cause.__cause__
    return messages
