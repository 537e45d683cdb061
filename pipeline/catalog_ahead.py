"""Documents of servers and stores that are read before they are asked for.

A static catalog is one small file after another, and each answer takes its while.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import local

from pipeline.catalog_documents import DocumentReader, Json

MOST = 8
"""Documents that are read at once, or wait to be asked for."""


class DocumentsAhead:
    """Reads documents, several at once; for one thread that asks."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(MOST, "documents")
        self._mine = local()
        self._begun: dict[str, Future[Json]] = {}

    def expect(self, addresses: Iterable[str]) -> None:
        """Begin with those that will be asked for next, in this order, as far as there is room."""
        for address in addresses:
            if len(self._begun) == MOST:
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
