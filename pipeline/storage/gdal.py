"""GDAL options, dataset handles per thread, and thread-safe suppression of NotGeoreferencedWarning.

Handles are neither thread-safe nor picklable. Every block is decoded once by design, so GDAL's cache
(5 % of the machine's memory by default) would only hold blocks that are not read again.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from urllib.parse import urlsplit

import rasterio
from rasterio import DatasetReader
from rasterio.env import set_gdal_config
from rasterio.errors import NotGeoreferencedWarning
from rasterio.session import DummySession

from pipeline.errors import TransientError
from pipeline.storage.formats.drivers import open_raster
from pipeline.storage.http.relay import gdal_proxy_options
from pipeline.storage.location import Location
from pipeline.storage.remote import SIDECARS
from pipeline.storage.retries import REQUEST_RETRIES
from pipeline.storage.s3 import store_access
from pipeline.storage.truncation import check_whole

_REMOTE_OPTIONS = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_TIMEOUT": "120",
    "GDAL_HTTP_MAX_RETRY": f"{len(REQUEST_RETRIES.pauses_s)}",
    "GDAL_HTTP_RETRY_DELAY": f"{REQUEST_RETRIES.pauses_s[0]:g}",
    "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
    "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    # No cache of a closed file: it may be replaced, and a worker process runs many scenes.
    "CPL_VSIL_CURL_NON_CACHED": "/vsis3/:/vsicurl/",
    "VSI_CACHE": "TRUE",
    "VSI_CACHE_SIZE": "67108864",
}
CACHE_BYTES = 128 * 2**20
"""GDAL's block cache of the process, unless the environment variable GDAL_CACHEMAX is set; see also `SharedHandle`."""


def gdal_env(location: Location, *, sidecars: Iterable[str] = SIDECARS) -> rasterio.Env:
    """GDAL options for reading a file; use as a context manager around every GDAL call.

    Args:
        location: the file.
        sidecars: suffixes of the sidecars that a remote file is read with; a local file is read with all.

    Raises:
        AccessError: there are no credentials.
    """
    if not location.is_remote:
        return rasterio.Env(session=DummySession())
    options = _REMOTE_OPTIONS | _sidecar_options(location, [*sidecars])
    if not location.gdal_path.startswith("/vsis3/"):
        hosts = location.rules.settled(location.text).hosts
        return rasterio.Env(session=DummySession(), **options, **gdal_proxy_options(location.text, hosts))
    access = store_access()
    return rasterio.Env(session=access.session, **options, **access.options)


def _sidecar_options(location: Location, sidecars: Sequence[str]) -> dict[str, str]:
    """Restrict GDAL's search to the sidecars that change a scene: a mask and georeferencing, not thirty others."""
    if not location.ends_in_suffix:
        return {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    suffix = PurePosixPath(urlsplit(location.text).path).suffix
    return {
        "GDAL_DISABLE_READDIR_ON_OPEN": "TRUE" if sidecars else "EMPTY_DIR",
        "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": ",".join((suffix, *sidecars)),
    }


def open_whole(location: Location, driver: str, reader: type[DatasetReader]) -> DatasetReader:
    """As `open_raster`; refuses a TIFF with tags that could not be read, which GDAL would count as absent.

    Raises:
        DamagedSceneError: it is truncated.
        TransientError: disk or network failed in between.
    """
    with _unread_tags() as unread:
        dataset = open_raster(location.gdal_path, driver, reader)
    if unread:
        dataset.close()
        check_whole(location)
        raise TransientError(f"{location}: its header was not read whole: {unread[0]}; check the network or disk")
    return dataset


@contextmanager
def _unread_tags() -> Iterator[list[str]]:
    """Collect GDAL's lines about tags of a TIFF that could not be read and count as absent, instead of logging them."""
    lines, thread, log = list[str](), threading.get_ident(), logging.getLogger("rasterio._env")

    def keep(record: logging.LogRecord) -> bool:
        is_unread = record.thread == thread and "IO error during reading" in record.getMessage()
        if is_unread:
            lines.append(record.getMessage())
        return not is_unread

    log.addFilter(keep)
    try:
        yield lines
    finally:
        log.removeFilter(keep)


def limit_block_cache() -> None:
    """Limit GDAL's cache for the life of the process: a rasterio.Env would reset it on exit, in any thread."""
    _CACHE.reserve(0)


class _BlockCache:
    """The size of GDAL's block cache: `CACHE_BYTES`, and what is reserved for files with large blocks."""

    def __init__(self) -> None:
        self._reserved = 0
        self._lock = threading.Lock()

    def reserve(self, more_bytes: int) -> None:
        """Reserve bytes, or release them where `more_bytes` is below 0."""
        with self._lock:
            self._reserved += more_bytes
            if "GDAL_CACHEMAX" not in os.environ:
                set_gdal_config("GDAL_CACHEMAX", CACHE_BYTES + self._reserved)


_CACHE = _BlockCache()


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

    @contextmanager
    def use(self) -> Iterator[DatasetReader]:
        """Context of this thread's handle."""
        yield self.get()

    def close(self) -> None:
        """Close every thread's handle; none may be in use."""
        with self._lock:
            for dataset in self._opened:
                dataset.close()
            self._opened.clear()
            self._local = threading.local()


class SharedHandle:
    """One dataset handle that one thread uses at a time, for a file whose blocks are too large to be decoded by each.

    GDAL's cache is enlarged until `close`, so that blocks stay decoded while parts of them are read.
    """

    def __init__(self, open_dataset: Callable[[], DatasetReader], cache_bytes: int) -> None:
        self._open, self._cache_bytes = open_dataset, cache_bytes
        self._dataset: DatasetReader | None = None
        self._lock = threading.Lock()
        _CACHE.reserve(cache_bytes)

    @contextmanager
    def use(self) -> Iterator[DatasetReader]:
        """Context of the handle, which is opened on first use; other threads wait."""
        with self._lock:
            if self._dataset is None:
                self._dataset = self._open()
            yield self._dataset

    def close(self) -> None:
        """Close the handle, and release its share of the cache; it may not be in use."""
        with self._lock:
            if self._dataset is not None:
                self._dataset.close()
            self._dataset = None
            _CACHE.reserve(-self._cache_bytes)
            self._cache_bytes = 0


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
