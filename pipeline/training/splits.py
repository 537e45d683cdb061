"""What is learned from, what chooses the epoch, and what is only tested: whole scenes, or blocks of scenes.

No pixel is in two parts. Random pixels or overlapping windows are never split: neighbours resemble each
other, and a score on neighbours of the training pixels says nothing (Roberts et al. 2017, Ecography 40:913).
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


@dataclass(frozen=True, kw_only=True)
class SplitSpec:
    """Which part of the data validates."""

    validation: tuple[str, ...] = ()
    """Scenes kept for validation, as paths or as stems of training images; none = blocks are held out."""
    validation_share: float = 0.15
    """Share of blocks that is held out when no scene is named, above 0 and at most 0.5."""
    block_size: int = 512
    """Side in pixels of the blocks that are held out when no scene is named."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise SettingsError(f"block_size must be at least 1, not {self.block_size}")
        if not 0 < self.validation_share <= 0.5:
            raise SettingsError(f"validation_share must be above 0 and at most 0.5, not {self.validation_share}")


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
                common = clip(block, window)
                top, left = common.row_off - window.row_off, common.col_off - window.col_off
                free[top : top + common.height, left : left + common.width] = False
        return free


@dataclass(frozen=True, kw_only=True)
class Split:
    """What is learned from, and what is held out; no pixel is in both."""

    training: tuple[Area, ...]
    """Where training windows are drawn."""
    validation: tuple[tuple[SampleSource, Window], ...]
    """Held-out blocks or whole scenes."""
    kind: str
    """`scenes` or `blocks`."""


def split_data(data: LabelledData, spec: SplitSpec, *, seed: int) -> Split:
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


def overlap(one: Window, other: Window) -> bool:
    """Whether two windows share a pixel."""
    return bool(
        one.row_off < other.row_off + other.height
        and other.row_off < one.row_off + one.height
        and one.col_off < other.col_off + other.width
        and other.col_off < one.col_off + one.width
    )


def clip(window: Window, bounds: Window) -> Window:
    """The part of a window inside another."""
    top, left = max(window.row_off, bounds.row_off), max(window.col_off, bounds.col_off)
    bottom = min(window.row_off + window.height, bounds.row_off + bounds.height)
    right = min(window.col_off + window.width, bounds.col_off + bounds.width)
    return Window(left, top, right - left, bottom - top)


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
