"""Which windows are learned from and which are held out; drawn and planned on the scenes' grids.

A window's core is the square that the network's output covers; its input reaches `margin` pixels
further. Training cores never overlap a held-out block. Each drawn window depends only on the seed, the
epoch and its number, so neither threads nor interruptions change what is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import LabelError, SettingsError
from pipeline.training.samples import LabelledData, SampleSource
from pipeline.training.settings import SamplesSpec

MOST_DRAWS = 50
"""Windows tried until one fits; then the last that avoids held-out blocks is taken."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """Part of a scene: everything but some blocks."""

    source: SampleSource
    """The scene."""
    held_out: tuple[Window, ...] = ()
    """Blocks that no core may overlap."""

    @property
    def pixels(self) -> int:
        """Pixels that may be learned from, valid or not."""
        grid = self.source.scene.grid
        return int(grid.height * grid.width - sum(block.width * block.height for block in self.held_out))

    def is_free(self, core: Window) -> bool:
        """Whether a core overlaps no held-out block."""
        return not any(overlap(core, block) for block in self.held_out)

    def free_pixels(self, window: Window) -> NDArray[np.bool_]:
        """Which pixels of a window, `(height, width)`, lie outside all held-out blocks."""
        free = np.ones((window.height, window.width), bool)
        for block in self.held_out:
            if overlap(window, block):
                common = _clip(block, window)
                top, left = common.row_off - window.row_off, common.col_off - window.col_off
                free[top : top + common.height, left : left + common.width] = False
        return free


@dataclass(frozen=True, kw_only=True)
class Core:
    """A square of a scene that is predicted, of which `inside` counts."""

    source: SampleSource
    """The scene."""
    row: int
    """First row; cores may reach past the scene."""
    col: int
    """First column."""
    inside: Window
    """The part of the scene that counts."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """What is learned from, and what is held out; no pixel is in both."""

    training: tuple[Area, ...]
    """Where training windows are drawn."""
    validation: tuple[tuple[SampleSource, Window], ...]
    """Held-out blocks or whole scenes."""
    kind: str
    """`scenes` or `blocks`."""


def split_data(data: LabelledData, spec: SamplesSpec, *, seed: int) -> Split:
    """Hold out the validation scenes, or blocks of the training scenes where none is named.

    Blocks with and without objects are held out in the same share, over all scenes together.

    Raises:
        SettingsError: too few blocks to hold one out.
        LabelError: nothing labelled is held out.
    """
    if data.validation:
        whole = tuple((source, source.scene.grid.window) for source in data.validation)
        return Split(training=tuple(Area(source=s) for s in data.training), validation=whole, kind="scenes")
    blocks = [(s, block) for s in data.training for block in plan_blocks(s.scene.grid.shape, spec.block_size)]
    chosen = _choose(blocks, spec.validation_share, np.random.default_rng([seed, 0]))
    training = tuple(Area(source=s, held_out=tuple(b for owner, b in chosen if owner is s)) for s in data.training)
    return Split(training=tuple(a for a in training if a.pixels > 0), validation=tuple(chosen), kind="blocks")


def plan_blocks(shape: tuple[int, int], size: int) -> list[Window]:
    """Squares of `size` that partition a grid, the last ones cut off."""
    height, width = shape
    return [
        Window(col, row, min(size, width - col), min(size, height - row))
        for row in range(0, height, size)
        for col in range(0, width, size)
    ]


def draw_core(areas: Sequence[Area], size: int, rng: Generator, *, labelled_share: float) -> Core:
    """A random core: a scene by its area, then a place in it; a share of them must touch an object.

    Raises:
        SettingsError: no core fits beside the held-out blocks.
    """
    weights = np.array([area.pixels for area in areas], float)
    area = areas[rng.choice(len(areas), p=weights / weights.sum())]
    wants_label = rng.random() < labelled_share
    core = None
    for _ in range(MOST_DRAWS):
        row, col = (_draw_start(length, size, rng) for length in area.source.scene.grid.shape)
        inside = _clip(Window(col, row, size, size), area.source.scene.grid.window)
        if area.is_free(inside):
            core = Core(source=area.source, row=row, col=col, inside=inside)
            if not wants_label or area.source.touches(inside):
                break
    if core is None:
        raise SettingsError(
            f"samples.tile_size: windows of {size} px hardly fit between the held-out blocks of "
            f"{area.source.scene.id}; use a smaller tile_size, a larger block_size, or name validation scenes"
        )
    return core


def cover(validation: Sequence[tuple[SampleSource, Window]], size: int) -> list[Core]:
    """Cores that cover held-out blocks, each pixel counted exactly once."""
    return [
        Core(source=source, row=block.row_off + inner.row_off, col=block.col_off + inner.col_off, inside=block)
        for source, block in validation
        for inner in plan_blocks((block.height, block.width), size)
    ]


def overlap(one: Window, other: Window) -> bool:
    """Whether two windows share a pixel."""
    return bool(
        one.row_off < other.row_off + other.height
        and other.row_off < one.row_off + one.height
        and one.col_off < other.col_off + other.width
        and other.col_off < one.col_off + one.width
    )


def _choose(
    blocks: Sequence[tuple[SampleSource, Window]], share: float, rng: Generator
) -> list[tuple[SampleSource, Window]]:
    touched = np.array([source.touches(block) for source, block in blocks])
    if touched.sum() < 2:
        raise SettingsError(
            f"block_size: only {touched.sum()} block(s) of that size hold an object, so none can be held out for "
            "validation; use a smaller samples.block_size or name validation scenes"
        )
    chosen: list[int] = []
    for members in (np.flatnonzero(touched), np.flatnonzero(~touched)):
        count = round(share * len(members))
        count = max(1, count) if touched[members].any() else count
        chosen += rng.permutation(members)[:count].tolist()
    return [blocks[k] for k in sorted(chosen)]


def check_validation(split: Split) -> None:
    """Refuse a split whose held-out part has no labelled object: its IoU would mean nothing.

    Raises:
        LabelError: when that is so.
    """
    if not any(source.touches(block) for source, block in split.validation):
        names = ", ".join(dict.fromkeys(source.scene.id for source, _ in split.validation))
        raise LabelError(f"no labelled object lies in the validation part ({names}); choose other validation scenes")


def _draw_start(length: int, size: int, rng: Generator) -> int:
    """First row (or column) of a window; a scene smaller than the window is centred in it."""
    return int(rng.integers(0, length - size + 1)) if length >= size else -((size - length) // 2)


def _clip(window: Window, bounds: Window) -> Window:
    top, left = max(window.row_off, bounds.row_off), max(window.col_off, bounds.col_off)
    bottom = min(window.row_off + window.height, bounds.row_off + bounds.height)
    right = min(window.col_off + window.width, bounds.col_off + bounds.width)
    return Window(left, top, right - left, bottom - top)
