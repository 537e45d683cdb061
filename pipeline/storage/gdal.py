"""GDAL as we use it: one dataset handle per thread, and a small block cache.

Handles are neither thread-safe nor picklable. Every block is decoded once by design, so GDAL's cache
(5 % of the machine's memory by default) would only hold what nobody asks for again.
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
"""GDAL's block cache for the whole process, unless the operator sets the variable GDAL_CACHEMAX."""


def limit_block_cache() -> None:
    """Keep GDAL's cache small, for good: a rasterio.Env would undo it on leaving, in whichever thread."""
    if "GDAL_CACHEMAX" not in os.environ:
        set_gdal_config("GDAL_CACHEMAX", CACHE_BYTES)


class ThreadHandles:
    """Opens a dataset at most once in each thread that asks, and closes them all together."""

    def __init__(self, open_dataset: Callable[[], DatasetReader]) -> None:
        """`open_dataset` makes a new handle."""
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
        """Close every thread's handle; no thread may be using one."""
        with self._lock:
            for dataset in self._opened:
                dataset.close()
            self._opened.clear()
            self._local = threading.local()


class _Silence:
    """Who is silent at the moment, and what the filters were before."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._inside = 0
        self._filters = warnings.catch_warnings()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """See `suppress_georef_warnings`."""
        with self._turn:
            if not self._inside:
                self._filters = warnings.catch_warnings()
                self._filters.__enter__()
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
            self._inside += 1
        try:
            yield
        finally:
            with self._turn:
                self._inside -= 1
                if not self._inside:
                    self._filters.__exit__(None, None, None)
                    self._turn.notify_all()

    @contextmanager
    def kept_off(self) -> Iterator[None]:
        """See `exclusive_warning_filters`."""
        with self._turn:
            self._turn.wait_for(lambda: not self._inside)
            yield


_SILENCE = _Silence()

suppress_georef_warnings = _SILENCE.shared
"""Context in which rasterio does not warn of rasters without georeferencing; any number of threads may be in it."""
exclusive_warning_filters = _SILENCE.kept_off
"""Context for what changes the filters itself, one thread at a time: nobody is `suppress_georef_warnings` meanwhile."""
