"""Loss settings: weighted terms, class weights and the constants of each term."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from pipeline.errors import SettingsError

Balance = Literal["equal", "balanced"]
TERMS = ("bce", "cross_entropy", "dice", "focal", "tversky", "focal_tversky", "lovasz")
USED_BY: dict[str, tuple[str, ...]] = {
    "focal_gamma": ("focal",),
    "focal_alpha": ("focal",),
    "tversky_alpha": ("tversky", "focal_tversky"),
    "tversky_beta": ("tversky", "focal_tversky"),
    "focal_tversky_gamma": ("focal_tversky",),
    "label_smoothing": ("bce", "cross_entropy"),
}
"""The terms that use a key; a key that none of the chosen terms uses must keep its default."""


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """The loss to minimise: `sum of weight * term`."""

    terms: dict[str, float] = field(default_factory=lambda: {"bce": 1.0, "dice": 1.0})
    """Weight per term, each at least 0 and one above 0; `bce` of exclusive classes is their cross-entropy."""
    class_weights: tuple[float, ...] | Balance = "equal"
    """Weight of a pixel of each class (1 for no class), above 0; or `equal`, or `balanced` by measured shares."""
    label_smoothing: float = 0.0
    """Label smoothing in `bce` and `cross_entropy`, 0 to 0.5."""
    focal_gamma: float = 2.0
    """How strongly focal loss reduces the weight of easy pixels, 0 to 5; 0 is cross-entropy."""
    focal_alpha: float | None = 0.25
    """Weight of the class's pixels in focal loss, 0 to 1; others get 1 minus it; None = no weights. Only `sigmoid`."""
    tversky_alpha: float = 0.3
    """Weight of false positives, 0 to 1."""
    tversky_beta: float = 0.7
    """Weight of false negatives, 0 to 1; above `tversky_alpha` it favours recall."""
    focal_tversky_gamma: float = 1.3333
    """Focal-Tversky is `(1 - TI)**(1 / gamma)`, 1 to 3; 4/3 is the best of its paper."""

    def __post_init__(self) -> None:
        self._check_terms()
        self._check_class_weights()
        bounds = {
            "label_smoothing": (0, 0.5),
            "focal_gamma": (0, 5),
            "focal_alpha": (0, 1),
            "tversky_alpha": (0, 1),
            "tversky_beta": (0, 1),
            "focal_tversky_gamma": (1, 3),
        }
        for key, (lower, upper) in bounds.items():
            value = getattr(self, key)
            if value is not None and not lower <= value <= upper:
                raise SettingsError(f"{key} must be from {lower} to {upper}, not {value}")
        self._check_used()

    def _check_terms(self) -> None:
        for name, weight in self.terms.items():
            if name not in TERMS:
                raise SettingsError(f"terms: {name!r} is no loss; known terms are {', '.join(TERMS)}")
            if not 0 <= weight < math.inf:
                raise SettingsError(f"terms.{name} must be a weight of at least 0, not {weight}")
        if not self.chosen:
            raise SettingsError(f"terms must name a loss with a weight above 0, not {self.terms}; e.g. {{bce: 1}}")
        if {"bce", "cross_entropy"} <= set(self.chosen):
            raise SettingsError("terms: bce is for independent classes, cross_entropy for exclusive ones; take one")

    def _check_class_weights(self) -> None:
        weights = () if isinstance(self.class_weights, str) else self.class_weights
        if self.class_weights == () or not all(0 < weight < math.inf for weight in weights):
            raise SettingsError(
                f"class_weights must be equal, balanced or one number above 0 per class, not {self.class_weights}"
            )

    def _check_used(self) -> None:
        for key in fields(self):
            used_by = USED_BY.get(key.name, TERMS)
            if getattr(self, key.name) != key.default and not set(self.chosen) & set(used_by):
                raise SettingsError(
                    f"{key.name} = {getattr(self, key.name)} has no effect without the term "
                    f"{' or '.join(used_by)}; terms are {', '.join(self.chosen)}"
                )

    @property
    def chosen(self) -> dict[str, float]:
        """The terms whose weight is above 0."""
        return {name: weight for name, weight in self.terms.items() if weight > 0}
