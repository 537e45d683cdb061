"""S3 and compatible object stores: one endpoint and one set of credentials for boto3 and GDAL, and error translation.

boto3 resolves the usual variables, profiles and roles (`AWS_ACCESS_KEY_ID`, `AWS_PROFILE`, `AWS_ENDPOINT_URL` ...), and
GDAL is given the result. GDAL's own endpoint variables apply where boto3's are not set.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from rasterio.session import AWSSession

from pipeline.errors import AccessError, ConflictError, MissingError, SettingsError, TransientError
from pipeline.storage.retries import REQUEST_RETRIES

CONNECT_TIMEOUT_S, READ_TIMEOUT_S = 10, 60

CONNECTIONS = 32

_MISSING = ("NoSuchKey", "NoSuchBucket", "NoSuchUpload", "404", "NotFound")
_CONFLICT = ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")
_CREDENTIAL_ERRORS = ("Credential", "Token", "SSO", "Profile")
"""Parts of the names of botocore's errors for missing or unusable credentials."""


@dataclass(frozen=True, kw_only=True)
class StoreAccess:
    """Endpoint and credentials of object stores in this process."""

    endpoint: str
    client: Any
    """boto3's client; thread-safe."""
    session: AWSSession
    """The same credentials for GDAL, renewed as boto3 renews them."""
    options: Mapping[str, str]
    """GDAL's options for the endpoint."""
    payer: Mapping[str, str]
    """Arguments of reading requests where the reader pays, by `AWS_REQUEST_PAYER=requester`."""


def store_access() -> StoreAccess:
    """Endpoint and credentials from the current environment; cached until it changes.

    Raises:
        AccessError: there are no credentials.
        SettingsError: the endpoint is not a URL.
    """
    return _access(tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))))


def split_address(address: str) -> tuple[str, str]:
    """Bucket and key, or prefix, of an `s3://` address.

    >>> split_address("s3://bucket/a/b.tif")
    ('bucket', 'a/b.tif')
    """
    bucket, _, key = address.partition("://")[2].partition("/")
    return bucket, key


def list_keys(bucket: str, prefix: str, *, flat: bool) -> Iterator[str]:
    """Yield the keys that begin with a prefix, in order, page by page; raises what `translate_store_errors` does.

    Flat: without keys that have a further slash.
    """
    access, more = store_access(), {"Delimiter": "/"} if flat else {}
    with translate_store_errors(f"s3://{bucket}/{prefix}"):
        pages = access.client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=prefix, **more, **access.payer):
            yield from (str(each["Key"]) for each in page.get("Contents", ()))


def read_chunks(address: str, chunk_bytes: int) -> Iterator[bytes]:
    """Yield an object in chunks of `chunk_bytes`, the last one shorter; raises what `translate_store_errors` does."""
    access, (bucket, key) = store_access(), split_address(address)
    with translate_store_errors(address):
        answer = access.client.get_object(Bucket=bucket, Key=key, **access.payer)
        with closing(answer["Body"]) as body:
            yield from body.iter_chunks(chunk_bytes)


@contextmanager
def translate_store_errors(address: str) -> Iterator[None]:
    """Raise errors of boto3 as MissingError, AccessError, ConflictError (a condition fails) or TransientError."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        raise _error_of(address, error.response) from error
    except (BotoCoreError, Boto3Error) as error:
        if any(word in type(error).__name__ for word in _CREDENTIAL_ERRORS):
            raise _no_credentials(address, error) from error
        raise TransientError(f"{address}: {error}; check the network and AWS_ENDPOINT_URL, and run again") from error


def _error_of(address: str, response: Mapping[str, Any]) -> TransientError:
    error, status = response.get("Error", {}), response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    code, text = str(error.get("Code", status)), str(error.get("Message", "")).rstrip(".")
    if code in _MISSING or status == 404:
        what = f"there is no bucket {split_address(address)[0]}" if code == "NoSuchBucket" else "nothing is there"
        return MissingError(f"{address}: {what}; check the address, and AWS_ENDPOINT_URL if it is not Amazon's")
    if status in (401, 403):
        return AccessError(
            f"{address}: the store refuses ({code}: {text}); check the credentials (AWS_PROFILE or AWS_ACCESS_KEY_ID) "
            "and their permissions. Some stores answer so for missing objects, too"
        )
    if code in _CONFLICT or status in (409, 412):
        return ConflictError(f"{address}: changed by another process at the same time ({code}: {text}); run again")
    return TransientError(f"{address}: the store failed ({code}: {text}); run again")


def _no_credentials(address: str, error: Exception) -> AccessError:
    return AccessError(
        f"{address}: no usable credentials: {error}; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
        "or AWS_NO_SIGN_REQUEST=YES for public data"
    )


@lru_cache(maxsize=4)
def _access(variables: tuple[tuple[str, str], ...]) -> StoreAccess:
    import boto3
    from botocore import UNSIGNED
    from botocore.config import Config

    given = dict(variables)
    unsigned = _is_yes(given.get("AWS_NO_SIGN_REQUEST", ""))
    endpoint, style = _endpoint_for_gdal(given)

    # The client: a number of attempts in the environment takes precedence over ours.
    retries = {"mode": "standard", "total_max_attempts": REQUEST_RETRIES.attempts}
    config = Config(
        connect_timeout=CONNECT_TIMEOUT_S,
        read_timeout=READ_TIMEOUT_S,
        retries=None if "AWS_MAX_ATTEMPTS" in given else retries,
        max_pool_connections=CONNECTIONS,
        signature_version=UNSIGNED if unsigned else None,
        s3=style,
    )

    # Missing credentials are reported here, not by the first request of some later stage.
    with translate_store_errors("s3://"):
        session = boto3.Session()
        try:
            client = session.client("s3", endpoint_url=endpoint, config=config)
        except ValueError as error:
            raise SettingsError(
                f"the endpoint of the object store is not a URL: {error}; correct AWS_ENDPOINT_URL"
            ) from error
        if not unsigned and session.get_credentials() is None:
            raise _no_credentials("s3://", LookupError("none were found"))

    pays = given.get("AWS_REQUEST_PAYER") == "requester"
    return StoreAccess(
        endpoint=client.meta.endpoint_url,
        client=client,
        session=AWSSession(session, aws_unsigned=unsigned, requester_pays=pays),
        options=_gdal_options(client),
        payer={"RequestPayer": "requester"} if pays else {},
    )


def _endpoint_for_gdal(given: Mapping[str, str]) -> tuple[str | None, dict[str, str] | None]:
    """Endpoint and addressing style from GDAL's variables, where boto3's are not set."""
    host = given.get("AWS_S3_ENDPOINT")
    if host is None or {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"} & given.keys():
        return None, None
    scheme = "https" if _is_yes(given.get("AWS_HTTPS", "YES")) else "http"
    virtual = _is_yes(given.get("AWS_VIRTUAL_HOSTING", "YES"))
    url = host if "://" in host else f"{scheme}://{host}"
    return url, {"addressing_style": "virtual" if virtual else "path"}


def _gdal_options(client: Any) -> dict[str, str]:
    """GDAL options for boto3's endpoint; none for Amazon's own."""
    url = urlsplit(client.meta.endpoint_url)
    if url.hostname is None or url.hostname.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return {}
    style = (client.meta.config.s3 or {}).get("addressing_style")
    return {
        "AWS_S3_ENDPOINT": url.netloc + url.path.rstrip("/"),
        "AWS_HTTPS": "YES" if url.scheme == "https" else "NO",
        "AWS_VIRTUAL_HOSTING": "TRUE" if style == "virtual" else "FALSE",
    }


def _is_yes(text: str) -> bool:
    return text.upper() in ("YES", "TRUE", "ON", "1")
