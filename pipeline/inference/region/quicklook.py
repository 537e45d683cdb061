"""Quicklook: a scene at screen size, sampled from the strips of inference without decoding blocks again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.inference.tiling.strips import RawStrip, read_strips
from pipeline.inference.tiling.tiles import TilePlan
from pipeline.scene import Scene

SCREEN = 1600
"""Longest side of a quicklook, px."""


@dataclass(frozen=True, kw_only=True)
class Quicklook:
    """Every `step`-th pixel of a window, starting at `step // 2` of the scene, or at its last row or column before."""

    top: int
    """Row of the first pixel in the quicklook of the whole scene."""
    left: int
    """Column of it."""
    pixels: NDArray[np.generic]
    """`(bands, rows, columns)`, at most three bands, in the stored type."""


class QuicklookSampler:
    """Collects the quicklook of one region's core."""

    def __init__(self, shape: tuple[int, int], core: Window, bands: int, dtype: str) -> None:
        """`shape` is the scene's; `core` the part that this region delivers."""
        step = _step(shape)
        rows, cols = (_samples(step, length) for length in shape)
        top, left = bisect_left(rows, core.row_off), bisect_left(cols, core.col_off)
        self._rows = rows[top : bisect_left(rows, core.row_off + core.height)]
        self._cols = cols[left : bisect_left(cols, core.col_off + core.width)]
        pixels = np.zeros((min(bands, 3), len(self._rows), len(self._cols)), dtype)
        self.quicklook = Quicklook(top=top, left=left, pixels=pixels)

    def add(self, strip: RawStrip, top: int) -> None:
        """Sample a strip whose first pixel row is scene row `top` (below 0 where mirrored)."""
        for chunk in strip.chunks:
            height, width = chunk.pixels.shape[1:]
            down, rows = _shared(self._rows, top + chunk.top, height)
            across, cols = _shared(self._cols, strip.left + chunk.left, width)
            self.quicklook.pixels[:, down, across] = chunk.pixels[: len(self.quicklook.pixels), rows, cols]


def merge_quicklooks(quicklooks: Sequence[Quicklook]) -> NDArray[np.generic]:
    """The quicklook of the whole scene, `(bands, rows, columns)`, from those of its regions."""
    rows = max(quicklook.top + quicklook.pixels.shape[1] for quicklook in quicklooks)
    cols = max(quicklook.left + quicklook.pixels.shape[2] for quicklook in quicklooks)
    first = quicklooks[0].pixels
    whole = np.zeros((len(first), rows, cols), first.dtype)
    for quicklook in quicklooks:
        _, height, width = quicklook.pixels.shape
        whole[:, quicklook.top : quicklook.top + height, quicklook.left : quicklook.left + width] = quicklook.pixels
    return whole


def read_quicklook(
    scene: Scene, plan: TilePlan, threads: int, wanted: Sequence[tuple[int, ...]] | None = None
) -> NDArray[np.generic]:
    """The quicklook of a scene without inference, `(bands, rows, columns)`; 0 outside wanted tiles.

    Args:
        scene: the scene.
        plan: its tile plan.
        threads: decoding threads; 0 = one per CPU.
        wanted: see `read_strips`.
    """
    sampler = QuicklookSampler(scene.grid.shape, scene.grid.window, len(scene.bands), scene.dtype)
    rows, cols = (range(count) for count in plan.shape)
    for strip in read_strips(scene, plan, (rows, cols), wanted=wanted, threads=threads):
        sampler.add(strip, plan.rows.starts[strip.row] - plan.rows.margin)
    return sampler.quicklook.pixels


def _step(shape: tuple[int, int]) -> int:
    return max(1, -(-max(shape) // SCREEN))


def _samples(step: int, length: int) -> range:
    """Sampled pixels of an axis of the scene, at least one.

    >>> list(_samples(4, 11)), list(_samples(63, 3))
    ([2, 6, 10], [2])
    """
    return range(min(step // 2, length - 1), length, step)


def _shared(samples: range, start: int, length: int) -> tuple[slice, slice]:
    """Slices of the samples within scene pixels `start : start + length`, and of these pixels.

    >>> _shared(range(2, 12, 4), 5, 4)
    (slice(1, 2, None), slice(1, 5, 4))
    """
    first, last = (
        min(max(0, -(-(place - samples.start) // samples.step)), len(samples)) for place in (start, start + length)
    )
    offset = samples.start + first * samples.step - start
    return slice(first, last), slice(offset, offset + (last - first) * samples.step, samples.step)
