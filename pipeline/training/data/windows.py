"""Window sampler: random windows of the training part, and windows that tile the held-out parts.

A window's core is the square that the network's output covers; its input reaches `margin` pixels further. Training
cores never overlap a held-out block. Where a window is rotated or deformed, pixels around its core are used too,
except those in held-out blocks. Each drawn window depends only on the generator passed, so neither threads nor
interruptions change the samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import SettingsError
from pipeline.training.data.blocks import clip, plan_blocks
from pipeline.training.data.class_index import ClassIndex
from pipeline.training.data.samples import SampleSource
from pipeline.training.data.splits import Area
from pipeline.training.settings.data import Balance, SamplesSpec

MAX_DRAWS = 50
"""Windows drawn at most until one has enough valid pixels; otherwise the last one is used."""


@dataclass(frozen=True, kw_only=True)
class TrainingWindow:
    """The core of one window: a square of a scene that the network predicts."""

    area: Area
    """The scene and its held-out blocks, which never count."""
    row: int
    """First row; cores may reach past the scene."""
    col: int
    inside: Window
    """The part of the scene that may count: the held-out block that is scored, or for training the whole scene."""

    @property
    def source(self) -> SampleSource:
        """The scene of the area."""
        return self.area.source

    def usable_pixels(self, window: Window) -> NDArray[np.bool_]:
        """Which pixels of a window that overlaps `inside`, `(height, width)`, may count after any augmentation."""
        usable = np.zeros((window.height, window.width), bool)
        common = clip(window, self.inside)
        top, left = common.row_off - window.row_off, common.col_off - window.col_off
        usable[top : top + common.height, left : left + common.width] = self.area.free_pixels(common)
        return usable


class WindowSampler:
    """Draws training cores; safe to use from many threads.

    A share of them contains an object: the class is drawn uniformly from those present, the pixel uniformly from that
    class's pixels that a core can cover. The others contain a pixel drawn uniformly from the labelled ones.
    """

    def __init__(self, areas: Sequence[Area], spec: SamplesSpec, core_size: int) -> None:
        """Read every training label once."""
        self._labelled_share = spec.labelled_share
        self._size = core_size
        self._indices = [ClassIndex(area, core_size) for area in areas]
        self._anywhere = _Weights([index.labelled.pixels for index in self._indices], spec.balance)
        by_class = zip(*([layer.pixels for layer in index.classes] for index in self._indices), strict=True)
        self._of_class = {k: _Weights(pixels, spec.balance) for k, pixels in enumerate(by_class) if any(pixels)}
        if not self._anywhere:
            raise SettingsError(
                f"samples.tile_size: no training window, which covers {core_size} px, holds a labelled pixel outside "
                "the held-out blocks; use a smaller samples.tile_size, a larger split.block_size, or more labels"
            )

    def draw(self, rng: Generator) -> TrainingWindow:
        """A random core that overlaps no held-out block."""
        with_object = bool(self._of_class) and rng.random() < self._labelled_share
        class_index = int(rng.choice([*self._of_class])) if with_object else None
        weights = self._anywhere if class_index is None else self._of_class[class_index]
        index = self._indices[weights.draw(rng)]
        row, col = index.draw_start(rng, class_index)
        return TrainingWindow(area=index.area, row=row, col=col, inside=index.area.source.scene.grid.window)


def tile_windows(validation: Sequence[tuple[SampleSource, Window]], size: int) -> list[TrainingWindow]:
    """Cores that cover held-out blocks, each pixel exactly once."""
    return [
        TrainingWindow(
            area=Area(source=source), row=block.row_off + inner.row_off, col=block.col_off + inner.col_off, inside=block
        )
        for source, block in validation
        for inner in plan_blocks((block.height, block.width), size)
    ]


class _Weights:
    """Draws the index of a scene with given weights."""

    def __init__(self, pixels: Sequence[int], balance: Balance) -> None:
        weights = np.array(pixels, float) if balance == "area" else np.array(pixels) > 0
        self._cumulative: NDArray[np.float64] = np.cumsum(weights, dtype=float)

    def __bool__(self) -> bool:
        return len(self._cumulative) > 0 and bool(self._cumulative[-1] > 0)

    def draw(self, rng: Generator) -> int:
        return int(np.searchsorted(self._cumulative, rng.random() * self._cumulative[-1], side="right"))
