"""Batch loader: cores in, batches of tensors out, prefetched by worker threads.

The threads read, flip, rotate by quarter turns and normalise. The operations that cost much per pixel (warping,
blur, noise) run on the network's device where that is CUDA, and otherwise in the same threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.random import Generator
from rasterio.windows import Window
from torch import Tensor

from pipeline.concurrency import map_ordered
from pipeline.inference import input_transform
from pipeline.model import Activation, Normalization
from pipeline.training.augment.geometric import flip_and_turn, warp_reach
from pipeline.training.augment.parameters import AugmentParams, WindowStack
from pipeline.training.augment.photometric import adjust_photometry
from pipeline.training.augment.sample_and_apply import apply_params, sample_params
from pipeline.training.data.samples import read_padded
from pipeline.training.data.splits import Area
from pipeline.training.data.windows import MAX_DRAWS, TrainingWindow, WindowSampler
from pipeline.training.labels.polygon_labels import UNLABELLED
from pipeline.training.sample import Sample
from pipeline.training.settings.spec import TrainSpec

PREFETCH_BATCHES = 4
"""Batches prepared in advance; bounds memory."""
MIN_VALID_SHARE = 0.1
"""Training windows with a smaller share of valid pixels are drawn again."""

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Input, target and weight mask of one step; `outputs` planes as in `TrainSpec.outputs`."""

    pixels: Tensor
    """`(N, bands, H, W)` float32 model input, channels last in memory."""
    target: Tensor
    """`(N, outputs, H - 2 margin, W - 2 margin)` float32, 0 or 1 where `weight_mask` is True."""
    weight_mask: Tensor
    """Same shape, bool: True = valid and labelled; other pixels have no influence."""


class BatchLoader:
    """Loads batches for one network from labelled scenes; a context manager that owns the worker threads."""

    def __init__(
        self, spec: TrainSpec, normalization: Normalization, *, margin: int, device: torch.device | None = None
    ) -> None:
        """Batches lie on `device`, by default the CPU."""
        self.spec = spec
        self.normalization = normalization
        self.margin = margin
        self.device = device or torch.device("cpu")
        self.core_size = spec.samples.tile_size - 2 * margin
        self.batches_per_epoch = -(-spec.samples.windows_per_epoch // spec.samples.batch_size)
        self._cached_sampler: tuple[Sequence[Area], WindowSampler] | None = None
        self._torch_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(
            spec.samples.threads,
            thread_name_prefix="samples",
            initializer=torch.set_num_threads,  # of the calling thread, and of threads that start later
            initargs=(1,),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._torch_threads)

    def training(self, areas: Sequence[Area], epoch: int, *, start: int = 0) -> Iterator[Batch]:
        """The random batches of an epoch from number `start` on; each depends only on seed, epoch and its number."""

        def make(index: int) -> _Raw:
            rngs = (np.random.default_rng([self.spec.seed, 2, epoch, index, k]) for k in range(size))
            return _stack([self._training_item(sampler, bands, rng) for rng in rngs])

        size, bands, sampler = self.spec.samples.batch_size, len(areas[0].source.scene.bands), self._sampler_of(areas)
        return self._batches(make, range(start, self.batches_per_epoch))

    def validation(self, cores: Sequence[TrainingWindow]) -> Iterator[Batch]:
        """Batches over held-out cores in order, without augmentation; covers every pixel of a block exactly once."""

        def make(index: int) -> _Raw:
            part = cores[index * size : (index + 1) * size]
            return _stack([self._item(core, self._read(core), AugmentParams()) for core in part])

        size = self.spec.samples.batch_size
        return self._batches(make, range(-(-len(cores) // size)))

    def _batches(self, make: Callable[[int], _Raw], indices: range) -> Iterator[Batch]:
        if self.device.type == "cuda":
            yield from map(self._finish, prefetch(lambda index: make(index).pinned(), indices, self._pool))
        else:
            yield from prefetch(lambda index: self._finish(make(index)), indices, self._pool)

    def _sampler_of(self, areas: Sequence[Area]) -> WindowSampler:
        """Cached, because building it reads every label."""
        if self._cached_sampler is None or self._cached_sampler[0] is not areas:
            self._cached_sampler = areas, WindowSampler(areas, self.spec.samples, self.core_size)
        return self._cached_sampler[1]

    def _training_item(self, sampler: WindowSampler, bands: int, rng: Generator) -> _Item:
        params = sample_params(rng, self.spec.augment, bands=bands)
        reach = warp_reach(params, self.spec.samples.tile_size)
        inner = slice(reach, reach + self.spec.samples.tile_size)
        for _ in range(MAX_DRAWS):
            core = sampler.draw(rng)
            sample = self._read(core, reach=reach)
            if sample.valid[inner, inner].mean() >= MIN_VALID_SHARE:
                break
        return self._item(core, flip_and_turn(sample, params), params)

    def _read(self, core: TrainingWindow, *, reach: int = 0) -> Sample:
        """The input of a core with `reach` pixels around it; pixels that may not count become unlabelled."""
        before = self.margin + reach
        row, col, size = core.row - before, core.col - before, self.core_size + 2 * before
        sample = read_padded(core.source, row, col, size)
        weight_mask = core.usable_pixels(Window(col, row, size, size))
        return replace(sample, target=np.where(weight_mask, sample.target, np.uint8(UNLABELLED)))

    def _item(self, core: TrainingWindow, sample: Sample, params: AugmentParams) -> _Item:
        transform = adjust_photometry(input_transform(core.source.scene, self.normalization), params)
        return replace(sample, pixels=transform.apply(sample.pixels, sample.valid)), params

    def _finish(self, raw: _Raw) -> Batch:
        """Apply the remaining augmentation, and crop the target to the size of the network's output."""
        size, clip = self.spec.samples.tile_size, self.normalization.clip
        stack = apply_params(raw.stack.to(self.device), raw.params, size=size, clip=clip)
        inner = stack.crop(self.core_size)
        target, weight_mask = output_planes(inner.target, inner.valid, activation=self.spec.activation)
        pixels = stack.pixels.contiguous(memory_format=torch.channels_last)
        return Batch(pixels=pixels, target=target, weight_mask=weight_mask)


_Item = tuple[Sample, AugmentParams]
"""One window as model input, flipped and turned, and its augmentation parameters."""


@dataclass(frozen=True, kw_only=True)
class _Raw:
    """A batch before the augmentation that runs on the device."""

    stack: WindowStack
    """Windows; smaller ones are padded on all sides with invalid pixels."""
    params: tuple[AugmentParams, ...]

    def pinned(self) -> _Raw:
        return replace(self, stack=self.stack.pinned())


def _stack(items: Sequence[_Item]) -> _Raw:
    side = max(len(sample.valid) for sample, _ in items)
    first, count = items[0][0], len(items)
    pixels = np.zeros((count, len(first.pixels), side, side), np.float32)
    target = np.full((count, len(first.target), side, side), UNLABELLED, np.uint8)
    valid = np.zeros((count, side, side), bool)
    for row, (sample, _) in enumerate(items):
        length = len(sample.valid)
        at = slice((side - length) // 2, (side - length) // 2 + length)
        pixels[row, :, at, at], target[row, :, at, at], valid[row, at, at] = sample.pixels, sample.target, sample.valid
    stack = WindowStack(pixels=torch.from_numpy(pixels), target=torch.from_numpy(target), valid=torch.from_numpy(valid))
    return _Raw(stack=stack, params=tuple(params for _, params in items))


def output_planes(target: Tensor, valid: Tensor, *, activation: Activation) -> tuple[Tensor, Tensor]:
    """Target planes of the network's outputs and their weight mask, each `(N, outputs, H, W)`, float32 and bool.

    `target` is `(N, classes, H, W)`: 1 object, 0 none, 255 unlabelled; `valid` is `(N, H, W)`. With `softmax` the
    background comes first, and of several classes at a pixel the first wins.
    """
    present, labelled = target == 1, (target != UNLABELLED) & valid[:, None]
    if activation == "sigmoid":
        return present.float(), labelled
    first = present & (present.cumsum(dim=1, dtype=torch.uint8) == 1)
    planes = torch.cat([~present.any(dim=1, keepdim=True), first], dim=1).float()
    return planes, labelled.all(dim=1, keepdim=True).expand_as(planes)


def prefetch(make: Callable[[int], Made], indices: Sequence[int], pool: Executor) -> Iterator[Made]:
    """Yield `make(index)` for each index in order, with at most `PREFETCH_BATCHES` in advance; see `map_ordered`."""
    return map_ordered(make, indices, pool, ahead=PREFETCH_BATCHES)
