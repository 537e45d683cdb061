"""GDAL dataset handles per thread, a small block cache, and thread-safe suppression of NotGeoreferencedWarning.

Handles are neither thread-safe nor picklable. Every block is decoded once by design, so GDAL's cache
(5 % of the machine's memory by default) would only hold blocks that are not read again.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rasterio import DatasetReader
from rasterio.env import set_gdal_config
from rasterio.errors import NotGeoreferencedWarning

CACHE_BYTES = 128 * 2**20
"""GDAL's block cache of the process, unless the environment variable GDAL_CACHEMAX is set."""


def limit_block_cache() -> None:
    """Limit GDAL's cache for the life of the process: a rasterio.Env would reset it on exit, in any thread."""
    if "GDAL_CACHEMAX" not in os.environ:
        set_gdal_config("GDAL_CACHEMAX", CACHE_BYTES)


class ThreadHandles:
    """One dataset handle per thread, opened on first use; `close` closes all of them."""

    def __init__(self, open_dataset: Callable[[], DatasetReader]) -> None:
        limit_block_cache()
        self._open = open_dataset
        self._local = threading.local()
        self._opened: list[DatasetReader] = []
        self._lock = threading.Lock()

    def get(self) -> DatasetReader:
        """This thread's handle."""
        dataset: DatasetReader | None = getattr(self._local, "dataset", None)
        if dataset is None:
            dataset = self._local.dataset = self._open()
            with self._lock:
                self._opened.append(dataset)
        return dataset

    def close(self) -> None:
        """Close every thread's handle; none may be in use."""
        with self._lock:
            for dataset in self._opened:
                dataset.close()
            self._opened.clear()
            self._local = threading.local()


class _GeorefWarningFilter:
    """Warning filters are global: the first thread in installs ours, and the last one out restores them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._active = 0
        self._filters = warnings.catch_warnings()

    @contextmanager
    def suppressed(self) -> Iterator[None]:
        """See `suppress_georef_warnings`."""
        with self._changed:
            if not self._active:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._active += 1
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                if not self._active:
                    self._filters.__exit__(None, None, None)
                    self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """See `exclusive_warning_filters`."""
        with self._changed:
            self._changed.wait_for(lambda: not self._active)
            yield


_FILTER = _GeorefWarningFilter()

suppress_georef_warnings = _FILTER.suppressed
"""Context without rasterio's NotGeoreferencedWarning; any number of threads may enter it."""
exclusive_warning_filters = _FILTER.exclusive
"""Context for code that changes warning filters; one thread at a time, and no `suppress_georef_warnings` with it."""
