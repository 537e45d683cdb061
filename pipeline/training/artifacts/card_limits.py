"""Known limitations of a network, as sentences for its model card, each derived from numbers on the card."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.model import ModelCard
from pipeline.text import markdown
from pipeline.training.artifacts.card_facts import PARTS, CardFacts, as_number, join_names

MIN_SCENES = 5
"""With fewer training scenes, the page warns about other places."""
MIN_HELD_OUT_PARTS = 5
"""With fewer held-out blocks or scenes, the page warns that the figures depend on their choice."""
MIN_CLASS_SHARE = 0.01
"""A class with a smaller share of the labelled pixels is named as rare."""
MIN_SCORE = 0.5
"""A class with a smaller IoU, precision or recall is named."""
MAX_ECE = 0.05
"""With a larger expected calibration error, the page warns that probabilities are not frequencies."""
MAX_IOU_GAP = 0.05
"""A larger excess of validation IoU over test IoU is reported."""
TEMPERATURE_BOUNDS = (0.05, 20.0)
"""Bounds of the fitted temperature; repeated here because a card is read without torch."""
MAX_FAULTY_LABELS = 0.01
"""A larger share of repaired or dropped label features is reported."""


def known_limits(card: ModelCard) -> list[str]:
    """Sentences in Markdown, the most serious topic first; never empty."""
    facts = CardFacts(card=card)
    return [
        *_about_evidence(facts),
        *_about_places(facts),
        *_about_classes(facts),
        *_about_probabilities(facts),
        *_about_labels(facts),
        *_about_input(card),
    ]


def _about_evidence(facts: CardFacts) -> Iterator[str]:
    validation, test = facts.scores("validation"), facts.scores("test")
    if not validation and not test:
        yield "Nothing is known of how good it is: the card holds no metrics."
    elif not test:
        yield (
            "There is no test part. The figures are of the validation part, on which the best epoch, the threshold "
            "and the temperature were chosen: they flatter."
        )
    chosen, unseen = as_number(validation.get("iou")), as_number(test.get("iou"))
    if chosen is not None and unseen is not None and chosen - unseen > MAX_IOU_GAP:
        yield f"Test IoU ({unseen:.3f}) is well below validation IoU ({chosen:.3f}): expect the lower one."
    for part in PARTS:
        count = facts.number(part, "parts")
        if facts.scores(part) and count is not None and count < MIN_HELD_OUT_PARTS:
            of = "one scene or block" if count == 1 else f"{count:.0f} scenes or blocks"
            yield f"The {part} figures rest on {of} only: another choice could move them a good deal."


def _about_places(facts: CardFacts) -> Iterator[str]:
    scenes = facts.texts("scenes")
    if len(scenes) == 1:
        only = markdown(scenes[0])
        yield f"It has seen a single scene ({only}): nothing is known of other places, dates and sensors."
    elif 0 < len(scenes) < MIN_SCENES:
        yield f"It has seen {len(scenes)} scenes only: little is known of other places, dates and sensors."
    for part in PARTS:
        shared = [scene for scene in facts.texts(part, "scenes") if scene in scenes]
        if facts.scores(part) and shared:
            yield (
                f"The {part} part lies in scenes that were also learned from "
                f"(other blocks of {join_names(shared, 5)}): "
                "its figures hold for unseen land of those scenes, not for new scenes."
            )


def _about_classes(facts: CardFacts) -> Iterator[str]:
    for name, value in facts.table("class_share").items():
        share = as_number(value)
        if share is not None and share < MIN_CLASS_SHARE and name in facts.card.classes:
            yield f"{markdown(name)} covers {share:.2%} of the labelled training pixels: it has been seen rarely."
    part = "test" if facts.scores("test") else "validation"
    for name, scores in facts.class_scores(part).items():
        yield from _about_class(markdown(name), {key: as_number(value) for key, value in scores.items()}, part)


def _about_class(name: str, scores: dict[str, float | None], part: str) -> Iterator[str]:
    if scores.get("recall") is None:
        yield f"{name} does not occur in the {part} part: how well it is found is not known."
        return
    known = {key: value for key in ("iou", "precision", "recall") if (value := scores.get(key)) is not None}
    if any(value < MIN_SCORE for value in known.values()):
        weak = ", ".join(f"{key} {value:.2f}" for key, value in known.items())
        yield f"{name} is found poorly on the {part} part: {weak.replace('iou', 'IoU')}."


def _about_probabilities(facts: CardFacts) -> Iterator[str]:
    if facts.card.outputs == "probabilities" and not facts.card.training:
        return
    if facts.card.temperature in TEMPERATURE_BOUNDS:
        yield (
            f"The temperature ran into its bound of {facts.card.temperature:g}: validation asked for a further one, so "
            "calibration failed and probabilities are an order, not frequencies. More epochs may help."
        )
    after = next((ece for part in reversed(PARTS) if (ece := facts.ece(part)[1]) is not None), None)
    if after is None:
        yield "Its probabilities have not been held against observed shares: read them as an order, not as frequencies."
    elif after > MAX_ECE:
        yield f"Its probabilities are off by {after:.3f} on average (ECE): read them as an order, not as frequencies."


def _about_labels(facts: CardFacts) -> Iterator[str]:
    repaired, dropped = (int(facts.number("labels", key) or 0) for key in ("repaired", "dropped"))
    features = facts.number("labels", "features") or facts.number("labels", "objects")
    if repaired + dropped and (features is None or repaired + dropped > MAX_FAULTY_LABELS * features):
        yield (
            f"The labels had faults: {repaired:,} geometries were repaired and {dropped:,} without area left out; "
            "check a few of them."
        )


def _about_input(card: ModelCard) -> Iterator[str]:
    bands = f"the bands {join_names(card.bands)}" if len(card.bands) > 1 else f"the band {markdown(card.bands[0])}"
    required = [bands]
    if card.dtype:
        required.append(f"{card.dtype} values")
    if card.resolution_m:
        required.append(f"ground pixels of {card.resolution_m:g} m within `reading.resolution_tolerance`")
    yield f"It takes scenes with {', '.join(required)}; others are refused."
    if card.receptive_field is not None and card.receptive_field > 1:
        far = f", {card.receptive_field * card.resolution_m / 2:,.0f} m" if card.resolution_m else ""
        yield f"It decides a pixel from at most {card.receptive_field // 2} px around it{far}: it sees no further."
