"""Read a region's pixels ahead of the engine, strip by strip; each storage block is decoded once.

The scene is cut, once for all regions, into chunks of whole storage blocks. The chunks of one row
band are decoded in parallel on dask's threaded scheduler while the engine works on earlier strips; a
strip is assembled from the bands it touches, and mirrored where its windows reach past the scene.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import dask.threaded
import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.scene import Scene, SceneReader
from pipeline.tiling import Axis, TilePlan

CHUNK_ROWS = 512
"""Target height of a chunk, rounded up to whole storage blocks."""
CHUNK_COLS = 1024
"""Target width of a chunk, rounded up to whole storage blocks."""
BANDS_AHEAD = 2
"""Row bands decoded ahead of the strip at hand; bounds the memory of read-ahead."""


@dataclass(frozen=True, kw_only=True)
class RawStrip:
    """The input of one row of tiles, as stored in the scene."""

    row: int
    """Index of the tile row."""
    left: int
    """Scene column of the first pixel; below 0 where windows reach past the scene."""
    pixels: NDArray[np.generic]
    """`(bands, tile height, columns)` in the stored type, mirrored past the scene."""
    valid: NDArray[np.bool_]
    """`(tile height, columns)`, True = real data; mirrored like the pixels."""


@dataclass(frozen=True, kw_only=True)
class _Band:
    """A decoded row band of the scene between two columns."""

    top: int
    pixels: NDArray[np.generic]
    valid: NDArray[np.bool_]

    @property
    def bottom(self) -> int:
        return self.top + len(self.valid)


def read_strips(scene: Scene, plan: TilePlan, rows: range, cols: range, *, threads: int = 0) -> Iterator[RawStrip]:
    """Yield the input of each tile row of a region, read ahead on `threads` threads (0 = one per CPU).

    Raises:
        DamagedSceneError: when the strip that holds the damage is due.
    """
    across = _mirrored(plan.cols, cols)
    needs = [_mirrored(plan.rows, range(row, row + 1)) for row in rows]
    first_needed = np.minimum.accumulate([need.min() for need in needs][::-1])[::-1]
    lo, hi = int(across.min()), int(across.max()) + 1
    threads = threads or min(os.cpu_count() or 1, 12)
    with (
        SceneReader(scene) as reader,
        ThreadPoolExecutor(threads, "decode") as pool,
        ThreadPoolExecutor(1, "read-ahead") as ahead,
    ):
        bands = _read_ahead(
            _plan_bands(scene, int(first_needed[0]), max(int(n.max()) for n in needs) + 1, lo, hi),
            reader,
            (lo, hi),
            pool,
            ahead,
        )
        held: deque[_Band] = deque()
        for row, need, keep_from in zip(rows, needs, first_needed, strict=True):
            while not held or held[-1].bottom <= need.max():
                held.append(next(bands))
            while held[0].bottom <= keep_from:
                held.popleft()
            pixels, valid = _assemble(held, need, across - lo)
            yield RawStrip(row=row, left=plan.tile(row, cols.start).window.col_off, pixels=pixels, valid=valid)


def chunk_shape(scene: Scene) -> tuple[int, int]:
    """Rows and columns of a chunk: whole storage blocks, or round figures for a resampled scene."""
    if scene.resampled:
        return CHUNK_ROWS, CHUNK_COLS
    rows, cols = (
        -(-target // block) * block for target, block in zip((CHUNK_ROWS, CHUNK_COLS), scene.block_shape, strict=True)
    )
    return rows, cols


def _plan_bands(scene: Scene, top: int, bottom: int, lo: int, hi: int) -> list[list[Window]]:
    """Windows of whole chunks that cover rows `top:bottom`, columns `lo:hi`; a list for each row band."""
    height, width = scene.grid.shape
    down, across = chunk_shape(scene)
    return [
        [
            Window(col, row, min(across, width - col), min(down, height - row))
            for col in range(lo // across * across, hi, across)
        ]
        for row in range(top // down * down, bottom, down)
    ]


def _read_ahead(
    bands: Sequence[Sequence[Window]],
    reader: SceneReader,
    span: tuple[int, int],
    pool: ThreadPoolExecutor,
    ahead: ThreadPoolExecutor,
) -> Iterator[_Band]:
    waiting = iter(bands)
    pending: deque[Future[_Band]] = deque()
    try:
        for windows in islice(waiting, BANDS_AHEAD):
            pending.append(ahead.submit(_read_band, reader, windows, span, pool))
        while pending:
            band = pending.popleft().result()
            for windows in islice(waiting, 1):
                pending.append(ahead.submit(_read_band, reader, windows, span, pool))
            yield band
    finally:
        for future in pending:
            future.cancel()


def _read_band(
    reader: SceneReader, windows: Sequence[Window], span: tuple[int, int], pool: ThreadPoolExecutor
) -> _Band:
    """Decode the chunks of one band in parallel and lay them side by side."""
    graph = {index: (reader.read, window) for index, window in enumerate(windows)}
    chunks = dask.threaded.get(graph, [*graph], pool=pool)
    lo, hi = span
    rows = int(windows[0].height)
    scene = reader.scene
    pixels = np.empty((len(scene.bands), rows, hi - lo), scene.dtype)
    valid = np.empty((rows, hi - lo), bool)
    for window, (chunk, chunk_valid) in zip(windows, chunks, strict=True):
        start, stop = max(window.col_off, lo), min(window.col_off + window.width, hi)
        dst, src = slice(start - lo, stop - lo), slice(start - window.col_off, stop - window.col_off)
        pixels[:, :, dst] = chunk[:, :, src]
        valid[:, dst] = chunk_valid[:, src]
    return _Band(top=int(windows[0].row_off), pixels=pixels, valid=valid)


def _assemble(
    bands: Sequence[_Band], rows: NDArray[np.intp], cols: NDArray[np.intp]
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Pick `rows` and `cols` (with repeats where mirrored) from the bands at hand."""
    lo, hi = int(rows.min()), int(rows.max()) + 1
    parts = [
        (band, slice(max(lo - band.top, 0), hi - band.top)) for band in bands if band.top < hi and band.bottom > lo
    ]
    pixels = np.concatenate([band.pixels[:, part] for band, part in parts], axis=1)
    valid = np.concatenate([band.valid[part] for band, part in parts])
    if len(rows) != hi - lo or rows[0] > rows[-1]:
        pixels, valid = pixels[:, rows - lo], valid[rows - lo]
    if len(cols) != pixels.shape[2]:
        pixels, valid = pixels[:, :, cols], valid[:, cols]
    return pixels, valid


def _mirrored(axis: Axis, tiles: range) -> NDArray[np.intp]:
    """Scene pixels under the windows of consecutive tiles; past the scene they fold back at the border pixel.

    >>> _mirrored(Axis(length=4, tile=8, margin=0, starts=(0,)), range(1)).tolist()
    [0, 1, 2, 3, 2, 1, 0, 1]
    """
    start, stop = _span(axis, tiles)
    if axis.length == 1:
        return np.zeros(stop - start, np.intp)
    period = 2 * (axis.length - 1)
    folded = np.arange(start, stop) % period
    return np.minimum(folded, period - folded)


def _span(axis: Axis, tiles: range) -> tuple[int, int]:
    """First and one-past-last scene pixel of the tiles' windows, which may lie past the scene."""
    return axis.starts[tiles[0]] - axis.margin, axis.starts[tiles[-1]] - axis.margin + axis.tile
