"""HTTP and S3 requests about a remote file before it is opened: existence, version and sidecars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlsplit

from pipeline.errors import AccessError, DamagedSceneError, MissingError, SceneError, TransientError
from pipeline.storage.http.client import HttpRequest, WebClient, read_body
from pipeline.storage.http.hosts import CONNECT_TIMEOUT_S
from pipeline.storage.location import Location
from pipeline.storage.retries import REQUEST_RETRIES, TRANSIENT_STATUS, retry_transient
from pipeline.storage.s3 import list_keys, split_address, store_access, translate_store_errors

TIMEOUT_S = 30.0

VERSION_HEADERS = ("ETag", "Last-Modified", "x-amz-version-id")
"""Response headers that change with the file; the version holds these and the size."""
SIDECARS = (".msk", ".aux.xml")
"""Suffixes, after a raster's whole name, of the sidecars that change how it is read: mask and GDAL metadata."""
MAX_METADATA_BYTES = 2**24
"""Maximum size of a metadata sidecar, which GDAL reads whole; those of satellites have less than a megabyte."""
_ABSENT = b"absent"
_PAGE_STARTS = (b"<!do", b"<htm")


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """Bytes of a remote file."""

    content: bytes
    size_bytes: int | None
    """Size of the whole file, None if its server does not send it."""


def remote_version(location: Location) -> str | None:
    """The version of a remote file by its response headers, e.g. its ETag; None if the server sends none.

    It requests one byte instead of HEAD, whose errors have no body and which signed URLs do not allow.
    """
    found = _request(location, 0, 1)
    return _version(found[0]) if found is not None else None


def read_range(location: Location, offset: int, count: int) -> FilePart | None:
    """At most `count` bytes from `offset`; None if the server denies access. Raises what `remote_version` raises."""
    found = _request(location, offset, count)
    if found is None:
        return None
    headers, content = found
    size = _size(headers)
    return FilePart(content=content, size_bytes=int(size) if size.isdigit() else None)


def check_metadata_size(shown: str, size_bytes: int) -> None:
    """Raise SceneError if a metadata sidecar is larger than `MAX_METADATA_BYTES`; `shown`: its name for messages."""
    if size_bytes > MAX_METADATA_BYTES:
        raise SceneError(
            f"{shown}: has {size_bytes} bytes, over the {MAX_METADATA_BYTES} of a file with metadata of a raster; "
            "remove it, or write it again"
        )


def remote_sidecars(location: Location) -> dict[str, bytes | None]:
    """Suffixes of the `SIDECARS` that a remote file has, in their own case, and the first four bytes of each.

    A store gets one listing; a server, or a store that denies listings, one request for each name. GDAL would make
    eight. None stands for bytes that this process may not read; GDAL may have credentials of its own.
    """
    names: Iterable[str] = (".msk", ".MSK", ".aux.xml")
    if _is_in_store(location):
        bucket, key = split_address(location.text)
        with suppress(TransientError):  # Permission to read does not include permission to list.
            listed = [name[len(key) :] for name in list_keys(bucket, f"{key}.", flat=True)]
            names = [name for name in listed if name.lower() in SIDECARS]
    starts = {name: _sidecar_start(location, name) for name in names}
    return {name: start for name, start in starts.items() if start is not _ABSENT}


def _sidecar_start(location: Location, suffix: str) -> bytes | None:
    """First bytes of a sidecar, `_ABSENT` where there is none, None where access is denied."""
    try:
        place = replace(location, text=location.text + suffix, gdal_path=location.gdal_path + suffix)
        found = read_range(place, 0, 4)
    except DamagedSceneError:
        return b""
    except SceneError:
        return _ABSENT
    except AccessError:
        return None
    if found is None:
        return None
    if suffix.lower() == ".aux.xml":
        check_metadata_size(str(place), found.size_bytes or 0)
    # Some servers answer with a page for every address.
    return _ABSENT if found.content.lower() in _PAGE_STARTS else found.content


def _is_in_store(location: Location) -> bool:
    return urlsplit(location.text).scheme.lower() == "s3"


def _request(location: Location, offset: int, count: int) -> tuple[Mapping[str, str], bytes] | None:
    """Response headers and `count` bytes from `offset`, after retries; None if a server denies access."""
    if _is_in_store(location):
        return _request_store(location, f"bytes={offset}-{offset + count - 1}")
    return retry_transient(partial(_request_server, location, offset, count), REQUEST_RETRIES)


def _request_store(location: Location, span: str) -> tuple[Mapping[str, str], bytes]:
    access = store_access()
    bucket, key = split_address(location.text)
    try:
        with translate_store_errors(location.text):
            response = access.client.get_object(Bucket=bucket, Key=key, Range=span, **access.payer)
            content: bytes = response["Body"].read()
    except MissingError as error:
        hint = "; a folder ends with a slash" if "." not in key.rpartition("/")[2] else ""
        raise SceneError(f"{error}{hint}") from error
    except TransientError as error:
        if "InvalidRange" in str(error):
            raise DamagedSceneError(f"{location}: an empty file (0 bytes); fetch it again") from error
        raise
    return {name.lower(): text for name, text in response["ResponseMetadata"]["HTTPHeaders"].items()}, content


def _request_server(location: Location, offset: int, count: int) -> tuple[Mapping[str, str], bytes] | None:
    """As `_request`, once; None if access is denied, since GDAL may have credentials of its own."""
    span = f"bytes={offset}-{offset + count - 1}"
    headers = {"Range": span, "User-Agent": "scenemill", "Accept-Encoding": "identity"}
    rules = location.rules.settled(location.text)
    request = HttpRequest(
        address=location.text, hosts=rules.hosts, headers=headers, timeout_s=(CONNECT_TIMEOUT_S, TIMEOUT_S)
    )
    with closing(WebClient()) as client, client.send(request) as response:
        status = response.status_code
        if status in (404, 410):
            raise SceneError(f"{location}: nothing is there ({status}); check the address")
        if status == 416:
            raise DamagedSceneError(f"{location}: an empty file (0 bytes); fetch it again")
        if status in TRANSIENT_STATUS:
            raise TransientError(
                f"{location}: cannot be reached: the server answers {status} {response.reason}; check the address and "
                "the network, and run again"
            )
        if status >= 400:
            return None
        if offset and status != 206:
            raise TransientError(f"{location}: its server does not serve ranges of a file; check the address")
        # A server without ranges would send the whole file.
        content = bytearray()
        for chunk in read_body(response) if count > 1 else ():
            content += chunk
            if len(content) >= count:
                break
        return {name.lower(): text for name, text in response.headers.items()}, bytes(content[:count])


def _version(headers: Mapping[str, str]) -> str | None:
    known = [f"{name}: {headers[name.lower()]}" for name in VERSION_HEADERS if name.lower() in headers]
    return "; ".join([*known, f"{_size(headers)} bytes"]) if known else None


def _size(headers: Mapping[str, str]) -> str:
    return headers.get("content-range", "").rpartition("/")[2] or headers.get("content-length", "")
