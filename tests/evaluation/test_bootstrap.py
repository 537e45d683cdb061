"""Intervals of scores: against the closed form, against simulation, and the laws of resampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.evaluation.metrics import bootstrap
from pipeline.evaluation.metrics.bootstrap import percentile_interval, resample_sums
from pipeline.evaluation.records import BootstrapSpec

SPEC = BootstrapSpec()


def interval(counts: NDArray[np.int64], spec: BootstrapSpec = SPEC) -> tuple[float, float]:
    """The interval of `right / counted` for blocks of `(right, counted)`."""
    sums = resample_sums(counts, spec)
    low, high = percentile_interval(sums[:, :1] / sums[:, 1:], spec.confidence)
    return float(low[0]), float(high[0])


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 2**16))
def test_a_resample_draws_as_many_blocks_as_there_are(blocks: int, columns: int, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(0, 100, (blocks, columns))
    sums = resample_sums(np.hstack([counts, np.ones((blocks, 1), np.int64)]), BootstrapSpec(resamples=100, seed=seed))
    assert (sums[:, -1] == blocks).all()
    assert (sums[:, :-1] >= blocks * counts.min(axis=0)).all()
    assert (sums[:, :-1] <= blocks * counts.max(axis=0)).all()


def test_equal_blocks_leave_no_doubt() -> None:
    assert interval(np.tile([30, 100], (20, 1))) == (0.3, 0.3)


def test_a_seed_gives_the_same_interval_however_little_memory_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(1).integers(1, 9, (50, 2))
    first = resample_sums(counts, SPEC)
    monkeypatch.setattr(bootstrap, "MAX_WEIGHTS", 170)
    np.testing.assert_array_equal(first, resample_sums(counts, SPEC))
    assert (resample_sums(counts, replace(SPEC, seed=1)) != first).any()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_a_proportion_gets_the_interval_of_the_closed_form(share: float) -> None:
    n = 2000
    true_positives = np.arange(n) < share * n
    low, high = interval(np.stack([true_positives, np.ones(n)], axis=1).astype(np.int64), replace(SPEC, resamples=4000))
    half = 1.959964 * np.sqrt(share * (1 - share) / n)  # of the normal approximation
    assert low == pytest.approx(share - half, abs=0.06 * half + 1 / n)
    assert high == pytest.approx(share + half, abs=0.06 * half + 1 / n)


def clustered(rng: np.random.Generator, blocks: int = 60, pixels: int = 25) -> NDArray[np.int64]:
    """Blocks whose pixels are right together: each block has a rate of its own, 0.7 on average."""
    rates = rng.beta(3.5, 1.5, blocks)
    return np.stack([rng.binomial(pixels, rates), np.full(blocks, pixels)], axis=1)


def test_blocks_cover_the_true_score_as_often_as_promised_and_single_pixels_do_not() -> None:
    spec, rng, runs = replace(SPEC, resamples=300), np.random.default_rng(5), 300
    by_block = by_pixel = 0
    for _ in range(runs):
        counts = clustered(rng)
        low, high = interval(counts, spec)
        by_block += low <= 0.7 <= high
        pixels = np.repeat([[1, 1], [0, 1]], [counts[:, 0].sum(), (counts[:, 1] - counts[:, 0]).sum()], axis=0)
        share = pixels[:, 0].mean()
        half = 1.959964 * np.sqrt(share * (1 - share) / len(pixels))  # what resampling pixels converges to
        by_pixel += share - half <= 0.7 <= share + half
    assert 0.90 <= by_block / runs <= 0.98  # 0.95 promised, 0.013 of chance, and percentiles of 60 blocks
    assert by_pixel / runs < 0.75


def test_a_score_that_no_resample_defines_has_no_interval() -> None:
    scores = np.array([[np.nan, 0.1], [np.nan, np.nan], [np.nan, 0.1]])
    low, high = percentile_interval(scores, 0.95)
    assert np.isnan([low[0], high[0]]).all()
    assert (low[1], high[1]) == (0.1, 0.1)


def test_without_resamples_or_blocks_there_is_no_interval() -> None:
    none = resample_sums(np.ones((3, 2), np.int64), replace(SPEC, resamples=0))
    assert np.isnan(percentile_interval(none, 0.95)[0]).all()
    assert not resample_sums(np.ones((0, 2), np.int64), SPEC).any()


@pytest.mark.parametrize(
    "wrong",
    [{"block_size": 8}, {"resamples": 99}, {"confidence": 1.0}, {"seed": -1}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_settings_that_mean_nothing_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=f"^{next(iter(wrong))} must"):
        BootstrapSpec(**wrong)  # type: ignore[arg-type]
