"""Temperature scaling and reliability diagram: calibration of predicted probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.model import Activation
from pipeline.training.data.reservoir import LogitSample

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Bounds of the temperature: only a sample that is all right or all wrong would lead outside."""
MAX_LOGIT = math.log(0.99 / 0.01)
"""Logit of the largest threshold; a higher one leaves fewer than three of a mosaic's 255 levels above it."""
BINS = 15
"""Bins of equal width of the reliability diagram, as in Guo et al. (2017)."""
ROUNDING = 2.0**-21
"""Relative error of a float32 probability, four of its steps."""
STEP_BELOW_ONE = 2.0**-24
"""Distance from 1 to the next smaller float32."""
TOLERANCE = 1e-6
"""Relative step at which the search for the temperature ends."""
MAX_STEPS = 60
"""Steps of that search; halving alone needs 30."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """Reliability diagram: share of correct predictions per confidence bin (Guo et al. 2017, section 2)."""

    confidence: NDArray[np.float64]
    """`(15,)`: mean confidence in each bin, 0..1; NaN where the bin is empty."""
    accuracy: NDArray[np.float64]
    """`(15,)`: share of correct predictions in each bin, 0..1; NaN where the bin is empty."""
    count: NDArray[np.int64]
    """`(15,)`: predictions in each bin; bin m holds confidences in `(m / 15, (m + 1) / 15]`, the first also 0."""

    @property
    def ece(self) -> float:
        """Expected calibration error (Naeini et al. 2015): `sum over bins of count / n * |accuracy - confidence|`.

        0 is perfect; NaN without predictions.
        """
        filled = self.count > 0
        if not filled.any():
            return math.nan
        gap = np.abs(self.accuracy[filled] - self.confidence[filled])
        return float((gap * self.count[filled]).sum() / self.count.sum())


def fit_temperature(sample: LogitSample, activation: Activation) -> float:
    """The temperature T whose probabilities `activation(logits / T)` have the least cross-entropy on a sample.

    Temperature scaling (Guo et al. 2017, section 4.2): one number for all classes, above 1 for an overconfident
    network. It never changes which class is likeliest. The cross-entropy is convex in `1 / T`, so Newton's method,
    kept inside a shrinking bracket, finds its only minimum. 1 when the sample is empty or every temperature is equal.
    """
    low, high, inverse = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE, 1.0
    if abs(_slope(sample, activation, inverse)[0]) < 1e-12:
        return 1.0
    for bound in (low, high):
        if (_slope(sample, activation, bound)[0] > 0) == (bound == low):
            return 1 / bound
    for _ in range(MAX_STEPS):
        slope, curvature = _slope(sample, activation, inverse)
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curvature if curvature > 0 else low
        step = step if low < step < high else math.sqrt(low * high)
        if abs(step - inverse) <= TOLERANCE * inverse:
            return 1 / step
        inverse = step
    return 1 / inverse


def reliability(sample: LogitSample, activation: Activation, temperature: float = 1.0) -> Reliability:
    """Reliability diagram at a temperature.

    Independent classes: the confidence is the probability of the class, correct means the pixel is of it, all
    classes pooled (`sample.output(k)` gives one). Exclusive classes: the confidence is that of the likeliest class.
    """
    logits, target = _valid_pairs(sample, activation)
    scaled = logits / np.float32(temperature)
    if activation == "sigmoid":
        confidence, right = _sigmoid(scaled), target
    else:
        confidence, likeliest = _softmax(scaled).max(axis=1, initial=0), logits.argmax(axis=1)
        right = target[np.arange(len(target)), likeliest]
    bins = bin_of(confidence)
    count = np.bincount(bins, minlength=BINS)
    return Reliability(
        confidence=_mean_per_bin(bins, confidence, count), accuracy=_mean_per_bin(bins, right, count), count=count
    )


def bin_of(confidence: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """The bin of each confidence, see `Reliability.count`."""
    bins: NDArray[np.intp] = np.clip(np.ceil(confidence * BINS).astype(np.intp) - 1, 0, BINS - 1)
    return bins


def resolvable_temperature(temperature: float, threshold: float) -> float:
    """The temperature nearest to a fitted one at which mosaics of bytes still separate the two sides of the threshold.

    An underconfident network gets a temperature below 1, which can push a high threshold beyond the last byte: the
    mosaic would then classify differently from validation. Classification has priority over calibration, so the
    scaled threshold stays within 0.01 to 0.99: `abs(logit(threshold)) / T <= logit(0.99)`. `threshold` is that of
    uncalibrated probabilities, above 0 and below 1.

    >>> resolvable_temperature(0.3, 0.6), round(resolvable_temperature(0.3, 0.97), 3)
    (0.3, 0.756)
    """
    return max(temperature, abs(math.log(threshold / (1 - threshold))) / MAX_LOGIT)


def scaled_threshold(threshold: float, temperature: float) -> float:
    """The threshold of calibrated probabilities that is equivalent to `threshold` of uncalibrated ones.

    `sigmoid(z / T) >= sigmoid(logit(t) / T)  <=>  sigmoid(z) >= t`: calibration never changes the order, so the best
    threshold stays the best. Float32 probabilities are rounded, before and after, so the threshold is lowered by a
    few of their steps: a pixel exactly at it stays in the class. 0.5, which no temperature changes, is exact. Argument
    and result are above 0 and below 1, also where the probability would be rounded to 0 or 1.

    >>> scaled_threshold(0.5, 3.0), scaled_threshold(0.3, 1.0), round(scaled_threshold(0.8, 2.0), 4)
    (0.5, 0.3, 0.6667)
    """
    if threshold == 0.5 or temperature == 1:
        return threshold
    lowered = threshold * (1 - ROUNDING)
    scaled = (1 - ROUNDING) / (1 + math.exp(math.log((1 - lowered) / lowered) / temperature))
    return min(max(scaled, STEP_BELOW_ONE), 1 - STEP_BELOW_ONE)


def _slope(sample: LogitSample, activation: Activation, inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean cross-entropy with respect to `1 / T`."""
    logits, target = _valid_pairs(sample, activation)
    if not len(logits):
        return 0.0, 0.0
    if activation == "sigmoid":
        p = _sigmoid(logits * np.float32(inverse))
        slope, curvature = logits * (p - target), logits**2 * p * (1 - p)
    else:
        p = _softmax(logits * np.float32(inverse))
        mean = (p * logits).sum(axis=1)
        slope, curvature = mean - logits[target], (p * logits**2).sum(axis=1) - mean**2
    return float(slope.mean(dtype=np.float64)), float(curvature.mean(dtype=np.float64))


def _valid_pairs(sample: LogitSample, activation: Activation) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Logits and target where valid: `(n,)` decisions of independent classes, `(n, outputs)` of exclusive ones."""
    which = sample.valid if activation == "sigmoid" else sample.valid[:, 0]
    return sample.logits[which], sample.target[which]


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    probability: NDArray[np.float32] = 0.5 + 0.5 * np.tanh(0.5 * logits)
    return probability


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    largest = logits.max(axis=1, keepdims=True)
    log_sum = largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = np.exp(logits - log_sum)
    return probabilities


def _mean_per_bin(
    bins: NDArray[np.intp], values: NDArray[np.float32] | NDArray[np.bool_], count: NDArray[np.int64]
) -> NDArray[np.float64]:
    means = np.full(BINS, np.nan)
    np.divide(np.bincount(bins, weights=values, minlength=BINS), count, out=means, where=count > 0)
    return means
