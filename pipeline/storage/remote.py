"""What a server says of a remote file before it is opened: that it is there and readable, its version, its sidecars."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Mapping
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
from pipeline.storage.s3 import list_keys, split_address, store_access, translate_store_errors

TIMEOUT_S = 30
PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Before each further try, when the server or the network fails; GDAL waits as long."""
PASSING = (408, 425, 429, 500, 502, 503, 504)
"""Answers that may be others in a moment."""
VERSION_HEADERS = ("ETag", "Last-Modified", "x-amz-version-id")
"""Of the answer's headers, those that change when the file does; with its size."""
SIDECARS = (".msk", ".aux.xml")
"""What lies beside a raster under its whole name and changes how it is read: its mask, and GDAL's notes on it."""


def remote_version(address: str) -> str | None:
    """What tells this version of a remote file from any other, as far as its server says; None where it says nothing.

    One byte is asked for, not a HEAD: the answer to that says more about what is wrong, and signed addresses allow it.

    Raises:
        SceneError: nothing is there, or an empty file.
        AccessError: a store refuses us.
        TransientError: network or server fail.
    """
    if urlsplit(address).scheme.lower() == "s3":
        return _version(_ask_store(address))
    headers = _ask_server(address)
    return _version(headers) if headers is not None else None


def may_have_sidecars(address: str) -> bool:
    """Whether something of `SIDECARS` may lie beside a remote file; False only where a store's listing shows none.

    GDAL would ask for each of them, and once more for a folder of its name: eight requests in place of one.
    """
    if urlsplit(address).scheme.lower() != "s3":
        return True
    bucket, key = split_address(address)
    try:
        return any(name.lower().endswith(SIDECARS) for name in list_keys(bucket, f"{key}.", flat=True))
    except TransientError:  # who may read need not be allowed to list
        return True


def _ask_store(address: str) -> Mapping[str, str]:
    access = store_access()
    bucket, key = split_address(address)
    try:
        with translate_store_errors(address):
            answer = access.client.get_object(Bucket=bucket, Key=key, Range="bytes=0-0", **access.payer)
            answer["Body"].read()
    except MissingError as error:
        hint = "; a folder ends with a slash" if "." not in key.rpartition("/")[2] else ""
        raise SceneError(f"{error}{hint}") from error
    except TransientError as error:
        if "InvalidRange" in str(error):
            raise DamagedSceneError(f"{address}: an empty file (0 bytes); fetch it again") from error
        raise
    return {name.lower(): text for name, text in answer["ResponseMetadata"]["HTTPHeaders"].items()}


def _ask_server(address: str) -> Mapping[str, str] | None:
    """The headers of a web server's answer; None where it refuses, since GDAL may know passwords that we do not."""
    request = Request(address, headers={"Range": "bytes=0-0", "User-Agent": "scenemill"})
    for pause_s in (*PAUSES_S, None):
        try:
            with _opener().open(request, timeout=TIMEOUT_S) as answer:
                return {name.lower(): text for name, text in answer.headers.items()}
        except urllib.error.HTTPError as error:
            fault = f"the server answers {error.code} {error.reason}"
            error.close()
            if error.code in (404, 410):
                raise SceneError(f"{address}: nothing is there ({error.code}); check the address") from error
            if error.code == 416:
                raise DamagedSceneError(f"{address}: an empty file (0 bytes); fetch it again") from error
            if error.code not in PASSING:
                return None
        except (OSError, HTTPException) as error:
            fault = str(getattr(error, "reason", error))
        if pause_s is not None:
            time.sleep(pause_s)
    raise TransientError(f"{address}: cannot be reached: {fault}; check the address and the network, and run again")


def _opener() -> OpenerDirector:
    """What follows redirections to other web servers only, and not to files or FTP."""
    opener = OpenerDirector()
    for handler in (ProxyHandler, HTTPHandler, HTTPSHandler, HTTPDefaultErrorHandler, HTTPRedirectHandler):
        opener.add_handler(handler())
    opener.add_handler(HTTPErrorProcessor())
    return opener


def _version(headers: Mapping[str, str]) -> str | None:
    told = [f"{name}: {headers[name.lower()]}" for name in VERSION_HEADERS if name.lower() in headers]
    size = headers.get("content-range", "").rpartition("/")[2] or headers.get("content-length", "")
    return "; ".join([*told, f"{size} bytes"]) if told else None
