"""Training facts of a model card, read leniently: other versions or tools may omit any of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.model import ModelCard
from pipeline.text import markdown

PARTS = ("validation", "test")
"""The held-out parts, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Access to the `training` section of a card; missing facts read as None or empty."""

    card: ModelCard

    def at(self, *keys: str) -> object:
        """The value at a path of keys; None where there is none."""
        found: object = self.card.training
        for key in keys:
            if not isinstance(found, Mapping):
                return None
            found = found.get(key)
        return found

    def number(self, *keys: str) -> float | None:
        """A finite number, else None."""
        return as_number(self.at(*keys))

    def texts(self, *keys: str) -> list[str]:
        """A list of names, empty where there is none."""
        found = self.at(*keys)
        return [str(each) for each in found] if isinstance(found, Sequence) and not isinstance(found, str) else []

    def table(self, *keys: str) -> Mapping[str, object]:
        """A map, empty where there is none."""
        found = self.at(*keys)
        return found if isinstance(found, Mapping) else {}

    def scores(self, part: str) -> Mapping[str, object]:
        """Metrics of a held-out part; cards of version 0.1 hold only those of validation, without its name."""
        metrics = self.table("metrics")
        if part == "validation" and part not in metrics and "iou" in metrics:
            return metrics
        return self.table("metrics", part)

    def class_scores(self, part: str) -> dict[str, Mapping[str, object]]:
        """Metrics of each class on a held-out part, classes in the card's order."""
        classes = self.scores(part).get("classes")
        rows = classes if isinstance(classes, Mapping) else {}
        return {name: rows[name] for name in self.card.classes if isinstance(rows.get(name), Mapping)}

    def ece(self, part: str) -> tuple[float | None, float | None]:
        """Expected calibration error before and after calibration."""
        scores = self.scores(part)
        before, after = as_number(scores.get("ece_before")), as_number(scores.get("ece"))
        if part == "validation" and after is None:
            return self.number("calibration", "ece_before"), self.number("calibration", "ece_after")
        return before, after


def as_number(value: object) -> float | None:
    """A finite number as float, anything else as None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def join_names(names: Sequence[str], max_names: int = 20) -> str:
    """Names joined by commas; those after `max_names` are only counted."""
    shown = ", ".join(markdown(name) for name in names[:max_names])
    return f"{shown} and {len(names) - max_names} more" if len(names) > max_names else shown
