"""GDAL as we use it: one dataset handle per thread, and a small block cache.

Handles are neither thread-safe nor picklable. Every block is decoded once by design, so GDAL's cache
(5 % of the machine's memory by default) would only hold what nobody asks for again.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from rasterio import DatasetReader
from rasterio.env import set_gdal_config

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
