"""Reservoir sampling: a uniform random sample of a stream of pixels in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_PIXELS = 500_000
"""Largest number of pixels kept."""
MAX_VALUES = 8_000_000
"""Largest number of logits kept: with many classes fewer pixels are kept, so that memory stays bounded."""


@dataclass(frozen=True, kw_only=True)
class LogitSample:
    """Pixels drawn at random from all valid, labelled ones."""

    logits: NDArray[np.float32]
    """`(n, outputs)`: outputs of the network."""
    target: NDArray[np.bool_]
    """`(n, outputs)`: the label; only meaningful where valid."""
    valid: NDArray[np.bool_]
    """`(n, outputs)`: False where this output of the pixel is unlabelled; True for at least one output per pixel."""

    def output(self, k: int) -> LogitSample:
        """The sample of one output, e.g. to calibrate or evaluate a single class."""
        part = slice(k, k + 1)
        return LogitSample(logits=self.logits[:, part], target=self.target[:, part], valid=self.valid[:, part])


class Reservoir:
    """Keeps the pixels with the smallest of seeded random keys, one drawn per pixel in order of arrival.

    The keys do not depend on the pixels, so the sample is uniform, without replacement, and the same for the same
    batches. Once the reservoir is full, one comparison discards nearly all pixels.
    """

    def __init__(self, outputs: int, *, seed: int = 0, max_pixels: int = MAX_PIXELS) -> None:
        self.limit = max(1, min(max_pixels, MAX_VALUES // outputs))
        self._rng = np.random.default_rng([seed, 7])
        self._bound = 1.0
        self._keys = np.empty(0)
        self._pixels = LogitSample(
            logits=np.empty((0, outputs), np.float32),
            target=np.empty((0, outputs), bool),
            valid=np.empty((0, outputs), bool),
        )

    def add(self, logits: Tensor, target: Tensor, valid: Tensor) -> None:
        """Sample from a batch, all `(N, outputs, H, W)`."""
        keys = self._rng.random(logits[:, 0].numel())
        chosen = np.flatnonzero(keys < self._bound)
        found = LogitSample(
            logits=_gather(logits, chosen).astype(np.float32, copy=False),
            target=_gather(target, chosen) > 0,
            valid=_gather(valid, chosen).astype(bool, copy=False),
        )
        kept = np.flatnonzero(found.valid.any(axis=1))
        self._keys = np.concatenate([self._keys, keys[chosen[kept]]])
        self._pixels = _concatenate(self._pixels, _select(found, kept))
        if len(self._keys) > 1.25 * self.limit:
            self._shrink()

    @property
    def sample(self) -> LogitSample:
        """The pixels kept so far, at most `limit`."""
        self._shrink()
        return self._pixels

    def _shrink(self) -> None:
        if len(self._keys) <= self.limit:
            return
        kept = np.sort(np.argpartition(self._keys, self.limit - 1)[: self.limit])
        self._keys, self._pixels = self._keys[kept], _select(self._pixels, kept)
        self._bound = float(self._keys.max())


def _gather(values: Tensor, chosen: NDArray[np.intp]) -> NDArray[np.float32]:
    """`(n, outputs)` values of `(N, outputs, H, W)` at flat pixel indices, in their own type."""
    height, width = values.shape[2:]
    n, inside = np.divmod(chosen, height * width)
    row, col = np.divmod(inside, width)
    at = [torch.from_numpy(each).to(values.device) for each in (n, row, col)]
    taken: NDArray[np.float32] = values[at[0], :, at[1], at[2]].cpu().numpy()
    return taken


def _select(sample: LogitSample, which: NDArray[np.intp]) -> LogitSample:
    return LogitSample(logits=sample.logits[which], target=sample.target[which], valid=sample.valid[which])


def _concatenate(first: LogitSample, second: LogitSample) -> LogitSample:
    return LogitSample(
        logits=np.concatenate([first.logits, second.logits]),
        target=np.concatenate([first.target, second.target]),
        valid=np.concatenate([first.valid, second.valid]),
    )
