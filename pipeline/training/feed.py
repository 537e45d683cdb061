"""Cores in, batches of tensors out, prepared ahead of the network on a few threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray
from torch import Tensor

from pipeline.card import Normalization
from pipeline.normalize import input_transform
from pipeline.training.augment import flip_and_turn, vary_light
from pipeline.training.samples import Sample, read_padded
from pipeline.training.splits import Area
from pipeline.training.windows import MOST_DRAWS, Core, Drawer

if TYPE_CHECKING:
    from pipeline.training.settings import TrainSpec

AHEAD = 4
"""Batches prepared before they are asked for; bounds memory."""
LEAST_VALID = 0.1
"""Training windows with a smaller share of valid pixels are drawn again."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step sees."""

    pixels: Tensor
    """`(N, bands, H, W)` float32 model input, channels last in memory."""
    target: Tensor
    """`(N, classes, H - 2 margin, W - 2 margin)` float32, 0 or 1 where counted."""
    counted: Tensor
    """Same shape, bool: valid and labelled."""


class Feed:
    """Makes batches for one network from samples of any scene; a context manager, for its threads."""

    def __init__(self, spec: TrainSpec, normalization: Normalization, *, margin: int) -> None:
        self.spec = spec
        self.normalization = normalization
        self.margin = margin
        self.core_size = spec.samples.tile_size - 2 * margin
        self.batches_per_epoch = -(-spec.samples.windows_per_epoch // spec.samples.batch_size)
        self._drawer: tuple[Sequence[Area], Drawer] | None = None
        self._pool = ThreadPoolExecutor(spec.samples.threads, thread_name_prefix="samples")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def training(self, areas: Sequence[Area], epoch: int) -> Iterator[Batch]:
        """The random batches of an epoch; the same for the same seed and epoch."""

        def make(index: int) -> Batch:
            rngs = (np.random.default_rng([self.spec.seed, 2, epoch, index, k]) for k in range(size))
            return self._stack([self._training_item(drawer, rng) for rng in rngs])

        if self._drawer is None or self._drawer[0] is not areas:
            self._drawer = areas, Drawer(areas, self.spec.samples, self.core_size)
        size, drawer = self.spec.samples.batch_size, self._drawer[1]
        return prefetch(make, self.batches_per_epoch, self._pool)

    def validation(self, cores: Sequence[Core]) -> Iterator[Batch]:
        """Batches over held-out cores in order, unchanged; every pixel of a block is counted exactly once."""

        def make(index: int) -> Batch:
            part = cores[index * size : (index + 1) * size]
            return self._stack([self._item(core, self._read(core)) for core in part])

        size = self.spec.samples.batch_size
        return prefetch(make, -(-len(cores) // size), self._pool)

    def _training_item(self, drawer: Drawer, rng: Generator) -> _Item:
        for _ in range(MOST_DRAWS):
            core = drawer.draw(rng)
            sample = self._read(core)
            if sample.valid.mean() >= LEAST_VALID:
                break
        sample = flip_and_turn(sample, rng, self.spec.augment)
        return self._item(core, sample, rng)

    def _read(self, core: Core) -> Sample:
        """The input of a core; what lies outside `core.inside` keeps its pixels but counts as unlabelled."""
        size = self.spec.samples.tile_size
        row, col = core.row - self.margin, core.col - self.margin
        sample = read_padded(core.source, row, col, size)
        target = np.full_like(sample.target, 255)
        top, left = max(core.inside.row_off - row, 0), max(core.inside.col_off - col, 0)
        bottom = core.inside.row_off + core.inside.height - row
        right = core.inside.col_off + core.inside.width - col
        target[:, top:bottom, left:right] = sample.target[:, top:bottom, left:right]
        return Sample(pixels=sample.pixels, target=target, valid=sample.valid)

    def _item(self, core: Core, sample: Sample, rng: Generator | None = None) -> _Item:
        transform = input_transform(core.source.scene, self.normalization)
        if rng is not None:
            transform = vary_light(transform, rng, self.spec.augment)
        inner = slice(self.margin, self.margin + self.core_size)
        target, valid = sample.target[:, inner, inner], sample.valid[inner, inner]
        return _Item(
            pixels=transform.apply(sample.pixels, sample.valid), target=target == 1, counted=valid & (target <= 1)
        )

    def _stack(self, items: Sequence[_Item]) -> Batch:
        pixels = torch.from_numpy(np.stack([item.pixels for item in items]))
        return Batch(
            pixels=pixels.contiguous(memory_format=torch.channels_last),
            target=torch.from_numpy(np.stack([item.target for item in items]).astype(np.float32)),
            counted=torch.from_numpy(np.stack([item.counted for item in items])),
        )


@dataclass(frozen=True, kw_only=True)
class _Item:
    """One window, normalised and cut to what the network returns."""

    pixels: NDArray[np.float32]
    target: NDArray[np.bool_]
    counted: NDArray[np.bool_]


def prefetch(make: Callable[[int], Batch], count: int, pool: Executor) -> Iterator[Batch]:
    """Yield `make(0), ..., make(count - 1)` in order, at most `AHEAD` of them made in advance.

    An error in `make` is raised when its batch is due; leaving early cancels what has not begun.
    """
    pending: deque[Future[Batch]] = deque()
    try:
        for index in range(count):
            pending.append(pool.submit(make, index))
            if len(pending) > AHEAD:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
