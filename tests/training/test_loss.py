"""Losses equal a slow reference, ignore invalid pixels, and have finite gradients everywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import SettingsError
from pipeline.model.card import Activation
from pipeline.training.losses.inputs import MAX_BALANCED_WEIGHT, resolve_weights
from pipeline.training.losses.loss import make_loss
from pipeline.training.settings.losses import TERMS, LossSpec

SHAPE = (2, 3, 4, 5)
SHARES = {"sigmoid": [0.3, 0.1, 0.02], "softmax": [0.3, 0.02]}
WEIGHTS = {"sigmoid": (2.0, 0.5, 3.0), "softmax": (0.5, 3.0)}
INDEPENDENT = [name for name in TERMS if name != "cross_entropy"]
CASES = [("sigmoid", name) for name in INDEPENDENT] + [("softmax", name) for name in TERMS]


@dataclass
class Case:
    """A small batch, as tensors."""

    logits: torch.Tensor
    target: torch.Tensor
    valid: torch.Tensor

    @property
    def given(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.logits, self.target, self.valid


def random_case(activation: Activation, seed: int = 0, share: float = 0.5, counts: float = 0.7) -> Case:
    """`share` is that of each independent class; of exclusive ones 0 means all background, 1 all of the last."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(SHAPE, generator=rng) * 3
    if activation == "sigmoid":
        target = (torch.rand(SHAPE, generator=rng) < share).float()
        return Case(logits, target, torch.rand(SHAPE, generator=rng) < counts)
    drawn = torch.randint(3, (2, 4, 5), generator=rng)
    index = {0.0: torch.zeros_like(drawn), 1.0: torch.full_like(drawn, 2)}.get(share, drawn)
    target = torch.nn.functional.one_hot(index, 3).permute(0, 3, 1, 2).float().contiguous()
    return Case(logits, target, (torch.rand((2, 1, 4, 5), generator=rng) < counts).expand(SHAPE).contiguous())


@dataclass
class Pixel:
    """One pixel of one class as the reference sees it."""

    z: float
    p: float
    t: float


def pixels_of(case: Case, k: int, activation: Activation) -> Iterator[Pixel]:
    z, t, c = (each.double().numpy() for each in case.given)
    for n, i, j in itertools.product(range(2), range(4), range(5)):
        if c[n, k, i, j]:
            powers = [math.exp(each) for each in z[n, :, i, j]]
            p = powers[k] / sum(powers) if activation == "softmax" else 1 / (1 + math.exp(-z[n, k, i, j]))
            yield Pixel(float(z[n, k, i, j]), p, float(t[n, k, i, j]))


def jaccard_loss(true: list[bool], wrong: set[int]) -> float:
    """`1 - IoU` when exactly the pixels `wrong` are decided wrongly."""
    found = [t != (i in wrong) for i, t in enumerate(true)]
    both = sum(t and f for t, f in zip(true, found, strict=True))
    either = sum(t or f for t, f in zip(true, found, strict=True))
    return 1 - both / either if either else 0.0


def slow_lovasz(pixels: list[Pixel], activation: Activation) -> float:
    hinge = activation == "sigmoid"
    errors = [max(0.0, 1 - each.z * (2 * each.t - 1)) if hinge else abs(each.t - each.p) for each in pixels]
    order = sorted(range(len(pixels)), key=lambda i: -errors[i])
    true, total = [each.t == 1 for each in pixels], 0.0
    for i in range(len(order)):
        total += errors[order[i]] * (jaccard_loss(true, set(order[: i + 1])) - jaccard_loss(true, set(order[:i])))
    return total


def slow_class(name: str, pixels: list[Pixel], activation: Activation, spec: LossSpec) -> float:
    """One class's part of a term that is a mean over classes."""
    if name == "lovasz":
        return slow_lovasz(pixels, activation)
    hits = sum(each.p * each.t for each in pixels)
    false_positives = sum(each.p * (1 - each.t) for each in pixels)
    false_negatives = sum((1 - each.p) * each.t for each in pixels)
    if name == "dice":
        return 1 - (2 * hits + 1) / (2 * hits + false_positives + false_negatives + 1)
    wrong = spec.tversky_alpha * false_positives + spec.tversky_beta * false_negatives
    miss = 1 - (hits + 1) / (hits + wrong + 1)
    return miss if name == "tversky" else miss ** (1 / spec.focal_tversky_gamma)


def slow_pixel(name: str, pixel: Pixel, spec: LossSpec) -> float:
    """One pixel's part of a term of independent classes that is a mean over pixels."""
    if name == "bce":
        t = pixel.t * (1 - spec.label_smoothing) + spec.label_smoothing / 2
        return -(t * math.log(pixel.p) + (1 - t) * math.log(1 - pixel.p))
    p_t = pixel.p if pixel.t else 1 - pixel.p
    alpha_t = 1.0
    if spec.focal_alpha is not None:
        alpha_t = spec.focal_alpha if pixel.t else 1 - spec.focal_alpha
    return -alpha_t * (1 - p_t) ** spec.focal_gamma * math.log(p_t)


def slow_exclusive_pixel(name: str, pixels: tuple[Pixel, ...], spec: LossSpec) -> float:
    smoothed = [each.t * (1 - spec.label_smoothing) + spec.label_smoothing / 3 for each in pixels]
    if name in ("bce", "cross_entropy"):
        return -sum(t * math.log(each.p) for t, each in zip(smoothed, pixels, strict=True))
    p_t = next(each.p for each in pixels if each.t)
    return -((1 - p_t) ** spec.focal_gamma) * math.log(p_t)


def slow_term(name: str, case: Case, activation: Activation, spec: LossSpec) -> float:
    """A term by its formula, pixel by pixel; `class_weights` must be numbers or equal."""
    exclusive = activation == "softmax"
    planes = [list(pixels_of(case, k, activation)) for k in range(3)]
    given = spec.class_weights if isinstance(spec.class_weights, tuple) else (1.0,) * (2 if exclusive else 3)
    weights = (1.0, *given) if exclusive else given
    if name in ("dice", "tversky", "focal_tversky", "lovasz"):
        first = 1 if exclusive else 0
        parts = [weights[k] * slow_class(name, planes[k], activation, spec) for k in range(first, 3)]
        return sum(parts) / sum(weights[first:])
    if exclusive:
        rows = list(zip(*planes, strict=True))
        weighed = [
            (sum(weights[k] * row[k].t for k in range(3)), slow_exclusive_pixel(name, row, spec)) for row in rows
        ]
    else:
        weighed = [
            (weights[k] if each.t else 1.0, slow_pixel(name, each, spec)) for k in range(3) for each in planes[k]
        ]
    return sum(w * loss for w, loss in weighed) / sum(w for w, _ in weighed)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("activation", "name"), CASES)
def test_each_term_equals_its_formula(activation: Activation, name: str, share: float) -> None:
    for seed, weights in itertools.product(range(3), ("equal", WEIGHTS[activation])):
        case = random_case(activation, seed, share)
        spec = LossSpec(terms={name: 1}, class_weights=weights)
        loss = make_loss(spec, activation=activation, class_share=SHARES[activation])
        assert float(loss(*case.given)) == pytest.approx(slow_term(name, case, activation, spec), rel=2e-5)


CONSTANTS: list[tuple[str, dict[str, Any]]] = [
    ("bce", {"label_smoothing": 0.2}),
    ("focal", {"focal_gamma": 0.5, "focal_alpha": None}),
    ("focal", {"focal_gamma": 3.0, "focal_alpha": 0.6}),
    ("tversky", {"tversky_alpha": 0.9, "tversky_beta": 0.1}),
    ("focal_tversky", {"tversky_alpha": 0.6, "tversky_beta": 0.4, "focal_tversky_gamma": 3.0}),
]


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("name", "changes"), CONSTANTS)
def test_each_constant_has_its_meaning_in_the_formula(
    activation: Activation, name: str, changes: dict[str, Any]
) -> None:
    case, spec = random_case(activation), LossSpec(terms={name: 1}, **changes)
    loss = make_loss(spec, activation=activation, class_share=SHARES[activation])
    assert float(loss(*case.given)) == pytest.approx(slow_term(name, case, activation, spec), rel=2e-5)
    assert float(loss(*case.given)) != pytest.approx(
        slow_term(name, case, activation, LossSpec(terms={name: 1})), rel=1e-3
    )


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_loss_is_the_weighted_sum_of_its_terms(activation: Activation) -> None:
    terms = {name: 0.5 + k for k, name in enumerate(INDEPENDENT)}
    case = random_case(activation)
    spec = LossSpec(terms={**terms, "bce": 0.0, "focal": 2.0})
    expected = sum(weight * slow_term(name, case, activation, spec) for name, weight in spec.chosen.items())
    loss = make_loss(spec, activation=activation, class_share=SHARES[activation])
    assert float(loss(*case.given)) == pytest.approx(expected, rel=2e-5)


def test_pytorch_agrees_on_the_weighted_cross_entropy() -> None:
    case = random_case("softmax", counts=1.0)
    ours = make_loss(
        LossSpec(terms={"cross_entropy": 1}, class_weights=WEIGHTS["softmax"]), activation="softmax", class_share=[0, 0]
    )
    index, weight = case.target.argmax(1), torch.tensor([1.0, *WEIGHTS["softmax"]])
    theirs = torch.nn.functional.cross_entropy(case.logits, index, weight=weight)
    assert float(ours(*case.given)) == pytest.approx(float(theirs), rel=1e-5)


@pytest.mark.parametrize(("activation", "name"), CASES)
def test_gradients_are_those_of_the_formula(activation: Activation, name: str) -> None:
    case = random_case(activation, seed=3)
    case.logits.requires_grad_()
    loss = make_loss(
        LossSpec(terms={name: 1}, class_weights=WEIGHTS[activation]), activation=activation,
        class_share=SHARES[activation],
    )  # fmt: skip
    loss(*case.given).backward()  # type: ignore[no-untyped-call]
    assert case.logits.grad is not None
    spec = LossSpec(terms={name: 1}, class_weights=WEIGHTS[activation])
    for at in [(0, 0, 0, 0), (1, 1, 2, 3), (0, 2, 3, 4), (1, 0, 1, 1)]:
        values = []
        for step in (-1e-4, 1e-4):
            moved = case.logits.detach().double()
            moved[at] += step
            values.append(slow_term(name, Case(moved, case.target, case.valid), activation, spec))
        slope = (values[1] - values[0]) / 2e-4
        assert float(case.logits.grad[at]) == pytest.approx(slope, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("weights", ["equal", "balanced"])
@pytest.mark.parametrize(("activation", "name"), CASES)
def test_pixels_that_do_not_count_have_no_influence(activation: Activation, name: str, weights: Any) -> None:
    loss = make_loss(
        LossSpec(terms={name: 1}, class_weights=weights), activation=activation, class_share=SHARES[activation]
    )
    case, changed = random_case(activation), random_case(activation)
    changed.logits[~changed.valid], changed.target[~changed.valid] = math.nan, 255
    for each in (case, changed):
        each.logits.requires_grad_()
        loss(*each.given).backward()  # type: ignore[no-untyped-call]
    assert float(loss(*case.given).detach()) == float(loss(*changed.given).detach())
    assert case.logits.grad is not None
    assert changed.logits.grad is not None
    assert torch.equal(case.logits.grad, changed.logits.grad)
    assert (changed.logits.grad[~changed.valid] == 0).all()
    assert (changed.logits.grad[changed.valid] != 0).any()


def _confident(case: Case) -> torch.Tensor:
    return (case.target * 2 - 1) * 100


EXTREMES: dict[str, Callable[[Case], torch.Tensor]] = {
    "right": _confident,
    "wrong": lambda case: -_confident(case),
    "all high": lambda case: torch.full(SHAPE, 100.0),
    "all low": lambda case: torch.full(SHAPE, -100.0),
    "undecided": lambda case: torch.zeros(SHAPE),
}


@pytest.mark.parametrize("extreme", EXTREMES)
@pytest.mark.parametrize(("activation", "name"), CASES)
def test_value_and_gradient_are_finite_everywhere(activation: Activation, name: str, extreme: str) -> None:
    for share, counts, gamma in itertools.product((0.0, 0.5, 1.0), (0.0, 0.7, 1.0), (0.5, 2.0)):
        case = random_case(activation, share=share, counts=counts)
        logits = EXTREMES[extreme](case).requires_grad_()
        changes = {"focal_gamma": gamma} if name == "focal" else {}
        loss = make_loss(LossSpec(terms={name: 1}, **changes), activation=activation, class_share=SHARES[activation])
        value = loss(logits, case.target, case.valid)
        value.backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        assert value.isfinite()
        assert logits.grad.isfinite().all()
        if counts == 0:
            assert float(value.detach()) == 0
        if extreme == "right":
            assert float(value.detach()) == pytest.approx(0, abs=1e-5)


def test_lovasz_of_decided_pixels_is_one_minus_their_iou() -> None:
    case = random_case("softmax", counts=1.0)
    found = torch.nn.functional.one_hot(case.logits.argmax(1), 3).permute(0, 3, 1, 2).bool()
    loss = make_loss(LossSpec(terms={"lovasz": 1}), activation="softmax", class_share=[0.1, 0.1])
    true = case.target.bool()
    iou = [float((found & true)[:, k].sum() / (found | true)[:, k].sum()) for k in (1, 2)]
    assert float(loss(found * 200.0, case.target, case.valid)) == pytest.approx(1 - np.mean(iou), rel=1e-5)


def test_the_loss_is_computed_in_float32() -> None:
    case = random_case("sigmoid")
    loss = make_loss(LossSpec(), activation="sigmoid", class_share=SHARES["sigmoid"])
    assert loss(case.logits.bfloat16(), case.target, case.valid).dtype == torch.float32
    assert float(loss(case.logits.bfloat16(), case.target, case.valid)) == float(
        loss(case.logits.bfloat16().float(), case.target, case.valid)
    )


def test_balanced_weights_make_each_kind_count_the_same() -> None:
    weights = resolve_weights("balanced", [0.1, 0.5], "sigmoid")
    assert weights.present == pytest.approx((5.0, 1.0))
    assert weights.absent == pytest.approx((0.5 / 0.9, 1.0))
    exclusive = resolve_weights("balanced", [0.3, 0.1], "softmax")
    assert exclusive.present == pytest.approx((0.5, 1.0, 3.0))  # shares 0.6, 0.3, 0.1; their median is 0.3
    assert resolve_weights("balanced", [1e-6, 0.4, 0.6], "softmax").present == pytest.approx(
        (1.0, MAX_BALANCED_WEIGHT, 1.0, 0.4 / 0.6)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossSpec(terms={"dise": 1}), r"terms: 'dise' is no loss; known terms are bce, cross_entropy, dice"),
        (lambda: LossSpec(terms={"bce": -1}), "terms.bce must be a weight of at least 0"),
        (lambda: LossSpec(terms={"bce": math.nan}), "terms.bce must be a weight of at least 0"),
        (lambda: LossSpec(terms={"bce": 0}), "terms must name a loss with a weight above 0"),
        (lambda: LossSpec(terms={}), "terms must name a loss"),
        (lambda: LossSpec(terms={"bce": 1, "cross_entropy": 1}), "take one"),
        (lambda: LossSpec(class_weights=(1.0, 0.0)), "class_weights must be equal, balanced or one number above 0"),
        (lambda: LossSpec(class_weights=()), "class_weights must be"),
        (lambda: LossSpec(label_smoothing=0.6), "label_smoothing must be from 0 to 0.5, not 0.6"),
        (lambda: LossSpec(focal_gamma=3), "focal_gamma = 3 has no effect without the term focal"),
        (lambda: LossSpec(terms={"focal": 1}, focal_gamma=-1), "focal_gamma must be from 0 to 5"),
        (lambda: LossSpec(terms={"focal": 1}, label_smoothing=0.1), "no effect without the term bce or cross_entropy"),
        (
            lambda: make_loss(LossSpec(terms={"cross_entropy": 1}), activation="sigmoid", class_share=[0.1]),
            "loss.terms: cross_entropy needs classes that exclude one another; set activation to softmax",
        ),
        (
            lambda: make_loss(LossSpec(class_weights=(1.0, 2.0)), activation="sigmoid", class_share=[0.1]),
            r"loss\.class_weights must be one number per class, 1 in all, not 2",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


def test_shapes_that_do_not_fit_are_refused() -> None:
    case = random_case("sigmoid")
    loss = make_loss(LossSpec(), activation="sigmoid", class_share=[0.1])
    with pytest.raises(ValueError, match="must have one shape, with 1 outputs"):
        loss(*case.given)
