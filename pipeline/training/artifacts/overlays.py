"""Overlay pictures of held-out windows: scores, the choice of windows, and the PNG."""

from __future__ import annotations

import heapq
import io
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.model import ModelCard
from pipeline.training.artifacts.overlay_panels import (
    OverlayArrays,
    Panel,
    display_bands,
    paint_errors,
    paint_picture,
    paint_probability,
    paint_truth,
    stretch,
)
from pipeline.training.artifacts.overlay_sheet import render_sheet
from pipeline.training.validation import confusion_ratio

Kind = Literal["worst", "best", "any"]
"""Why a window was chosen."""
PANEL = 512
"""Screen pixels of a window's longer side, as nearly as a whole magnification factor allows."""
MIN_OBJECT_SHARE = 0.01
"""A window can rank among the best only if objects cover this share of its labelled pixels."""


@dataclass(frozen=True, kw_only=True)
class PredictedWindow:
    """One window with its labels and its prediction, all of one height and width."""

    scene: str
    row: int
    """First row in the scene's grid."""
    col: int
    pixels: NDArray[np.generic]
    """`(bands, H, W)`, raw: the picture is stretched to the 2nd and 98th percentile."""
    valid: NDArray[np.bool_]
    """`(H, W)`, True = real data."""
    truth: NDArray[np.bool_]
    """`(classes, H, W)`, True where labelled so; planes in the order of the card's classes."""
    weight_mask: NDArray[np.bool_]
    """`(classes, H, W)`, True = valid and labelled, as in `Batch.weight_mask`."""
    probability: NDArray[np.float32]
    """`(classes, H, W)`, 0 to 1, calibrated."""

    def copy(self) -> PredictedWindow:
        """A copy that does not keep the batch alive."""
        names = ("pixels", "valid", "truth", "weight_mask", "probability")
        return replace(self, **{name: getattr(self, name).copy() for name in names})


@dataclass(frozen=True, kw_only=True)
class WindowScore:
    """Confusion counts of a window, summed over the classes other than background."""

    true_positives: int
    false_positives: int
    false_negatives: int
    scored_pixels: int
    """All valid, labelled pixels."""

    @classmethod
    def of(cls, window: PredictedWindow, card: ModelCard) -> WindowScore:
        """Count one window, classified at the card's threshold."""
        truth, predicted, weight_mask = foreground_planes(window, card)
        return cls(
            true_positives=int((truth & predicted & weight_mask).sum()),
            false_positives=int((~truth & predicted & weight_mask).sum()),
            false_negatives=int((truth & ~predicted & weight_mask).sum()),
            scored_pixels=int(weight_mask.sum()),
        )

    @property
    def wrong(self) -> int:
        """False positives and false negatives."""
        return self.false_positives + self.false_negatives

    @property
    def iou(self) -> float | None:
        """`tp / (tp + fp + fn)`; None where neither labelled nor predicted."""
        iou = float(confusion_ratio("iou", (self.true_positives, self.false_positives, self.false_negatives, 0)))
        return None if math.isnan(iou) else iou

    @property
    def ranking_score(self) -> float:
        """IoU; -1 for a window with too few labelled pixels."""
        if self.iou is None or self.true_positives + self.false_negatives < MIN_OBJECT_SHARE * self.scored_pixels:
            return -1.0
        return self.iou


def classify(probability: NDArray[np.float32], card: ModelCard) -> NDArray[np.bool_]:
    """The classes of each pixel, `(classes, H, W)`: at or above the threshold, or the likeliest of exclusive ones."""
    if card.activation == "sigmoid":
        return np.asarray(probability >= card.threshold)
    return np.asarray(probability.argmax(axis=0) == np.arange(len(probability))[:, None, None])


def foreground_planes(
    window: PredictedWindow, card: ModelCard
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Truth, classification and weight mask, each `(classes, H, W)`, without the background's plane."""
    planes = [index for index, _, _ in card.foreground]
    decided = classify(window.probability, card)
    return window.truth[planes], decided[planes], window.weight_mask[planes]


def choose_windows(
    windows: Iterable[PredictedWindow], card: ModelCard, *, count: int, seed: int
) -> list[tuple[Kind, PredictedWindow]]:
    """Windows for pictures: a third with the most wrong pixels, a third with the best IoU, the rest at random.

    No window is chosen twice, and none without a valid labelled pixel; fewer than `count` when there are fewer.
    `windows` are iterated once, and at most `2 * count + 2` are kept in memory.
    """
    rng, number = np.random.default_rng([seed, 7]), itertools.count()
    third = -(-count // 3)
    worst, best, drawn = _TopK(third), _TopK(third), _TopK(count)
    for window in windows:
        score, place, chance = WindowScore.of(window, card), next(number), float(rng.random())
        if score.scored_pixels:
            worst.offer((float(score.wrong), -place), window)
            best.offer((score.ranking_score, -place), window)
            drawn.offer((chance, -place), window)
    chosen: dict[int, tuple[Kind, PredictedWindow]] = {}
    for kind, top in (("worst", worst.at_least(1)), ("best", best.at_least(0)), ("any", drawn.at_least(0))):
        for place, window in top:
            if len(chosen) < count:
                chosen.setdefault(place, (kind, window))  # type: ignore[arg-type]
    return list(chosen.values())


def overlay_png(window: PredictedWindow, card: ModelCard, *, title: str = "") -> bytes:
    """The overlay picture of a window as PNG: `picture | truth | probability | errors`, with caption and legends.

    Args:
        window: magnified by a whole factor, without interpolation.
        card: gives names of bands and classes, and the threshold.
        title: put before the scene's name, e.g. `worst`.
    """
    score = WindowScore.of(window, card)
    iou = "no object labelled or predicted" if score.iou is None else f"IoU {score.iou:.3f}"
    height, width = window.valid.shape
    sheet = render_sheet(
        paint_panels(window, card),
        caption=f"{title}: {window.scene}" if title else window.scene,
        note=f"row {window.row}, col {window.col}, {height} × {width} px  ·  {iou}",
    )
    file = io.BytesIO()
    sheet.save(file, "png", optimize=True)
    return file.getvalue()


def paint_panels(window: PredictedWindow, card: ModelCard) -> tuple[Panel, Panel, Panel, Panel]:
    """Picture, truth, probability and errors, magnified to about `PANEL` screen pixels."""
    truth, decided, weight_mask = foreground_planes(window, card)
    places, _, names = zip(*card.foreground, strict=True)
    planes = OverlayArrays(
        picture=stretch(window.pixels[display_bands(card.bands, len(window.pixels))], window.valid),
        valid=window.valid,
        truth=truth,
        probability=window.probability[list(places)],
        decided=decided,
        weight_mask=weight_mask,
    ).magnified(max(1, round(PANEL / max(window.valid.shape))))
    threshold = card.threshold if card.activation == "sigmoid" else None
    return (
        paint_picture(planes),
        paint_truth(planes, names),
        paint_probability(planes, names, threshold),
        paint_errors(planes),
    )


class _TopK:
    """Keeps the windows with the highest keys, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._heap: list[tuple[tuple[float, int], PredictedWindow]] = []

    def offer(self, key: tuple[float, int], window: PredictedWindow) -> None:
        """Keep a copy of the window if its key is among the highest; keys are unique."""
        if len(self._heap) < self.limit:
            heapq.heappush(self._heap, (key, window.copy()))
        elif self._heap and key > self._heap[0][0]:
            heapq.heapreplace(self._heap, (key, window.copy()))

    def at_least(self, lowest: float) -> list[tuple[int, PredictedWindow]]:
        """`(place, window)` of the windows with a key of at least `lowest`, highest first."""
        ordered = sorted(self._heap, key=lambda entry: entry[0], reverse=True)
        return [(-key[1], window) for key, window in ordered if key[0] >= lowest]
