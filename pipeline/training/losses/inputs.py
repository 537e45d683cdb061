"""Loss inputs: logits, target, valid mask and class weights, with shared intermediate results computed once."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pipeline.errors import SettingsError
from pipeline.model import Activation
from pipeline.training.settings.losses import Balance

MAX_BALANCED_WEIGHT = 100.0
"""Upper bound of balanced weights: below about half a percent of the pixels, higher weights make training unstable."""
SMOOTHING = 1.0
"""Pixels added to both sides of each ratio of overlaps: an empty class that is predicted empty costs nothing."""


@dataclass(frozen=True, kw_only=True)
class ClassWeights:
    """Weight of one pixel by its label; resolved once, before training."""

    present: tuple[float, ...]
    """Per output: weight of pixels that are of it. Also the output's weight in means over classes."""
    absent: tuple[float, ...]
    """Per output: weight of pixels that are not of it; for exclusive classes never used, all 0."""

    @property
    def equal(self) -> bool:
        """Whether every pixel has the same weight."""
        return len({*self.present, *(each for each in self.absent if each > 0)}) == 1


@dataclass(frozen=True, kw_only=True)
class OverlapCounts:
    """Soft counts per output, in pixels: sums over the valid pixels of the whole batch."""

    intersection: Tensor
    """`(outputs,)`: `sum(p t)`."""
    predicted: Tensor
    """`(outputs,)`: `sum(p)`."""
    target: Tensor
    """`(outputs,)`: `sum(t)`."""

    def tversky_index(self, false_positives: float, false_negatives: float) -> Tensor:
        """`(I + s) / (I + a * (P - I) + b * (T - I) + s)`, `(outputs,)`, 0..1; I, P, T the three sums, s the smoothing.

        `false_positives` is a, the weight of pixels predicted and not labelled; `false_negatives` is b.
        """
        common = self.intersection
        wrong = false_positives * (self.predicted - common) + false_negatives * (self.target - common)
        return (common + SMOOTHING) / (common + wrong + SMOOTHING)


@dataclass(frozen=True, kw_only=True)
class LossInput:
    """Logits and target of one batch; invalid pixels hold zeros, so that they have no influence."""

    logits: Tensor
    """`(N, outputs, H, W)` float32; 0 and without gradient where invalid."""
    target: Tensor
    """Same shape, float32: 1 or 0; 0 where invalid. Over the outputs of exclusive classes it sums to 1."""
    valid: Tensor
    """Same shape, bool: True = the pixel counts; equal over the outputs of exclusive classes."""
    activation: Activation
    """`sigmoid`: independent outputs; `softmax`: exclusive ones, of which the first is the background."""
    weights: ClassWeights

    @classmethod
    def of(
        cls, logits: Tensor, target: Tensor, valid: Tensor, *, activation: Activation, weights: ClassWeights
    ) -> LossInput:
        """From a network's output in any float type; values at invalid pixels are dropped, NaN included."""
        if not logits.shape == target.shape == valid.shape or logits.shape[1] != len(weights.present):
            raise ValueError(
                f"logits {tuple(logits.shape)}, target {tuple(target.shape)} and counted {tuple(valid.shape)} "
                f"must have one shape, with {len(weights.present)} outputs"
            )
        return cls(
            logits=torch.where(valid, logits.contiguous(), 0).float(),
            target=torch.where(valid, target, 0).float(),
            valid=valid,
            activation=activation,
            weights=weights,
        )

    @property
    def exclusive(self) -> bool:
        """Whether each pixel is of exactly one output."""
        return self.activation == "softmax"

    @property
    def classes(self) -> slice:
        """The outputs that are classes: all but the background of exclusive ones."""
        return slice(1, None) if self.exclusive else slice(None)

    @cached_property
    def probabilities(self) -> Tensor:
        """`(N, outputs, H, W)`, 0..1: sigmoid or softmax of the logits; 0 where invalid."""
        return torch.where(self.valid, self.logits.softmax(1) if self.exclusive else self.logits.sigmoid(), 0)

    @cached_property
    def overlap(self) -> OverlapCounts:
        """Soft overlap of probabilities and target."""
        axes, p, t = (0, 2, 3), self.probabilities, self.target
        return OverlapCounts(intersection=(p * t).sum(axes), predicted=p.sum(axes), target=t.sum(axes))

    @cached_property
    def pixel_weights(self) -> Tensor:
        """Weight of each pixel, 0 where invalid: `(N, outputs, H, W)`; `(N, 1, H, W)` for exclusive classes."""
        if self.exclusive:
            if self.weights.equal:
                return self.valid[:, :1].float()
            return (self.target * self._per_output(self.weights.present)).sum(1, keepdim=True)
        if self.weights.equal:
            return self.valid.float()
        present, absent = self._per_output(self.weights.present), self._per_output(self.weights.absent)
        return torch.where(self.valid, torch.where(self.target > 0, present, absent), 0)

    def mean_over_pixels(self, losses: Tensor) -> Tensor:
        """`sum(w * losses) / sum(w)` over all pixels, `w` the pixel weights; 0 when no pixel is valid."""
        whole = self.pixel_weights.sum()
        return (losses * self.pixel_weights).sum() / torch.where(whole > 0, whole, 1)

    def mean_over_classes(self, losses: Tensor) -> Tensor:
        """`sum(w_k * losses_k) / sum(w_k)` over classes without the background, from `(outputs,)` losses."""
        weights = losses.new_tensor(self.weights.present)[self.classes]
        return (losses[self.classes] * weights).sum() / weights.sum()

    def _per_output(self, values: Sequence[float]) -> Tensor:
        return self.logits.new_tensor(values)[:, None, None]


def resolve_weights(
    setting: tuple[float, ...] | Balance, class_share: Sequence[float], activation: Activation
) -> ClassWeights:
    """The class weights of a setting for measured class shares.

    `balanced` is median frequency balancing (Eigen & Fergus 2015, section 4.3.2): a pixel of kind `c` weighs
    `median(f) / f_c`, `f` being the shares of all kinds. For exclusive classes the kinds are the background
    and the classes; for independent ones each class has two, the class and its absence, so that it weighs
    `0.5 / f` and `0.5 / (1 - f)`. At most `MAX_BALANCED_WEIGHT`; kinds that do not occur weigh 1.

    Given numbers are the weights of pixels that are of a class, against 1 for those of none. `class_share` holds the
    share of valid pixels that are of each class, 0..1, without the background.
    """
    count, exclusive = len(class_share), activation == "softmax"
    if setting == "balanced" and exclusive:
        weights = _balance((max(0.0, 1 - sum(class_share)), *class_share))
        return ClassWeights(present=weights, absent=(0.0,) * len(weights))
    if setting == "balanced":
        pairs = [_balance((share, 1 - share)) for share in class_share]
        return ClassWeights(present=tuple(pair[0] for pair in pairs), absent=tuple(pair[1] for pair in pairs))
    present = (1.0,) * count if setting == "equal" else tuple(float(each) for each in setting)
    if len(present) != count:
        raise SettingsError(f"loss.class_weights must be one number per class, {count} in all, not {len(present)}")
    if exclusive:
        return ClassWeights(present=(1.0, *present), absent=(0.0,) * (count + 1))
    return ClassWeights(present=present, absent=(1.0,) * count)


def _balance(shares: Sequence[float]) -> tuple[float, ...]:
    median = statistics.median([share for share in shares if share > 0] or [1.0])
    return tuple(min(median / share, MAX_BALANCED_WEIGHT) if share > 0 else 1.0 for share in shares)
