"""Optimizer steps follow their settings, and depend on nothing outside the saved state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.errors import SettingsError
from pipeline.training.data.loader import Batch
from pipeline.training.optimizer import count_drops, make_optimizer, rate_factor, resolve_autocast_dtype
from pipeline.training.settings.learning import OptimizationSpec
from pipeline.training.trainer import EMA, Trainer

PLAIN = OptimizationSpec(optimizer="sgd", momentum=0.0, learning_rate=0.1, weight_decay=0.0, schedule="constant",
                     warmup_epochs=0.0, clip_norm=0.0, precision="float32", device="cpu")  # fmt: skip


def squared(logits: Tensor, target: Tensor, weight_mask: Tensor) -> Tensor:
    return ((logits - target) ** 2)[weight_mask].mean()


def network(*, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(dropout), nn.Conv2d(4, 1, 1))


def batch(seed: int, size: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, 2, 8, 8, generator=generator)
    target = (torch.rand(size, 1, 8, 8, generator=generator) < 0.3).float()
    return Batch(pixels=pixels, target=target, weight_mask=torch.ones_like(target, dtype=torch.bool))


def trainer_of(spec: OptimizationSpec, *, batches: int = 4, model: nn.Module | None = None, seed: int = 0) -> Trainer:
    return Trainer(model or network(), squared, spec, batches=batches, seed=seed)


def weights(made: Trainer) -> Tensor:
    return torch.cat([p.detach().flatten() for p in made.network.parameters()])


@given(st.integers(1, 5), st.integers(1, 7))
def test_accumulated_batches_step_along_the_gradient_of_their_mean_loss(accumulate: int, batches: int) -> None:
    model = nn.Conv2d(2, 1, 3, padding=1)
    made = trainer_of(replace(PLAIN, accumulate=accumulate), batches=batches, model=model)
    expected = nn.Conv2d(2, 1, 3, padding=1)
    expected.load_state_dict(model.state_dict())
    data = [batch(k) for k in range(batches)]
    for index, each in enumerate(data):
        made.step(each, epoch=1, index=index)
    for start in range(0, batches, accumulate):
        group = data[start : start + accumulate]
        loss = torch.stack([squared(expected(b.pixels), b.target, b.weight_mask) for b in group]).mean()
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= PLAIN.learning_rate * gradient
    for mine, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


SPECS = {
    "adamw": OptimizationSpec(learning_rate=1e-2, precision="float32", device="cpu"),
    "adam": OptimizationSpec(optimizer="adam", learning_rate=1e-2, precision="float32", device="cpu", accumulate=2),
    "momentum": replace(PLAIN, momentum=0.9, ema_decay=0.9),
    "plain": PLAIN,
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("stop", [2, 4])
def test_a_trainer_that_loads_a_state_continues_to_the_same_bits(spec: OptimizationSpec, stop: int) -> None:
    whole, first = trainer_of(spec, model=network(dropout=0.3)), trainer_of(spec, model=network(dropout=0.3))
    losses = [whole.step(batch(k), epoch=1, index=k) for k in range(4)]
    for k in range(stop):
        first.step(batch(k), epoch=1, index=k)
    saved = {key: value.clone().contiguous() for key, value in first.state_dict().items()}
    second = trainer_of(spec, model=nn.Sequential(*network(dropout=0.3).children()), seed=0)
    second.load_state_dict(saved)
    torch.rand(7)
    assert [second.step(batch(k), epoch=1, index=k) for k in range(stop, 4)] == losses[stop:]
    ended, expected = second.state_dict(), whole.state_dict()
    assert ended.keys() == expected.keys()
    assert all(torch.equal(ended[key], expected[key]) for key in expected)
    assert all(ended[key].stride() == expected[key].stride() for key in expected)


def test_dropout_is_seeded_by_the_step_and_by_nothing_before_it() -> None:
    def loss(seed: int, index: int) -> float:
        torch.rand(index + 3)
        return trainer_of(PLAIN, model=network(dropout=0.5), seed=seed).step(batch(0), epoch=1, index=index)

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(0, 1), loss(1, 0)}) == 3


def test_a_loss_that_is_not_finite_leaves_the_weights_as_they_were() -> None:
    made = trainer_of(SPECS["adamw"])
    before = weights(made)
    bad = batch(0)
    bad.target[0, 0, 0, 0] = math.inf
    assert made.step(bad, epoch=1, index=0) == math.inf
    assert torch.equal(weights(made), before)
    assert made.is_finite()


def test_weights_that_are_not_finite_are_noticed() -> None:
    made = trainer_of(PLAIN)
    next(made.network.parameters()).data[0] = math.nan
    assert not made.is_finite()


@pytest.mark.parametrize(("clip", "moved"), [(0.0, 8.0), (1.0, 0.1), (1000.0, 8.0)])
def test_gradients_longer_than_the_norm_are_cut_to_it(clip: float, moved: float) -> None:
    model = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    made = trainer_of(replace(PLAIN, clip_norm=clip), model=model)
    ones = torch.ones(1, 1, 4, 4)
    made.step(Batch(pixels=4 * ones, target=10 * ones, weight_mask=ones > 0), epoch=1, index=0)  # gradient -80
    assert float(model.weight.detach()) == pytest.approx(moved)


def test_the_average_follows_its_formula_and_is_what_is_kept() -> None:
    model = network()
    made = trainer_of(replace(PLAIN, ema_decay=0.5), batches=6, model=model)
    expected = {key: value.clone() for key, value in model.state_dict().items()}
    for index in range(6):
        made.step(batch(index), epoch=1, index=index)
        share = 1 - min(0.5, (2 + index) / (11 + index))  # step t = index + 1
        for key, value in model.state_dict().items():
            mixed = expected[key] + share * (value - expected[key]) if value.is_floating_point() else value
            expected[key] = mixed.clone()
    assert made.checkpoint_network is not made.network
    for key, value in made.checkpoint_network.state_dict().items():
        torch.testing.assert_close(value, expected[key])
    logits, _, _ = made.predict(batch(9))
    torch.testing.assert_close(logits, made.checkpoint_network.eval()(batch(9).pixels))


def test_an_average_of_constant_weights_is_those_weights() -> None:
    model = network()
    average = EMA(model, 0.999)
    for step in range(1, 9):
        average.update(step)
    for key, value in average.network.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[key])


def test_only_an_optimizer_step_ends_a_state_that_is_whole() -> None:
    made = trainer_of(replace(PLAIN, accumulate=3), batches=8)
    assert [made.is_between_steps(count) for count in range(9)] == [count in (0, 3, 6, 8) for count in range(9)]


def test_the_learning_rate_follows_its_schedule() -> None:
    spec = OptimizationSpec(epochs=10, warmup_epochs=2)
    factors = [rate_factor(step, 5, spec) for step in range(51)]
    assert factors[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[30] == pytest.approx(0.5)
    assert factors[50] == pytest.approx(0)
    assert rate_factor(400, 5, replace(spec, schedule="constant")) == 1
    assert max(rate_factor(step, 4, OptimizationSpec(epochs=1)) for step in range(4)) == 1


def test_the_learning_rate_drops_in_steps_as_torch_does_it() -> None:
    spec = OptimizationSpec(epochs=30, warmup_epochs=0, schedule="step")
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], spec)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.1)
    for epoch in range(30):
        assert rate_factor(epoch * 3 + 2, 3, spec) * spec.learning_rate == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@given(st.lists(st.integers(0, 4).map(lambda k: k / 4), max_size=30), st.integers(1, 5))
def test_the_learning_rate_drops_on_plateaus_as_torch_does_it(scores: list[float], patience: int) -> None:
    spec = OptimizationSpec(schedule="plateau", warmup_epochs=0, drop_epochs=patience, drop_factor=0.5)
    optimizer = make_optimizer([nn.Parameter(torch.zeros(1))], spec)
    judge = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, "max", 0.5, patience - 1, threshold=0, min_lr=0, eps=0
    )  # it drops once more than `patience` epochs were bad
    for score in scores:
        judge.step(score)
    expected = optimizer.param_groups[0]["lr"]
    assert rate_factor(0, 1, spec, scores) * spec.learning_rate == pytest.approx(expected)


def test_a_run_without_progress_drops_again_and_again() -> None:
    assert [count_drops([0.5] * n, 2) for n in range(8)] == [0, 0, 0, 1, 1, 2, 2, 3]


def test_the_rate_in_use_is_the_one_that_is_reported() -> None:
    model = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    made = trainer_of(replace(PLAIN, schedule="plateau", drop_epochs=1), model=model)
    ones = torch.ones(1, 1, 4, 4)
    made.step(Batch(pixels=ones, target=ones, weight_mask=ones > 0), epoch=3, index=0, scores=(0.5, 0.4))  # gradient -2
    assert made.learning_rate(3, 0, (0.5, 0.4)) == pytest.approx(0.01)
    assert float(model.weight.detach()) == pytest.approx(0.02)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_optimizer_is_torchs_with_our_settings(name: Any) -> None:
    spec = OptimizationSpec(optimizer=name, weight_decay=0.25, learning_rate=0.02)
    made = make_optimizer([nn.Parameter(torch.zeros(1))], spec)
    assert type(made).__name__.lower() == name
    assert (made.defaults["lr"], made.defaults["weight_decay"]) == (0.02, 0.25)
    assert made.defaults.get("momentum") == (0.9 if name == "sgd" else None)


def test_precision_is_the_one_named_or_the_native_one() -> None:
    cpu = torch.device("cpu")
    assert resolve_autocast_dtype("float32", cpu) == torch.float32
    assert resolve_autocast_dtype("bfloat16", cpu) == torch.bfloat16
    assert resolve_autocast_dtype("auto", cpu) in (torch.float32, torch.bfloat16)
    assert resolve_autocast_dtype("float16", torch.device("cuda")) == torch.float16
    with pytest.raises(SettingsError, match=r"learning.precision float16 needs a CUDA device, not cpu"):
        resolve_autocast_dtype("float16", cpu)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizationSpec(epochs=0), "epochs must be at least 1"),
        (lambda: OptimizationSpec(learning_rate=1), "learning_rate must be above 0 and at most 0.1 for adamw, not 1"),
        (lambda: OptimizationSpec(optimizer="sgd", learning_rate=1.5), "at most 1 for sgd, not 1.5"),
        (lambda: OptimizationSpec(learning_rate=math.nan), "learning_rate must be above 0"),
        (lambda: OptimizationSpec(weight_decay=2), "weight_decay must be from 0 to 1, not 2"),
        (lambda: OptimizationSpec(optimizer="sgd", momentum=1), "momentum must be at least 0 and below 1, not 1"),
        (lambda: OptimizationSpec(momentum=0.5), "momentum has no effect with optimizer adamw, only with sgd"),
        (
            lambda: OptimizationSpec(drop_epochs=5),
            "drop_epochs has no effect with schedule cosine, only with step and plateau",
        ),
        (lambda: OptimizationSpec(schedule="step", drop_factor=1), "drop_factor must be above 0 and below 1, not 1"),
        (lambda: OptimizationSpec(warmup_epochs=-1), "warmup_epochs must be at least 0"),
        (lambda: OptimizationSpec(clip_norm=-1), "clip_norm must be at least 0 and finite, not -1"),
        (lambda: OptimizationSpec(accumulate=0), "accumulate must be at least 1"),
        (lambda: OptimizationSpec(ema_decay=1), "ema_decay must be at least 0 and below 1, not 1"),
        (lambda: OptimizationSpec(max_minutes=0), "max_minutes must be above 0"),
        (lambda: OptimizationSpec(save_minutes=-1), "save_minutes must be at least 0"),
        (lambda: OptimizationSpec(schedule="linear"), "schedule must be one of constant, step, cosine, plateau"),  # type: ignore[arg-type]
    ],
)
def test_bounds_of_the_optimization_settings_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


@pytest.mark.gpu
def test_float16_learns_on_a_gpu_and_its_scale_is_saved(cuda: str) -> None:
    made = trainer_of(replace(SPECS["adamw"], precision="float16", device=cuda))
    losses = [made.step(batch(0), epoch=1, index=k) for k in range(4)]
    assert losses[-1] < losses[0]
    saved = made.state_dict()
    assert float(saved["scaler.scale"]) > 1
    trainer_of(replace(SPECS["adamw"], precision="float16", device=cuda)).load_state_dict(saved)
