"""HTTP and S3 requests about a remote file before it is opened: existence, version and sidecars."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from pipeline.errors import DamagedSceneError, MissingError, SceneError, TransientError
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


@dataclass(frozen=True, kw_only=True)
class FileStart:
    """The first bytes of a remote file."""

    content: bytes
    size_bytes: int | None
    """Size of the whole file, None if its server does not send it."""


def remote_version(location: Location) -> str | None:
    """The version of a remote file by its response headers, e.g. its ETag; None if the server sends none.

    It requests one byte instead of HEAD, whose errors have no body and which signed URLs do not allow.
    """
    found = _request(location, 1)
    return _version(found[0]) if found is not None else None


def read_start(location: Location, count: int) -> FileStart | None:
    """At most the first `count` bytes; None if the server denies access. Raises what `remote_version` raises."""
    found = _request(location, count)
    if found is None:
        return None
    headers, content = found
    size = _size(headers)
    return FileStart(content=content, size_bytes=int(size) if size.isdigit() else None)


def may_have_sidecars(location: Location) -> bool:
    """Whether a remote file may have `SIDECARS`; False only if a store's listing shows none.

    One request; GDAL would make eight: for each sidecar, and for a folder of its name.
    """
    if not _is_in_store(location):
        return True
    bucket, key = split_address(location.text)
    try:
        return any(name.lower().endswith(SIDECARS) for name in list_keys(bucket, f"{key}.", flat=True))
    except TransientError:  # Permission to read does not include permission to list.
        return True


def _is_in_store(location: Location) -> bool:
    return urlsplit(location.text).scheme.lower() == "s3"


def _request(location: Location, count: int) -> tuple[Mapping[str, str], bytes] | None:
    """Response headers and the first `count` bytes, after retries; None if a server denies access."""
    if _is_in_store(location):
        return _request_store(location, count)
    return retry_transient(partial(_request_server, location, count), REQUEST_RETRIES)


def _request_store(location: Location, count: int) -> tuple[Mapping[str, str], bytes]:
    access = store_access()
    bucket, key = split_address(location.text)
    try:
        with translate_store_errors(location.text):
            response = access.client.get_object(Bucket=bucket, Key=key, Range=f"bytes=0-{count - 1}", **access.payer)
            content: bytes = response["Body"].read()
    except MissingError as error:
        hint = "; a folder ends with a slash" if "." not in key.rpartition("/")[2] else ""
        raise SceneError(f"{error}{hint}") from error
    except TransientError as error:
        if "InvalidRange" in str(error):
            raise DamagedSceneError(f"{location}: an empty file (0 bytes); fetch it again") from error
        raise
    return {name.lower(): text for name, text in response["ResponseMetadata"]["HTTPHeaders"].items()}, content


def _request_server(location: Location, count: int) -> tuple[Mapping[str, str], bytes] | None:
    """As `_request`, once; None if access is denied, since GDAL may have credentials of its own."""
    headers = {"Range": f"bytes=0-{count - 1}", "User-Agent": "scenemill", "Accept-Encoding": "identity"}
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
