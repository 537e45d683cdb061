"""JSON documents of catalogs, read from disk, web servers and object stores with retries, and prefetched by threads."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any

from pipeline.errors import AccessError, MissingError, SceneError, TransientError
from pipeline.storage import (
    REQUEST_RETRIES,
    TRANSIENT_STATUS,
    HttpRequest,
    NotRegularError,
    WebClient,
    check_regular,
    read_body,
    read_chunks,
    resolve_location,
    retry_transient,
)

if TYPE_CHECKING:
    from requests import Response

    from pipeline.catalog.stac.links import DocumentLocation

MAX_DOCUMENT_BYTES = 2**27
"""Maximum size of a document, which is held in memory."""

CHUNK_BYTES = 2**20

Json = dict[str, Any]


class DocumentReader:
    """Reads documents over kept-alive connections; not thread-safe."""

    def __init__(self) -> None:
        self._client = WebClient()

    def read(self, document: DocumentLocation) -> Json:
        """The JSON object at a local path, or an `s3://`, `https://` or `http://` address.

        SceneError: it is missing, too large, no JSON object, or on a host that requests may not reach; TransientError:
        the server failed, after all retries.
        """
        address = document.address
        location = resolve_location(address)
        if not location.is_remote:
            return _parse(address, _read_file(Path(location.gdal_path)))
        if address.lower().startswith("s3:"):
            return _parse(address, _read_object(address))
        return _parse(address, self.request(HttpRequest(address=address, hosts=document.settled().rules.hosts)))

    def request(self, request: HttpRequest) -> bytes:
        """The body of a web server's response; raises what `read` raises."""
        return retry_transient(partial(self._request_once, request), REQUEST_RETRIES)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _request_once(self, request: HttpRequest) -> bytes:
        # The body is streamed, so that `_join` can stop at the size limit.
        with self._client.send(request) as response:
            _check_status(request.address, response)
            return _join(request.address, read_body(response))


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
        check_regular(path)
        with path.open("rb") as file:
            return _join(str(path), iter(lambda: file.read(CHUNK_BYTES), b""))
    except (
        FileNotFoundError,
        NotADirectoryError,
        IsADirectoryError,
        PermissionError,
        NotRegularError,
        ValueError,
    ) as error:
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

    def prefetch(self, documents: Iterable[DocumentLocation]) -> None:
        """Start to read remote documents, in order, up to `MAX_PREFETCHED`."""
        for document in documents:
            if len(self._futures) == MAX_PREFETCHED:
                return
            if document.address not in self._futures and document.root is None:
                self._futures[document.address] = self._pool.submit(self._read, document)

    def read(self, document: DocumentLocation) -> Json:
        """The JSON object at an address, or a local path; raises what `DocumentReader.read` raises."""
        future = self._futures.pop(document.address, None)
        return self._read(document) if future is None else future.result()

    def close(self) -> None:
        """Cancel pending reads."""
        self._pool.shutdown(cancel_futures=True)

    def _read(self, document: DocumentLocation) -> Json:
        # A session is not thread-safe, so each thread has its own reader.
        if not hasattr(self._thread_local, "reader"):
            self._thread_local.reader = DocumentReader()
        reader: DocumentReader = self._thread_local.reader
        return reader.read(document)
