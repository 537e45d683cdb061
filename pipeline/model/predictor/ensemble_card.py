"""Model card of an ensemble, merged from the cards of its models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from pipeline.errors import ModelError, SettingsError
from pipeline.model.card import ModelCard

MUST_AGREE = ("bands", "classes", "activation", "background", "dtype", "resolution_m", "margin")
"""Fields of the card in which the models of an ensemble must agree."""


def merge_cards(cards: Sequence[ModelCard], *, threshold: float | None) -> ModelCard:
    """The card of an ensemble: shared facts, sizes that suit all models, and probabilities as output.

    Its normalisation is the first model's; members keep their own.

    Args:
        cards: of the models, in order.
        threshold: replaces theirs.
    """
    first = cards[0]
    for key in MUST_AGREE:
        _check_same(key, [getattr(card, key) for card in cards])
    stride = math.lcm(*(card.stride for card in cards))
    return replace(
        first,
        outputs="probabilities",
        temperature=1.0,
        threshold=_joint_threshold(cards, threshold),
        stride=stride,
        size_offset=_joint_offset(cards, stride),
        tile_size=_joint_tile_size(cards),
        receptive_field=_largest([card.receptive_field for card in cards]),
        aligned_halo=_largest([card.aligned_halo for card in cards]),
        training={"models": len(cards)},
    )


def _largest(reaches: Sequence[int | None]) -> int | None:
    """The largest, None being larger than any."""
    known = [reach for reach in reaches if reach is not None]
    return max(known) if len(known) == len(reaches) else None


def _check_same(key: str, values: Sequence[object]) -> None:
    for number, value in enumerate(values[1:], start=2):
        if value != values[0]:
            raise ModelError(
                f"the models of an ensemble must agree in {key}, but the first has {values[0]} and number {number} "
                f"has {value}; run them one by one"
            )


def _joint_threshold(cards: Sequence[ModelCard], threshold: float | None) -> float:
    own = [card.threshold for card in cards]
    if cards[0].activation == "softmax" or len(set(own)) == 1:
        return own[0]
    if threshold is None:
        raise SettingsError(
            f"polygons.threshold must be set for these models: their own differ ({', '.join(f'{t:g}' for t in own)}), "
            "and neither suits the mean of their probabilities; choose one on validation data"
        )
    return threshold


def _joint_offset(cards: Sequence[ModelCard], stride: int) -> int:
    """The sizes modulo `stride` that all take."""
    for offset in range(stride):
        if all(offset % card.stride == card.size_offset for card in cards):
            return offset
    rules = ", ".join(f"{card.size_offset} modulo {card.stride}" for card in cards)
    raise ModelError(f"no tile size suits all models of the ensemble: they take {rules}; run them one by one")


def _joint_tile_size(cards: Sequence[ModelCard]) -> int | None:
    sizes = {card.tile_size for card in cards} - {None}
    if len(sizes) > 1 or any(size is not None and not card.takes(size) for size in sizes for card in cards):
        raise ModelError(
            f"no tile size suits all models of the ensemble: one takes {min(s for s in sizes if s)} px only; "
            "run them one by one"
        )
    return next(iter(sizes), None)
