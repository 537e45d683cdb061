"""Validation counts: confusion at every threshold, cross-entropy and a logit sample in one pass and constant memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pipeline.model import Activation
from pipeline.training.data.reservoir import LogitSample, Reservoir
from pipeline.training.validation.metrics import Confusion

BINS = 1024
"""Bins of probability, a power of two: `floor(1024 p)` is exact, so `p >= k / 1024` is counted exactly."""


class ValidationCounts:
    """Accumulates batches of logits and targets; read the results after the last one.

    Independent classes: a histogram of probabilities per class and label, whose cumulative sums are the counts at
    every threshold that is a multiple of 1/1024. Exclusive classes: the confusion matrix of the likeliest class.
    """

    def __init__(self, outputs: Sequence[str], activation: Activation, *, seed: int = 0) -> None:
        self.outputs, self.activation = tuple(outputs), activation
        count = len(self.outputs)
        size = count * count if activation == "softmax" else count * 2 * BINS
        self._counts = np.zeros(size, np.int64)
        self._entropy, self._decisions = 0.0, 0
        self._reservoir = Reservoir(count, seed=seed)

    @torch.no_grad()
    def add(self, logits: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add one batch, all `(N, outputs, H, W)` and on one device: any float type, 0/1 where valid, bool."""
        logits = logits.contiguous().float()
        self._reservoir.add(logits, target, valid)
        if self.activation == "softmax":
            self._add_exclusive(logits, target, valid[:, 0])
        else:
            for k in range(len(self.outputs)):
                self._add_class(k, logits[:, k], target[:, k], valid[:, k])

    @property
    def best_threshold(self) -> float:
        """The threshold with the highest mean IoU over the classes that occur in the labels, above 0 and below 1.

        Ties go to the one nearest to 0.5; 0.5 when no class occurs, and for exclusive classes.
        """
        if self.activation == "softmax":
            return 0.5
        found, true = self._predicted_and_labelled()
        occurring = true[:, 1, 0] > 0
        if not occurring.any():
            return 0.5
        true_positives, false_positives, total = found[occurring, 1], found[occurring, 0], true[occurring, 1]
        mean = (true_positives / (total + false_positives)).mean(axis=0)[1:BINS]
        steps = np.arange(1, BINS)
        best = steps[mean >= mean.max() - 1e-12]
        return float(best[np.argmin(np.abs(best - BINS / 2))] / BINS)

    def confusion(self, threshold: float | None = None) -> Confusion:
        """The confusion of `probability >= threshold`, by default at `best_threshold`.

        The threshold is rounded to a multiple of 1/1024. For exclusive classes the likeliest one is predicted.
        """
        if self.activation == "softmax":
            count = len(self.outputs)
            return Confusion.of_matrix(self._counts.reshape(count, count).copy(), background=True)
        found, true = self._predicted_and_labelled()
        at = round((self.best_threshold if threshold is None else threshold) * BINS)
        return Confusion(
            true_positive=found[:, 1, at],
            false_positive=found[:, 0, at],
            false_negative=true[:, 1, 0] - found[:, 1, at],
            true_negative=true[:, 0, 0] - found[:, 0, at],
        )

    @property
    def bce(self) -> float:
        """Mean binary cross-entropy over valid pixels and classes; of exclusive classes their cross-entropy.

        In nats, without class weights or smoothing, summed in float64; NaN when no pixel was valid.
        """
        return self._entropy / self._decisions if self._decisions else float("nan")

    @property
    def sample(self) -> LogitSample:
        """At most 500,000 pixels, drawn uniformly from all valid ones; the same for the same seed and batches."""
        return self._reservoir.sample

    def _add_class(self, k: int, logits: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add a histogram of `(N, H, W)` probabilities; invalid pixels fall into an extra bin, which is dropped."""
        label = target > 0
        bins = (logits.sigmoid() * BINS).int().clamp_(0, BINS - 1) + label * BINS
        bins.masked_fill_(~valid, 2 * BINS)
        found = torch.bincount(bins.flatten(), minlength=2 * BINS + 1)[: 2 * BINS]
        self._counts[k * 2 * BINS : (k + 1) * 2 * BINS] += found.cpu().numpy()
        losses = functional.binary_cross_entropy_with_logits(logits, label.float(), reduction="none")
        self._add_entropy(losses, valid)

    def _add_exclusive(self, logits: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add the matrix of true and likeliest outputs of `(N, outputs, H, W)`; ties go to the first."""
        count = len(self.outputs)
        true, found = _first_largest(target), _first_largest(logits)
        pairs = (true * count + found).masked_fill_(~valid, count * count)
        self._counts += torch.bincount(pairs.flatten(), minlength=count * count + 1)[:-1].cpu().numpy()
        self._add_entropy(-logits.log_softmax(1).gather(1, true[:, None].long())[:, 0], valid)

    def _add_entropy(self, losses: Tensor, valid: Tensor) -> None:
        self._entropy += float(torch.where(valid, losses, 0).sum(dtype=torch.float64))
        self._decisions += int(valid.sum())

    def _predicted_and_labelled(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pixels per class, label (0, 1) and bin: those with `p >= bin / 1024` (bins 0 to 1024), and all of them."""
        histogram = self._counts.reshape(len(self.outputs), 2, BINS)
        found = np.zeros((len(self.outputs), 2, BINS + 1), np.int64)
        found[:, :, :BINS] = histogram[:, :, ::-1].cumsum(axis=2)[:, :, ::-1]
        return found, found[:, :, :1]


def _first_largest(values: Tensor) -> Tensor:
    """Index `(N, H, W)` of the largest of `(N, outputs, H, W)`; plane by plane, as argmax is slow across planes."""
    best, index = values[:, 0], torch.zeros_like(values[:, 0], dtype=torch.int32)
    for k in range(1, values.shape[1]):
        index = torch.maximum(index, (values[:, k] > best).int().mul_(k))
        best = torch.maximum(best, values[:, k])
    return index
