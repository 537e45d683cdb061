"""JSON documents of catalogs, from the disk, a web server or an object store: whole, within a size, tried again."""

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
from pipeline.storage import read_chunks, resolve_location, retry_transient

if TYPE_CHECKING:
    from requests import Response, Session

LARGEST_BYTES = 2**27
"""A document is held in memory; a larger one is refused."""
PATIENCE = (0.5, 1.0, 2.0, 4.0)
"""Seconds until a web server is asked again when it or the network fails; object stores are as `storage.s3` says."""
TIMEOUT_S = (10.0, 60.0)
"""Seconds until a server must have answered a call, and until each further piece must have come."""
BUSY = (408, 425, 429)
"""Answers that mean "later", as those from 500 on do."""
PIECE_BYTES = 2**20

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """What a web server is asked."""

    address: str
    """An `https://` or `http://` address."""
    method: str = "GET"
    """`GET` or `POST`."""
    query: Mapping[str, Any] | None = None
    """What follows the address's own query."""
    headers: Mapping[str, str] | None = None
    """Beside the usual ones."""
    body: Json | None = None
    """JSON that is sent along; None: nothing is."""


class DocumentReader:
    """Reads documents, keeping its connections; for one thread."""

    def __init__(self) -> None:
        self._session: Session | None = None

    def read(self, address: str) -> Json:
        """The JSON object at a local path, or an `s3://`, `https://` or `http://` address.

        Raises:
            SceneError: it is not there, may not be read, is too large, or no JSON object.
            TransientError: disk, network or server failed, also when asked again.
        """
        place = resolve_location(address)
        if not place.is_remote:
            return _parse(address, _read_file(Path(place.gdal_path)))
        if address.lower().startswith("s3:"):
            return _parse(address, _read_object(address))
        return _parse(address, self.ask(HttpRequest(address=address)))

    def ask(self, question: HttpRequest) -> bytes:
        """What a web server answers; raises what `read` raises."""
        return retry_transient(partial(self._ask_once, question), PATIENCE)

    def _ask_once(self, question: HttpRequest) -> bytes:
        from requests import RequestException, Session
        from requests.exceptions import InvalidSchema, InvalidURL

        self._session = self._session or Session()
        address = question.address
        try:
            with self._session.request(
                question.method,
                address,
                params=question.query,
                headers=question.headers,
                json=question.body,
                timeout=TIMEOUT_S,
                stream=True,
            ) as answer:
                _check_status(address, answer)
                return _joined(address, answer.iter_content(PIECE_BYTES))
        except (InvalidURL, InvalidSchema) as error:
            raise SceneError(f"{address}: no address of a web server: {error}; correct it") from error
        except (RequestException, OSError) as error:
            raise TransientError(f"{address}: cannot be fetched: {error}; check the network and run again") from error


def _check_status(address: str, answer: Response) -> None:
    said = f"{address}: the server answers {answer.status_code} {answer.reason}"
    if answer.status_code in BUSY or answer.status_code >= 500:
        raise TransientError(f"{said}; run again when it is well")
    if answer.status_code in (401, 403):
        raise SceneError(f"{said}: it may not be read; check the credentials, e.g. those in .netrc")
    if answer.status_code >= 400:
        raise SceneError(f"{said}; check the address")


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return _joined(str(path), iter(lambda: file.read(PIECE_BYTES), b""))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError) as error:
        raise SceneError(f"{path}: cannot be read: {error}; check the path") from error
    except OSError as error:
        raise TransientError(f"{path}: cannot be read: {error}; check the disk") from error


def _read_object(address: str) -> bytes:
    """An object of a store."""
    try:
        return _joined(address, read_chunks(address, PIECE_BYTES))
    except (MissingError, AccessError) as error:
        raise SceneError(str(error)) from error


def _joined(address: str, pieces: Iterable[bytes]) -> bytes:
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > LARGEST_BYTES:
            raise SceneError(
                f"{address}: over {LARGEST_BYTES // 2**20} MiB of JSON; split it, or write it as stac-geoparquet"
            )
    return bytes(content)


def _parse(address: str, content: bytes) -> Json:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise SceneError(f"{address}: no valid JSON: {error}; fetch or write it again") from error
    if not isinstance(document, dict):
        raise SceneError(f"{address}: holds a JSON {type(document).__name__}, not an object; is it a STAC document?")
    return document


MAX_PREFETCHED = 8
"""Documents that are read at once, or wait to be asked for."""


class DocumentPrefetcher:
    """Reads documents, several at once; for one thread that asks."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MAX_PREFETCHED, "documents")
        self._mine = local()
        self._begun: dict[str, Future[Json]] = {}

    def prefetch(self, addresses: Iterable[str]) -> None:
        """Begin with those that will be asked for next, in this order, as far as there is room."""
        for address in addresses:
            if len(self._begun) == MAX_PREFETCHED:
                return
            if address not in self._begun and "://" in address:
                self._begun[address] = self._pool.submit(self._read, address)

    def read(self, address: str) -> Json:
        """The JSON object at an address, or a local path; raises what `DocumentReader.read` raises."""
        begun = self._begun.pop(address, None)
        return self._read(address) if begun is None else begun.result()

    def close(self) -> None:
        """Give up what nobody asked for."""
        self._pool.shutdown(cancel_futures=True)

    def _read(self, address: str) -> Json:
        if not hasattr(self._mine, "reader"):
            self._mine.reader = DocumentReader()
        reader: DocumentReader = self._mine.reader
        return reader.read(address)
