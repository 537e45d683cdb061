"""Temperature scaling recovers the temperature, reliability is correct, and calibration changes no classification."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional

from pipeline.model.card import Activation
from pipeline.training.data.reservoir import LogitSample
from pipeline.training.validation.calibration import (
    MAX_TEMPERATURE,
    MIN_TEMPERATURE,
    STEP_BELOW_ONE,
    fit_temperature,
    reliability,
    resolvable_temperature,
    scaled_threshold,
)
from pipeline.training.validation.tally import BINS


def honest_sample(activation: Activation, temperature: float, *, n: int = 100_000, seed: int = 0) -> LogitSample:
    """Labels drawn from the very probabilities of `logits / temperature`."""
    rng = np.random.default_rng(seed)
    honest = rng.normal(-0.5, 2.0, (n, 3)).astype(np.float32)
    if activation == "sigmoid":
        target = rng.random((n, 3)) < 1 / (1 + np.exp(-honest))
    else:
        powers = np.exp(honest)
        drawn = (rng.random((n, 1)) > (powers / powers.sum(1, keepdims=True)).cumsum(1)[:, :-1]).sum(1)
        target = np.arange(3) == drawn[:, None]
    return LogitSample(logits=honest * np.float32(temperature), target=target, valid=np.ones((n, 3), bool))


CASES = list(itertools.product(("sigmoid", "softmax"), (0.3, 1.0, 2.5, 8.0)))


@pytest.mark.parametrize(("activation", "temperature"), CASES)
def test_a_known_temperature_is_recovered(activation: Activation, temperature: float) -> None:
    sample = honest_sample(activation, temperature)
    assert fit_temperature(sample, activation) == pytest.approx(temperature, rel=0.02)


def log_loss(sample: LogitSample, activation: Activation, temperature: float) -> float:
    """Mean cross-entropy as torch computes it."""
    logits, target = torch.from_numpy(sample.logits).double() / temperature, torch.from_numpy(sample.target)
    if activation == "sigmoid":
        return functional.binary_cross_entropy_with_logits(logits, target.double()).item()
    return functional.cross_entropy(logits, target.int().argmax(dim=1)).item()


@pytest.mark.parametrize(("activation", "temperature"), CASES)
def test_the_fitted_temperature_has_the_least_entropy(activation: Activation, temperature: float) -> None:
    sample = honest_sample(activation, temperature, n=2000)
    fitted = fit_temperature(sample, activation)
    lowest = log_loss(sample, activation, fitted)
    for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2):
        assert log_loss(sample, activation, fitted * factor) > lowest


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_calibration_brings_the_expected_error_near_zero(activation: Activation) -> None:
    sample = honest_sample(activation, 3.0)
    before = reliability(sample, activation).ece
    after = reliability(sample, activation, fit_temperature(sample, activation)).ece
    assert before > 0.05
    assert after < 0.006


def test_reliability_of_a_class_equals_a_slow_count() -> None:
    sample = honest_sample("sigmoid", 2.0, n=500)
    found = reliability(sample, "sigmoid", 1.5)
    p = 1 / (1 + np.exp(-sample.logits.astype(float) / 1.5))
    total = 0.0
    for m in range(15):
        inside = (p > m / 15) & (p <= (m + 1) / 15)
        assert found.count[m] == inside.sum()
        if inside.any():
            assert found.confidence[m] == pytest.approx(p[inside].mean(), rel=1e-5)
            assert found.accuracy[m] == pytest.approx(sample.target[inside].mean())
            total += inside.mean() * abs(sample.target[inside].mean() - p[inside].mean())
        else:
            assert math.isnan(found.confidence[m])
    assert found.ece == pytest.approx(total, abs=1e-6)


def test_reliability_of_exclusive_classes_is_that_of_the_likeliest() -> None:
    sample = honest_sample("softmax", 2.0, n=500)
    powers = np.exp(sample.logits.astype(float))
    p = powers / powers.sum(1, keepdims=True)
    found = reliability(sample, "softmax")
    assert found.count.sum() == 500
    assert found.count[:5].sum() == 0  # the likeliest of three has a third at least
    right = sample.target[np.arange(500), p.argmax(1)]
    inside = p.max(1) > 14 / 15
    assert found.accuracy[14] == pytest.approx(right[inside].mean())
    assert found.confidence[14] == pytest.approx(p.max(1)[inside].mean(), rel=1e-5)


def test_certain_and_impossible_fall_into_the_outer_bins() -> None:
    logits = np.array([[100.0], [-100.0], [-200.0]], np.float32)
    found = reliability(LogitSample(logits=logits, target=logits > 0, valid=logits > -150), "sigmoid")
    assert (found.count[0], found.count[14], found.count.sum()) == (1, 1, 2)
    assert found.ece == 0


@given(st.floats(MIN_TEMPERATURE, MAX_TEMPERATURE))
def test_a_temperature_never_changes_what_is_decided(temperature: float) -> None:
    sample = honest_sample("softmax", 2.0, n=200)
    plain, scaled = reliability(sample, "softmax"), reliability(sample, "softmax", temperature)
    assert np.nansum(scaled.accuracy * scaled.count) == pytest.approx(np.nansum(plain.accuracy * plain.count))
    assert scaled.count.sum() == 200


temperatures = st.floats(math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)).map(math.exp)


@given(st.floats(-12, 12), st.integers(1, BINS - 1), temperatures)
def test_the_scaled_threshold_decides_as_before(logit: float, step: int, temperature: float) -> None:
    threshold = step / BINS
    middle = math.log(threshold / (1 - threshold))
    assume(abs(logit - middle) > 1e-3 and abs(middle / temperature) < 16)
    before = 1 / (1 + math.exp(-logit)) >= threshold
    assert (1 / (1 + math.exp(-logit / temperature)) >= scaled_threshold(threshold, temperature)) == before


@given(temperatures)
def test_a_pixel_exactly_on_the_threshold_stays_of_its_class(temperature: float) -> None:
    threshold = torch.arange(1, BINS) / BINS
    logits = [torch.logit(threshold)]
    for _ in range(4):
        logits += [torch.nextafter(logits[-1], torch.tensor(math.inf))]
    moved = torch.tensor([scaled_threshold(each, temperature) for each in threshold.tolist()], dtype=torch.float64)
    for each in logits:
        on_it = each.sigmoid() >= threshold
        assert on_it.any()
        assert ((each / temperature).sigmoid() >= moved)[on_it & (moved > STEP_BELOW_ONE)].all()


@given(st.floats(0.001, 0.999), temperatures)
def test_the_scaled_threshold_is_never_all_or_nothing(threshold: float, temperature: float) -> None:
    assert 0 < np.float32(scaled_threshold(threshold, temperature)) < 1


def test_a_temperature_of_one_keeps_every_threshold() -> None:
    assert all(scaled_threshold(step / BINS, 1.0) == step / BINS for step in range(1, BINS))


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_uninformative_samples_keep_temperature_one(activation: Activation) -> None:
    nothing = LogitSample(
        logits=np.empty((0, 3), np.float32), target=np.empty((0, 3), bool), valid=np.empty((0, 3), bool)
    )
    assert fit_temperature(nothing, activation) == 1.0
    assert math.isnan(reliability(nothing, activation).ece)
    undecided = LogitSample(
        logits=np.zeros((4, 3), np.float32), target=np.tile([True, False, False], (4, 1)), valid=np.ones((4, 3), bool)
    )
    assert fit_temperature(undecided, activation) == 1.0


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_temperatures_stay_within_bounds_when_all_is_right_or_wrong(activation: Activation) -> None:
    target = np.tile([True, False, False], (50, 1))
    logits = np.where(target, 3.0, -3.0).astype(np.float32)
    valid = np.ones_like(target)
    right = fit_temperature(LogitSample(logits=logits, target=target, valid=valid), activation)
    wrong = fit_temperature(LogitSample(logits=-logits, target=target, valid=valid), activation)
    assert (right, wrong) == (pytest.approx(MIN_TEMPERATURE), pytest.approx(MAX_TEMPERATURE))
    huge = LogitSample(logits=logits * 1e4, target=target, valid=valid)
    assert MIN_TEMPERATURE <= fit_temperature(huge, activation) <= MAX_TEMPERATURE


@given(temperature=st.floats(MIN_TEMPERATURE, MAX_TEMPERATURE), step=st.integers(1, BINS - 1))
def test_bytes_distinguish_the_two_sides_of_the_threshold(temperature: float, step: int) -> None:
    threshold = step / BINS
    kept = resolvable_temperature(temperature, threshold)
    scaled = scaled_threshold(threshold, kept)
    assert kept >= temperature
    assert 0.0099 <= scaled <= 0.9901
    assert kept == temperature or scaled == pytest.approx(0.99 if threshold > 0.5 else 0.01, abs=1e-4)
    beyond = round(scaled * 254)
    assert 2 <= beyond <= 252
