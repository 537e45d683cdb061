"""Windows of the training part, drawn at random, and windows that cover the held-out part.

A window's core is the square that the network's output covers; its input reaches `margin` pixels
further. Training cores never overlap a held-out block, and where a window is rotated or deformed, pixels around
its core take part unless a block holds them. Each drawn window depends only on the generator
it is given, so neither threads nor interruptions change what is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import SettingsError
from pipeline.training.blocks import clip, plan_blocks
from pipeline.training.class_index import ClassIndex
from pipeline.training.samples import SampleSource
from pipeline.training.splits import Area

MOST_DRAWS = 50
"""Windows drawn until one has enough valid pixels; then the last is taken."""
Balance = Literal["area", "scenes"]
"""How a scene is chosen for a window: by what it has to offer, or each as often."""


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
    """Share of windows that must hold an object, 0 to 1, each class as often; the others hold any labelled pixel."""
    balance: Balance = "area"
    """`area`: each pixel (of the class, where one is wanted) is as likely in all scenes; `scenes`: each scene is."""
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
        if self.balance not in get_args(Balance):
            raise SettingsError(f"balance must be one of {', '.join(get_args(Balance))}, not {self.balance!r}")


@dataclass(frozen=True, kw_only=True)
class Core:
    """A square of a scene that is predicted."""

    area: Area
    """The scene, and its blocks that never count."""
    row: int
    """First row; cores may reach past the scene."""
    col: int
    """First column."""
    inside: Window
    """The part of the scene that may count: the held-out block that is judged, or for training all of it."""

    @property
    def source(self) -> SampleSource:
        """The scene."""
        return self.area.source

    def counts(self, window: Window) -> NDArray[np.bool_]:
        """Which pixels of a window that overlaps `inside`, `(height, width)`, may count, however they are moved."""
        counted = np.zeros((window.height, window.width), bool)
        common = clip(window, self.inside)
        top, left = common.row_off - window.row_off, common.col_off - window.col_off
        counted[top : top + common.height, left : left + common.width] = self.area.free_pixels(common)
        return counted


class Drawer:
    """Draws training cores; safe to use from many threads.

    A share of them holds an object: of a class drawn evenly among those present, at a pixel drawn evenly among
    that class's pixels that some core covers. The others hold a pixel drawn evenly among labelled ones.
    """

    def __init__(self, areas: Sequence[Area], spec: SamplesSpec, core_size: int) -> None:
        """Looks at every training label once.

        Raises:
            SettingsError: no core holds a labelled pixel.
        """
        self._labelled_share = spec.labelled_share
        self._size = core_size
        self._indices = [ClassIndex(area, core_size) for area in areas]
        self._anywhere = _Weights([index.labelled.pixels for index in self._indices], spec.balance)
        by_class = zip(*([layer.pixels for layer in index.classes] for index in self._indices), strict=True)
        self._of_class = {k: _Weights(pixels, spec.balance) for k, pixels in enumerate(by_class) if any(pixels)}
        if not self._anywhere:
            raise SettingsError(
                f"samples.tile_size: no training window, which covers {core_size} px, holds a labelled pixel beside "
                "the held-out blocks; use a smaller samples.tile_size, a larger split.block_size, or more labels"
            )

    def draw(self, rng: Generator) -> Core:
        """A random core that overlaps no held-out block."""
        wants_object = bool(self._of_class) and rng.random() < self._labelled_share
        class_index = int(rng.choice([*self._of_class])) if wants_object else None
        weights = self._anywhere if class_index is None else self._of_class[class_index]
        index = self._indices[weights.draw(rng)]
        row, col = index.draw_start(rng, class_index)
        return Core(area=index.area, row=row, col=col, inside=index.area.source.scene.grid.window)


def cover(validation: Sequence[tuple[SampleSource, Window]], size: int) -> list[Core]:
    """Cores that cover held-out blocks, each pixel counted exactly once."""
    return [
        Core(
            area=Area(source=source), row=block.row_off + inner.row_off, col=block.col_off + inner.col_off, inside=block
        )
        for source, block in validation
        for inner in plan_blocks((block.height, block.width), size)
    ]


class _Weights:
    """How likely each scene is."""

    def __init__(self, pixels: Sequence[int], balance: Balance) -> None:
        weights = np.array(pixels, float) if balance == "area" else np.array(pixels) > 0
        self._until: NDArray[np.float64] = np.cumsum(weights, dtype=float)

    def __bool__(self) -> bool:
        return len(self._until) > 0 and bool(self._until[-1] > 0)

    def draw(self, rng: Generator) -> int:
        """The number of a scene."""
        return int(np.searchsorted(self._until, rng.random() * self._until[-1], side="right"))
