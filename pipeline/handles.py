"""One dataset handle per thread: GDAL handles are neither thread-safe nor picklable."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rasterio import DatasetReader


class ThreadHandles:
    """Opens a dataset at most once in each thread that asks, and closes them all together."""

    def __init__(self, open_dataset: Callable[[], DatasetReader]) -> None:
        """`open_dataset` makes a new handle."""
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
