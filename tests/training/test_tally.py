"""Validation counts are exact, choose the best threshold, and keep a uniform sample in bounded memory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.card import ModelCard
from pipeline.mosaic.classify import classify
from pipeline.training.data.reservoir import Reservoir
from pipeline.training.validation.metrics import Confusion
from pipeline.training.validation.tally import ValidationCounts

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def random_batches(outputs: int, seed: int = 0, count: int = 3) -> list[Batch]:
    rng = torch.Generator().manual_seed(seed)
    shape = (2, outputs, 9, 8)
    batches = []
    for _ in range(count):
        target = (torch.rand(shape, generator=rng) < 0.3).float()
        logits = 2 * torch.randn(shape, generator=rng) + 3 * target - 1.5
        batches.append((logits, target, torch.rand(shape, generator=rng) < 0.8))
    return batches


def exclusive_batches(outputs: int, seed: int = 0) -> list[Batch]:
    batches = []
    for logits, target, valid in random_batches(outputs, seed):
        index = torch.randint(outputs, target[:, 0].shape, generator=torch.Generator().manual_seed(seed))
        target = torch.nn.functional.one_hot(index, outputs).permute(0, 3, 1, 2).float()
        batches.append((logits, target, valid[:, :1].expand(target.shape)))
    return batches


def tally_of(batches: list[Batch], activation: str = "sigmoid", seed: int = 0) -> ValidationCounts:
    names = [f"class {k}" for k in range(batches[0][0].shape[1])]
    tally = ValidationCounts(names, activation, seed=seed)  # type: ignore[arg-type]
    for batch in batches:
        tally.add(*batch)
    return tally


def direct(batches: list[Batch], threshold: float) -> Confusion:
    total = Confusion.zero(batches[0][0].shape[1])
    for logits, target, valid in batches:
        total += Confusion.of((logits.sigmoid() >= threshold).numpy(), (target > 0).numpy(), valid.numpy())
    return total


@given(step=st.integers(1, 1023), seed=st.integers(0, 20))
def test_counts_at_every_threshold_equal_deciding_each_pixel(step: int, seed: int) -> None:
    batches = random_batches(2, seed)
    ours, theirs = tally_of(batches).confusion(step / 1024), direct(batches, step / 1024)
    for key in ("true_positive", "false_positive", "false_negative", "true_negative"):
        assert getattr(ours, key).tolist() == getattr(theirs, key).tolist()


@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_beats_the_best_and_equals_are_farther_from_one_half(seed: int) -> None:
    batches = random_batches(2, seed)
    tally = tally_of(batches)
    best = tally.best_threshold
    means = {step / 1024: direct(batches, step / 1024).mean_iou for step in range(1, 1024)}
    assert tally.confusion().mean_iou == pytest.approx(max(means.values()))
    equals = [each for each, mean in means.items() if mean == pytest.approx(max(means.values()), abs=1e-12)]
    assert abs(best - 0.5) == min(abs(each - 0.5) for each in equals)


def test_certain_predictions_are_best_decided_at_one_half() -> None:
    target = (torch.arange(64).reshape(1, 1, 8, 8) % 3 == 0).float()
    tally = tally_of([(200 * target - 100, target, target >= 0)])
    assert tally.best_threshold == 0.5
    assert tally.confusion().mean_iou == 1.0


def test_a_class_that_never_occurs_does_not_affect_the_threshold() -> None:
    logits, target, valid = random_batches(2, seed=1, count=1)[0]
    target[:, 1] = 0
    alone = tally_of([(logits[:, :1], target[:, :1], valid[:, :1])])
    assert tally_of([(logits, target, valid)]).best_threshold == alone.best_threshold
    assert tally_of([(logits, torch.zeros_like(target), valid)]).best_threshold == 0.5
    assert tally_of([(logits, target, torch.zeros_like(valid))]).best_threshold == 0.5


def test_entropy_is_the_mean_over_what_counts() -> None:
    batches = random_batches(2)
    losses = [
        torch.nn.functional.binary_cross_entropy_with_logits(z, t, reduction="none")[c].double() for z, t, c in batches
    ]
    assert tally_of(batches).bce == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)
    exclusive = exclusive_batches(3)
    losses = [
        torch.nn.functional.cross_entropy(z, t.argmax(1), reduction="none")[c[:, 0]].double() for z, t, c in exclusive
    ]
    assert tally_of(exclusive, "softmax").bce == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)
    assert math.isnan(ValidationCounts(["a"], "sigmoid").bce)


def test_exclusive_classes_are_decided_by_the_likeliest() -> None:
    batches = exclusive_batches(4)
    tally = tally_of(batches, "softmax")
    pairs = [(z.argmax(1)[c[:, 0]], t.argmax(1)[c[:, 0]]) for z, t, c in batches]
    found, true = (torch.cat(each).numpy() for each in zip(*pairs, strict=True))
    expected = Confusion.of_index(found, true, classes=4, background=True)
    assert np.array_equal(tally.confusion().matrix, expected.matrix)  # type: ignore[arg-type]
    assert tally.confusion(0.9).mean_iou == expected.mean_iou
    assert tally.best_threshold == 0.5


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_pixels_that_do_not_count_are_not_counted(activation: str) -> None:
    batches = random_batches(3) if activation == "sigmoid" else exclusive_batches(3)
    changed = [(z.where(c, math.nan), t.where(c, 255), c) for z, t, c in batches]
    ours, theirs = tally_of(batches, activation), tally_of(changed, activation)
    assert ours.confusion(0.5).as_record("abc") == theirs.confusion(0.5).as_record("abc")
    assert ours.bce == theirs.bce
    valid = ours.sample.valid
    assert np.array_equal(valid, theirs.sample.valid)
    assert np.array_equal(ours.sample.logits[valid], theirs.sample.logits[valid])


def test_a_sample_that_fits_holds_every_pixel_that_counts_somewhere() -> None:
    batches = random_batches(2)
    sample = tally_of(batches).sample
    kept = [c.any(1) for _, _, c in batches]
    for k, name in enumerate(("logits", "target", "valid")):
        expected = torch.cat([each[k].permute(0, 2, 3, 1)[inside] for each, inside in zip(batches, kept, strict=True)])
        assert np.array_equal(getattr(sample, name), expected.numpy())
    assert sample.output(1).logits.tolist() == sample.logits[:, 1:].tolist()


def test_a_full_reservoir_is_even_bounded_and_the_same_for_the_same_seed() -> None:
    def run(seed: int) -> np.ndarray:
        reservoir = Reservoir(1, seed=seed, max_pixels=500)
        for first in range(0, 100_000, 5000):
            number = torch.arange(first, first + 5000, dtype=torch.float32).reshape(1, 1, 50, 100)
            reservoir.add(number, number * 0, number >= 0)
            assert len(reservoir._keys) <= 625
        return reservoir.sample.logits[:, 0]

    one = run(1)
    assert np.array_equal(one, run(1))
    assert not np.array_equal(one, run(2))
    assert len(one) == len(set(one.tolist())) == 500
    shares = np.histogram(np.concatenate([run(seed) for seed in range(20)]), bins=10, range=(0, 100_000))[0] / 10_000
    assert shares == pytest.approx(0.1, abs=0.015)  # five deviations of 10,000 draws


def test_many_classes_keep_fewer_pixels() -> None:
    assert Reservoir(1).limit == Reservoir(16).limit == 500_000
    assert Reservoir(250).limit * 250 <= 8_000_000


def test_thresholds_whose_scores_differ_by_rounding_are_equals() -> None:
    """Below 0.1 the classes score 0.1, 0.2 and 0.3, at one half 0.3, 0.2 and 0.1, which adds up to a little less."""
    pixels = [
        [*[(512, True)] * 3, *[(512, False)] * 7, *[(511, False)] * 20],
        [*[(512, True)] * 2, *[(0, True)] * 8],
        [*[(512, True)] * 1, *[(100, True)] * 2, *[(0, True)] * 7],
    ]
    probability, target, valid = torch.full((1, 3, 1, 30), 0.5), torch.zeros(1, 3, 1, 30), torch.zeros(1, 3, 1, 30)
    for k, row in enumerate(pixels):
        for x, (step, label) in enumerate(row):
            probability[0, k, 0, x], target[0, k, 0, x], valid[0, k, 0, x] = (step + 0.5) / 1024, label, 1
    tally = tally_of([(probability.logit(), target, valid > 0)])
    means = [tally.confusion(step / 1024).mean_iou for step in (50, 300, 512)]
    assert means == [pytest.approx(0.2, abs=1e-15), pytest.approx(0.4 / 3), pytest.approx(0.2, abs=1e-15)]
    assert means[0] > means[2]
    assert tally.best_threshold == 0.5


@given(st.integers(2, 5), st.integers(0, 3))
def test_equal_logits_are_decided_like_equal_levels_of_a_mosaic(outputs: int, seed: int) -> None:
    logits = torch.randint(0, 2, (1, outputs, 6, 7), generator=torch.Generator().manual_seed(seed)).float()
    index = torch.zeros((1, 6, 7), dtype=torch.int64)
    target = torch.nn.functional.one_hot(index, outputs).permute(0, 3, 1, 2).float()
    names = tuple(f"class {k}" for k in range(outputs))
    card = ModelCard(bands=("red",), classes=names, activation="softmax", background=names[0])
    decided = classify(logits[0].numpy().astype(np.uint16), card, top=254)
    tally = tally_of([(logits, target, target >= 0)], "softmax")
    assert tally.confusion().matrix[0].tolist() == np.bincount(decided.ravel(), minlength=outputs).tolist()
