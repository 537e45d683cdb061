"""Window reader of a scene: pixels and validity, from one file or several on one grid."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.scene.file import Pixels, SceneFile, read_stored, reopen_file, translate_read_errors
from pipeline.scene.resample import Taps, plan_nested, plan_taps, resample, resample_plane
from pipeline.scene.validity import NodataWhen, combine_finite, combine_present
from pipeline.storage import SIDECARS, SharedHandle, ThreadHandles, gdal_env

if TYPE_CHECKING:
    from pipeline.scene.alignment import Layer
    from pipeline.scene.describe import Scene

MAX_RESAMPLED_PIXELS = 2**22
"""Largest number of stored pixels in memory while a window is resampled."""


class SceneReader:
    """Reads windows of one scene; safe to use from many threads, each with its own handles."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._layers = [_LayerReader(layer, scene) for layer in scene.layers]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every thread's handles; no thread may be reading."""
        for layer in self._layers:
            layer.close()

    def read(self, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and validity of a window that lies inside the scene's grid.

        Returns:
            `(bands, height, width)` in the stored dtype, and `(height, width)` bool, True = real data.

        Raises:
            DamagedSceneError: the bytes of a file cannot be decoded.
            TransientError: a remote read failed.
        """
        parts = [layer.read(window) for layer in self._layers]
        if len(parts) == 1:
            return parts[0].bands, parts[0].valid
        whole = _stack(parts, [layer.planes for layer in self.scene.layers], self.scene.nodata_when)
        return whole.bands, whole.valid


class _LayerReader:
    """Reads the files of a scene that have the same grid, as if they were one file."""

    def __init__(self, layer: Layer, scene: Scene) -> None:
        self._layer, self._dtype, self._when = layer, scene.dtype, scene.nodata_when
        self._alone = len(scene.layers) == 1
        self._handles = [_handles_of(file) for file in layer.files]

    def close(self) -> None:
        for handles in self._handles:
            handles.close()

    def read(self, window: Window) -> Pixels:
        """A window of the scene's grid."""
        axes = self._layer.rows, self._layer.cols
        if all(axis.is_identity for axis in axes):
            return self._read_stored(window)
        nested = all(axis.is_nested for axis in axes)
        rows, cols = (
            (plan_nested if nested else plan_taps)(axis, start, start + length)
            for axis, start, length in zip(
                axes, (window.row_off, window.col_off), (window.height, window.width), strict=True
            )
        )
        (top, bottom), (left, right) = rows.span, cols.span
        if (bottom - top) * (right - left) > MAX_RESAMPLED_PIXELS and window.height * window.width > 1:
            return self._read_halves(window)
        if top == bottom or left == right:
            return self._empty(window)
        stored = self._read_stored(Window(left, top, right - left, bottom - top))
        return _nearest(stored, rows, cols) if nested else self._average(stored, rows, cols)

    def _read_stored(self, window: Window) -> Pixels:
        """A window of the files themselves."""
        parts = [
            self._read_file(file, handles, window)
            for file, handles in zip(self._layer.files, self._handles, strict=True)
        ]
        return parts[0] if len(parts) == 1 else _stack(parts, self._layer.planes_of_files, self._when)

    def _read_file(self, file: SceneFile, handles: ThreadHandles | SharedHandle, window: Window) -> Pixels:
        # Of all sidecars, only a mask is read with the pixels.
        environment = gdal_env(file.location, sidecars=() if file.mask == "none" else SIDECARS)
        with translate_read_errors(file, window), environment, handles.use() as dataset:
            # All bands of one row of large blocks come before the next row, since only one stays decoded.
            parts = [
                read_stored(dataset, file, part, dtype=self._dtype, when=self._when)
                for part in (_block_rows(file, window) if file.resident_bytes else [window])
            ]
        return parts[0] if len(parts) == 1 else _concatenate(parts, 0)

    def _read_halves(self, window: Window) -> Pixels:
        """Read a window in two parts, so that memory does not follow the ratio of resolutions."""
        if window.height > 1:
            half, axis = window.height // 2, 0
            parts = (
                Window(window.col_off, window.row_off, window.width, half),
                Window(window.col_off, window.row_off + half, window.width, window.height - half),
            )
        else:
            half, axis = window.width // 2, 1
            parts = (
                Window(window.col_off, window.row_off, half, 1),
                Window(window.col_off + half, window.row_off, window.width - half, 1),
            )
        return _concatenate([self.read(part) for part in parts], axis)

    def _average(self, stored: Pixels, rows: Taps, cols: Taps) -> Pixels:
        """Means of valid pixels; in a scene of several grids, each band holds its nodata value where it has no mean."""
        bands, enough = resample(stored.bands, stored.valid, rows, cols)
        if self._alone:
            return Pixels(bands=bands, present=enough, finite=None)
        for band, value in zip(bands, self._layer.nodata, strict=True):
            band[~enough] = 0 if value is None else _as_stored(value, band.dtype)
        finite = np.ones(stored.present.shape, bool) if stored.finite is None else stored.finite
        return Pixels(bands=bands, present=enough, finite=resample_plane(finite, rows, cols))

    def _empty(self, window: Window) -> Pixels:
        """A window outside the files."""
        shape = int(window.height), int(window.width)
        nowhere = np.zeros(shape, bool)
        return Pixels(bands=np.zeros((len(self._layer.planes), *shape), self._dtype), present=nowhere, finite=nowhere)


def _handles_of(file: SceneFile) -> ThreadHandles | SharedHandle:
    """A handle for each thread, or one for all where each would decode the same large blocks."""
    reopen = partial(reopen_file, file)
    return SharedHandle(reopen, file.resident_bytes) if file.resident_bytes else ThreadHandles(reopen)


def _block_rows(file: SceneFile, window: Window) -> list[Window]:
    """The parts of a window in each row of storage blocks."""
    height, first, last = file.block_shape[0], int(window.row_off), int(window.row_off + window.height)
    edges = [first, *range(first - first % height + height, last, height), last]
    return [Window(window.col_off, top, window.width, bottom - top) for top, bottom in pairwise(edges)]


def _stack(parts: Sequence[Pixels], planes: Sequence[Sequence[int]], when: NodataWhen) -> Pixels:
    """Combine the bands of parts at the indices `planes`; a pixel is finite where it is in all parts."""
    first = parts[0].bands
    bands = np.empty((sum(map(len, planes)), *first.shape[1:]), first.dtype)
    for part, places in zip(parts, planes, strict=True):
        for place, band in zip(places, part.bands, strict=True):
            bands[place] = band
    return Pixels(
        bands=bands,
        present=combine_present([part.present for part in parts], when),
        finite=combine_finite([part.finite for part in parts]),
    )


def _nearest(stored: Pixels, rows: Taps, cols: Taps) -> Pixels:
    """The stored pixel in which each output pixel lies."""
    down, across = (taps.index[:, 0].clip(*_bounds(taps)) - taps.span[0] for taps in (rows, cols))
    finite = None if stored.finite is None else stored.finite.take(across, axis=1).take(down, axis=0)
    if not (rows.inside.all() and cols.inside.all()):
        inside = rows.inside[:, None] & cols.inside
        finite = inside if finite is None else inside & finite
    return Pixels(
        bands=stored.bands.take(across, axis=2).take(down, axis=1),
        present=stored.present.take(across, axis=1).take(down, axis=0),
        finite=finite,
    )


def _bounds(taps: Taps) -> tuple[int, int]:
    first, last = taps.span
    return first, last - 1


def _concatenate(parts: Sequence[Pixels], axis: int) -> Pixels:
    """Concatenate windows along rows (axis 0) or columns (axis 1)."""
    finites = [np.ones(part.present.shape, bool) if part.finite is None else part.finite for part in parts]
    return Pixels(
        bands=np.concatenate([part.bands for part in parts], axis=axis + 1),
        present=np.concatenate([part.present for part in parts], axis=axis),
        finite=np.concatenate(finites, axis=axis),
    )


def _as_stored(value: float, dtype: np.dtype[np.generic]) -> float:
    """A nodata value that pixels can hold, else 0."""
    if dtype.kind == "f":
        return value if abs(value) <= float(np.finfo(dtype.name).max) else 0
    info = np.iinfo(dtype.name)
    return int(value) if float(value).is_integer() and info.min <= value <= info.max else 0
