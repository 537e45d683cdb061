"""Windows of the training part, drawn at random, and windows that cover the held-out part.

A window's core is the square that the network's output covers; its input reaches `margin` pixels
further. Training cores never overlap a held-out block. Each drawn window depends only on the seed, the
epoch and its number, so neither threads nor interruptions change what is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from rasterio.windows import Window

from pipeline.errors import SettingsError
from pipeline.training.samples import SampleSource
from pipeline.training.splits import Area, clip, plan_blocks

MOST_DRAWS = 50
"""Windows tried until one fits; then the last that avoids held-out blocks is taken."""


@dataclass(frozen=True, kw_only=True)
class SamplesSpec:
    """Which windows of the scenes are seen, and how many."""

    tile_size: int = 256
    """Side in pixels of the network input while training; must fit the network's stride."""
    batch_size: int = 8
    """Windows per optimiser step, at least 1."""
    windows_per_epoch: int = 512
    """Random windows between two validations, at least 1; rounded up to whole batches."""
    labelled_share: float = 0.5
    """Share of windows that must hold some labelled object, 0 to 1; the others lie anywhere."""
    cache_mb: int = 4096
    """Scenes are kept in memory when all of them fit into this many MiB; otherwise windows are read as needed."""
    threads: int = 2
    """Threads that prepare batches ahead of the network, at least 1."""

    def __post_init__(self) -> None:
        least = {"tile_size": 1, "batch_size": 1, "windows_per_epoch": 1, "threads": 1, "cache_mb": 0}
        for key, bound in least.items():
            if getattr(self, key) < bound:
                raise SettingsError(f"{key} must be at least {bound}, not {getattr(self, key)}")
        if not 0 <= self.labelled_share <= 1:
            raise SettingsError(f"labelled_share must be from 0 to 1, not {self.labelled_share}")


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
        inside = clip(Window(col, row, size, size), area.source.scene.grid.window)
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


def _draw_start(length: int, size: int, rng: Generator) -> int:
    """First row (or column) of a window; a scene smaller than the window is centred in it."""
    return int(rng.integers(0, length - size + 1)) if length >= size else -((size - length) // 2)
