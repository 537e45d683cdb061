"""HTTP and S3 requests about a remote file before it is opened: existence, version and sidecars."""

from __future__ import annotations

import urllib.error
from collections.abc import Mapping
from functools import partial
from http.client import HTTPException
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from pipeline.errors import DamagedSceneError, MissingError, SceneError, TransientError
from pipeline.storage.retries import REQUEST_RETRIES, TRANSIENT_STATUS, retry_transient
from pipeline.storage.s3 import list_keys, split_address, store_access, translate_store_errors

TIMEOUT_S = 30

VERSION_HEADERS = ("ETag", "Last-Modified", "x-amz-version-id")
"""Response headers that change with the file; the version holds these and the size."""
SIDECARS = (".msk", ".aux.xml")
"""Suffixes, after a raster's whole name, of the sidecars that change how it is read: mask and GDAL metadata."""


def remote_version(address: str) -> str | None:
    """The version of a remote file by its response headers, e.g. its ETag; None if the server sends none.

    It requests one byte instead of HEAD, whose errors have no body and which signed URLs do not allow.
    """
    if urlsplit(address).scheme.lower() == "s3":
        return _version(_request_store(address))
    headers = retry_transient(partial(_request_server, address), REQUEST_RETRIES)
    return _version(headers) if headers is not None else None


def may_have_sidecars(address: str) -> bool:
    """Whether a remote file may have `SIDECARS`; False only if a store's listing shows none.

    One request; GDAL would make eight: for each sidecar, and for a folder of its name.
    """
    if urlsplit(address).scheme.lower() != "s3":
        return True
    bucket, key = split_address(address)
    try:
        return any(name.lower().endswith(SIDECARS) for name in list_keys(bucket, f"{key}.", flat=True))
    except TransientError:  # Permission to read does not include permission to list.
        return True


def _request_store(address: str) -> Mapping[str, str]:
    access = store_access()
    bucket, key = split_address(address)
    try:
        with translate_store_errors(address):
            response = access.client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0", **access.payer)
            response["Body"].read()
    except MissingError as error:
        hint = "; a folder ends with a slash" if "." not in key.rpartition("/")[2] else ""
        raise SceneError(f"{error}{hint}") from error
    except TransientError as error:
        if "InvalidRange" in str(error):
            raise DamagedSceneError(f"{address}: an empty file (0 bytes); fetch it again") from error
        raise
    return {name.lower(): text for name, text in response["ResponseMetadata"]["HTTPHeaders"].items()}


def _request_server(address: str) -> Mapping[str, str] | None:
    """The headers of a web server's response; None if it denies access, since GDAL may have credentials of its own."""
    request = Request(address, headers={"Range": "bytes=0-0", "User-Agent": "scenemill"})
    try:
        with _opener().open(request, timeout=TIMEOUT_S) as response:
            return {name.lower(): text for name, text in response.headers.items()}
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (404, 410):
            raise SceneError(f"{address}: nothing is there ({error.code}); check the address") from error
        if error.code == 416:
            raise DamagedSceneError(f"{address}: an empty file (0 bytes); fetch it again") from error
        if error.code not in TRANSIENT_STATUS:
            return None
        raise _unreachable(address, f"the server answers {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _unreachable(address, str(getattr(error, "reason", error))) from error


def _unreachable(address: str, reason: str) -> TransientError:
    return TransientError(f"{address}: cannot be reached: {reason}; check the address and the network, and run again")


def _opener() -> OpenerDirector:
    """An opener that follows redirects to web servers only, never to files or FTP."""
    opener = OpenerDirector()
    for handler in (ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, HTTPRedirectHandler):
        opener.add_handler(handler())
    opener.add_handler(HTTPErrorProcessor())
    return opener


def _version(headers: Mapping[str, str]) -> str | None:
    known = [f"{name}: {headers[name.lower()]}" for name in VERSION_HEADERS if name.lower() in headers]
    size = headers.get("content-range", "").rpartition("/")[2] or headers.get("content-length", "")
    return "; ".join([*known, f"{size} bytes"]) if known else None
