"""Strip reader: prefetches the pixels of a region for the engine; each storage block is decoded once.

The chunks of one row band are decoded in parallel on dask's threaded scheduler while the engine works on
earlier strips; a strip is made of views of the chunks it touches, uncopied, unless its windows reach past the
scene: there pixels are mirrored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import dask.threaded
import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.concurrency import map_ordered, usable_cpus
from pipeline.inference.tiling.chunks import RowBand, StripRequest, plan_row_bands
from pipeline.inference.tiling.tiles import Axis, TilePlan
from pipeline.scene import Scene, SceneReader

MAX_READERS = 12
"""Decoding threads at most by default; enough for the fastest device."""
PREFETCH_ROW_BANDS = 2
"""Row bands decoded ahead of the current strip at most; bounds the memory of prefetching."""
PREFETCH_BYTES = 2**29
"""Bytes of pixels decoded ahead of it at most, but at least one row band."""


@dataclass(frozen=True, kw_only=True)
class DecodedChunk:
    """Pixels that were decoded together, and their position in a scene or strip."""

    top: int
    """Row of its first row in the scene or strip."""
    left: int
    """Column of its first column there."""
    pixels: NDArray[np.generic]
    """`(bands, rows, columns)` in the stored type."""
    valid: NDArray[np.bool_] | None
    """`(rows, columns)`, True = real data; None where every pixel is."""

    def part(self, rows: slice, cols: slice) -> DecodedChunk | None:
        """The part in a window, placed relative to the window; None if they do not overlap."""
        height, width = self.pixels.shape[1:]
        top, bottom = max(self.top, rows.start), min(self.top + height, rows.stop)
        left, right = max(self.left, cols.start), min(self.left + width, cols.stop)
        if top >= bottom or left >= right:
            return None
        src = slice(top - self.top, bottom - self.top), slice(left - self.left, right - self.left)
        return DecodedChunk(
            top=top - rows.start,
            left=left - cols.start,
            pixels=self.pixels[:, *src],
            valid=None if self.valid is None else self.valid[src],
        )


@dataclass(frozen=True, kw_only=True)
class RawStrip:
    """The input of one row of tiles, as stored in the scene, in the chunks as decoded."""

    row: int
    """Index of the tile row."""
    left: int
    """Scene column of the first pixel; below 0 where windows reach past the scene."""
    shape: tuple[int, int]
    """`(tile height, columns)`."""
    chunks: tuple[DecodedChunk, ...]
    """Partition the windows of the tiles that are wanted; mirrored past the scene."""
    tiles: tuple[int, ...] | None = None
    """Positions of the tiles that are wanted, counted from the first of the region; None: all."""

    def window(self, rows: slice, cols: slice) -> tuple[DecodedChunk, ...]:
        """The chunks of a window of the strip, placed relative to it."""
        return _window(self.chunks, rows, cols)

    def any_valid(self, cols: slice) -> bool:
        """Whether any pixel of the columns is real data."""
        if all(chunk.valid is None for chunk in self.chunks):
            return True
        parts = self.window(slice(0, self.shape[0]), cols)
        return any(part.valid is None or bool(part.valid.any()) for part in parts)

    def count_valid(self, rows: slice, cols: slice) -> int:
        """Pixels of real data in a window."""
        return sum(
            part.pixels[0].size if part.valid is None else int(np.count_nonzero(part.valid))
            for part in self.window(rows, cols)
        )


@dataclass(frozen=True, kw_only=True)
class _Band:
    """A decoded row band of the scene."""

    bottom: int
    """One past its last scene row."""
    chunks: tuple[DecodedChunk, ...]
    """Its chunks, placed in the scene."""


def read_strips(
    scene: Scene,
    plan: TilePlan,
    tiles: tuple[range, range],
    *,
    wanted: Sequence[tuple[int, ...]] | None = None,
    threads: int = 0,
) -> Iterator[RawStrip]:
    """Yield the input of each tile row of a region, prefetched.

    Args:
        scene: the scene.
        plan: its tile plan.
        tiles: tile rows and tile columns of the region.
        wanted: for each row the positions of the wanted tiles in the columns; other chunks are not read. None: all.
        threads: decoding threads; 0 = one per CPU.
    """

    def decode(band: RowBand) -> _Band:
        return _read_band(reader, band, pool)

    rows, cols = tiles
    across = _mirrored(plan.cols, cols)
    needs = [_need(plan, row, cols, None if wanted is None else wanted[k]) for k, row in enumerate(rows)]
    # For each strip the first scene row that it or a later one needs; mirrored rows may lie further up.
    first_needed = np.minimum.accumulate([need.rows.min() for need in needs][::-1])[::-1]
    threads = threads or min(usable_cpus(), MAX_READERS)
    row_bands = plan_row_bands(scene, needs)
    with (
        SceneReader(scene) as reader,
        ThreadPoolExecutor(threads, "decode") as pool,
        ThreadPoolExecutor(1, "read-ahead") as ahead,
        closing(map_ordered(decode, row_bands, ahead, ahead=_prefetched(scene, row_bands))) as bands,
    ):
        held: deque[_Band] = deque()
        for index, (row, need, keep_from) in enumerate(zip(rows, needs, first_needed, strict=True)):
            # Decode down to the strip's last row, then drop the bands above all rows that are still needed.
            while not held or held[-1].bottom <= need.rows.max():
                held.append(next(bands))
            while held[0].bottom <= keep_from:
                held.popleft()
            chunks = _assemble([chunk for band in held for chunk in band.chunks], need.rows, across)
            yield RawStrip(
                row=row,
                left=plan.tile(row, cols.start).window.col_off,
                shape=(len(need.rows), len(across)),
                chunks=chunks,
                tiles=None if wanted is None else wanted[index],
            )


def _prefetched(scene: Scene, bands: Sequence[RowBand]) -> int:
    """Number of row bands to decode ahead."""
    pixel_bytes = len(scene.bands) * np.dtype(scene.dtype).itemsize
    largest = max(sum(int(window.height * window.width) for window in band.windows) for band in bands) * pixel_bytes
    return max(1, min(PREFETCH_ROW_BANDS, PREFETCH_BYTES // max(1, largest)))


def _need(plan: TilePlan, row: int, cols: range, wanted: tuple[int, ...] | None) -> StripRequest:
    windows = [cols] if wanted is None else [cols[k : k + 1] for k in wanted]
    spans = (_mirrored(plan.cols, window) for window in windows)
    return StripRequest(
        rows=_mirrored(plan.rows, range(row, row + 1)),
        spans=tuple((int(span.min()), int(span.max()) + 1) for span in spans),
    )


def _read_band(reader: SceneReader, band: RowBand, pool: ThreadPoolExecutor) -> _Band:
    """Decode the chunks of one band in parallel."""
    graph = {index: (_read_chunk, reader, window) for index, window in enumerate(band.windows)}
    chunks = dask.threaded.get(graph, [*graph], pool=pool) if graph else ()
    return _Band(bottom=band.bottom, chunks=tuple(chunks))


def _read_chunk(reader: SceneReader, window: Window) -> DecodedChunk:
    pixels, valid = reader.read(window)
    return DecodedChunk(
        top=int(window.row_off), left=int(window.col_off), pixels=pixels, valid=None if valid.all() else valid
    )


def _assemble(
    chunks: Sequence[DecodedChunk], rows: NDArray[np.intp], cols: NDArray[np.intp]
) -> tuple[DecodedChunk, ...]:
    """Scene pixels at `rows` and `cols`, as views where each is named once and in order, else mirrored into a copy."""
    straight = all(len(axis) == axis[-1] - axis[0] + 1 for axis in (rows, cols))
    top, left = int(rows.min()), int(cols.min())
    found = _window(chunks, slice(top, int(rows.max()) + 1), slice(left, int(cols.max()) + 1))
    if straight or not found:
        return found

    # Past the scene: join the chunks, then gather rows and columns, some of them twice.
    first, shape = found[0].pixels, (int(rows.max()) + 1 - top, int(cols.max()) + 1 - left)
    pixels = np.zeros((len(first), *shape), first.dtype)
    for chunk in found:
        height, width = chunk.pixels.shape[1:]
        pixels[:, chunk.top : chunk.top + height, chunk.left : chunk.left + width] = chunk.pixels
    down, across = (rows - top)[:, None], cols - left
    valid = None if all(chunk.valid is None for chunk in found) else _lay_out_validity(found, shape)
    return (
        DecodedChunk(
            top=0, left=0, pixels=pixels[:, down, across], valid=None if valid is None else valid[down, across]
        ),
    )


def _window(chunks: Sequence[DecodedChunk], rows: slice, cols: slice) -> tuple[DecodedChunk, ...]:
    parts = (chunk.part(rows, cols) for chunk in chunks)
    return tuple(part for part in parts if part is not None)


def _lay_out_validity(chunks: Sequence[DecodedChunk], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """`(rows, columns)`, True = real data, of chunks of a window; True outside the chunks."""
    valid = np.ones(shape, bool)
    for chunk in chunks:
        if chunk.valid is not None:
            height, width = chunk.valid.shape
            valid[chunk.top : chunk.top + height, chunk.left : chunk.left + width] = chunk.valid
    return valid


def _mirrored(axis: Axis, tiles: range) -> NDArray[np.intp]:
    """Scene pixels under the windows of consecutive tiles; past the scene they fold back at the border pixel.

    >>> _mirrored(Axis(length=4, tile=8, margin=0, starts=(0,)), range(1)).tolist()
    [0, 1, 2, 3, 2, 1, 0, 1]
    """
    start, stop = _span(axis, tiles)
    if axis.length == 1:
        return np.zeros(stop - start, np.intp)
    # Reflection at the centres of the border pixels repeats with this period.
    period = 2 * (axis.length - 1)
    folded = np.arange(start, stop) % period
    return np.minimum(folded, period - folded)


def _span(axis: Axis, tiles: range) -> tuple[int, int]:
    """First and one-past-last scene pixel of the tiles' windows, which may lie past the scene."""
    return axis.starts[tiles[0]] - axis.margin, axis.starts[tiles[-1]] - axis.margin + axis.tile
