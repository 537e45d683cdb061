"""JSON documents of catalogs, read from disk, web servers and object stores with retries, and prefetched by threads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any

from pipeline.errors import AccessError, MissingError, SceneError, TransientError
from pipeline.storage import REQUEST_RETRIES, TRANSIENT_STATUS, read_chunks, resolve_location, retry_transient

if TYPE_CHECKING:
    from requests import Response, Session

MAX_DOCUMENT_BYTES = 2**27
"""Maximum size of a document, which is held in memory."""

TIMEOUT_S = (10.0, 60.0)
"""Timeouts of an HTTP request: to connect, and between two chunks of the response."""

CHUNK_BYTES = 2**20

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """A request to a web server."""

    address: str
    method: str = "GET"
    query: Mapping[str, Any] | None = None
    """Parameters after those of the address."""
    headers: Mapping[str, str] | None = None
    body: Json | None = None
    """JSON body; None: no body."""


class DocumentReader:
    """Reads documents over kept-alive connections; not thread-safe."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def read(self, address: str) -> Json:
        """The JSON object at a local path, or an `s3://`, `https://` or `http://` address.

        SceneError: it is missing, too large, or no JSON object; TransientError: the server failed, after all retries.
        """
        location = resolve_location(address)
        if not location.is_remote:
            return _parse(address, _read_file(Path(location.gdal_path)))
        if address.lower().startswith("s3:"):
            return _parse(address, _read_object(address))
        return _parse(address, self.request(HttpRequest(address=address)))

    def request(self, request: HttpRequest) -> bytes:
        """The body of a web server's response; raises what `read` raises."""
        return retry_transient(partial(self._request_once, request), REQUEST_RETRIES)

    def _request_once(self, request: HttpRequest) -> bytes:
        from requests import RequestException, Session
        from requests.exceptions import InvalidSchema, InvalidURL

        self._session = self._session or Session()
        address = request.address

        # The body is streamed, so that `_join` can stop at the size limit.
        try:
            with self._session.request(
                request.method,
                address,
                params=request.query,
                headers=request.headers,
                json=request.body,
                timeout=TIMEOUT_S,
                stream=True,
            ) as response:
                _check_status(address, response)
                return _join(address, response.iter_content(CHUNK_BYTES))
        except (InvalidURL, InvalidSchema) as error:
            raise SceneError(f"{address}: not an address of a web server: {error}; correct it") from error
        except (RequestException, OSError) as error:
            raise TransientError(f"{address}: cannot be fetched: {error}; check the network and run again") from error


def _check_status(address: str, response: Response) -> None:
    status = response.status_code
    problem = f"{address}: the server answers {status} {response.reason}"
    if status in TRANSIENT_STATUS or status >= 500:
        raise TransientError(f"{problem}; run again later")
    if status in (401, 403):
        raise SceneError(f"{problem}: access denied; check the credentials, e.g. those in .netrc")
    if status >= 400:
        raise SceneError(f"{problem}; check the address")


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _join(str(path), iter(lambda: file.read(CHUNK_BYTES), b""))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError) as error:
        raise SceneError(f"{path}: cannot be read: {error}; check the path") from error
    except OSError as error:
        raise TransientError(f"{path}: cannot be read: {error}; check the disk") from error


def _read_object(address: str) -> bytes:
    try:
        return _join(address, read_chunks(address, CHUNK_BYTES))
    except (MissingError, AccessError) as error:
        raise SceneError(str(error)) from error


def _join(address: str, chunks: Iterable[bytes]) -> bytes:
    content = bytearray()
    for chunk in chunks:
        content += chunk
        if len(content) > MAX_DOCUMENT_BYTES:
            raise SceneError(
                f"{address}: over {MAX_DOCUMENT_BYTES // 2**20} MiB of JSON; split it, or write it as stac-geoparquet"
            )
    return bytes(content)


def _parse(address: str, content: bytes) -> Json:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SceneError(f"{address}: invalid JSON: {error}; fetch or write it again") from error
    if not isinstance(document, dict):
        raise SceneError(f"{address}: holds a JSON {type(document).__name__}, not an object; is it a STAC document?")
    return document


MAX_PREFETCHED = 8
"""Maximum documents in prefetch, running or finished."""


class DocumentPrefetcher:
    """Reads documents ahead in worker threads; its methods are for one thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MAX_PREFETCHED, "documents")
        self._thread_local = local()
        self._futures: dict[str, Future[Json]] = {}

    def prefetch(self, addresses: Iterable[str]) -> None:
        """Start to read remote documents, in order, up to `MAX_PREFETCHED`."""
        for address in addresses:
            if len(self._futures) == MAX_PREFETCHED:
                return
            if address not in self._futures and "://" in address:
                self._futures[address] = self._pool.submit(self._read, address)

    def read(self, address: str) -> Json:
        """The JSON object at an address, or a local path; raises what `DocumentReader.read` raises."""
        future = self._futures.pop(address, None)
        return self._read(address) if future is None else future.result()

    def close(self) -> None:
        """Cancel pending reads."""
        self._pool.shutdown(cancel_futures=True)

    def _read(self, address: str) -> Json:
        # A session is not thread-safe, so each thread has its own reader.
        if not hasattr(self._thread_local, "reader"):
            self._thread_local.reader = DocumentReader()
        reader: DocumentReader = self._thread_local.reader
        return reader.read(address)
