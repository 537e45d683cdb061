"""Object matching by IoU, and precision, recall, F1 and IoU of objects (polygons) and pixels (masks).

Pure arithmetic: no files, no models. Pixel counts are additive, so a mask is scored block by block, and object curves
scene by scene.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.training.validation import confusion_ratio

Polygons = Sequence[shapely.Geometry] | NDArray[np.object_]
THRESHOLDS = tuple(step / 100 for step in range(50, 100, 5))
"""IoU thresholds 0.50, 0.55, ..., 0.95 over which object scores are averaged, as in COCO (Lin et al. 2014)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectScore:
    """Matched objects of a reference and a prediction."""

    reference: int
    predicted: int
    matched: int
    """Pairs of a reference and a predicted object, each used at most once."""
    mean_iou: float
    """Mean intersection over union of the pairs, 0..1; 0 without pairs."""

    @property
    def precision(self) -> float:
        """`matched / predicted`; 1 when nothing is predicted."""
        return _object_score("precision", self, self.matched)

    @property
    def recall(self) -> float:
        """`matched / reference`; 1 when there is no reference object."""
        return _object_score("recall", self, self.matched)

    @property
    def f1(self) -> float:
        """`2 * matched / (reference + predicted)`; 1 when both are empty."""
        return _object_score("f1", self, self.matched)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectCurve:
    """Object scores at several IoU thresholds; curves of scenes are added with `+`."""

    reference: int = 0
    predicted: int = 0
    matched: tuple[int, ...] = (0,) * len(THRESHOLDS)
    """Per threshold, pairs of a reference and a predicted object with a higher IoU; never rising."""
    thresholds: tuple[float, ...] = THRESHOLDS
    """IoU thresholds, rising, 0..1."""

    def __add__(self, other: ObjectCurve) -> ObjectCurve:
        if self.thresholds != other.thresholds:
            raise ValueError(f"curves over {self.thresholds} and {other.thresholds} do not add up")
        return ObjectCurve(
            reference=self.reference + other.reference,
            predicted=self.predicted + other.predicted,
            matched=tuple(one + more for one, more in zip(self.matched, other.matched, strict=True)),
            thresholds=self.thresholds,
        )

    @property
    def precision(self) -> tuple[float, ...]:
        """Per threshold, `matched / predicted`; 1 when nothing is predicted."""
        return tuple(_object_score("precision", self, matched) for matched in self.matched)

    @property
    def recall(self) -> tuple[float, ...]:
        """Per threshold, `matched / reference`; 1 when there is no reference object."""
        return tuple(_object_score("recall", self, matched) for matched in self.matched)

    @property
    def f1(self) -> tuple[float, ...]:
        """Per threshold, `2 * matched / (reference + predicted)`; 1 when both are empty."""
        return tuple(_object_score("f1", self, matched) for matched in self.matched)

    @property
    def mean_precision(self) -> float:
        """Mean of `precision` over the thresholds."""
        return math.fsum(self.precision) / len(self.thresholds)

    @property
    def mean_recall(self) -> float:
        """Mean of `recall` over the thresholds."""
        return math.fsum(self.recall) / len(self.thresholds)

    @property
    def mean_f1(self) -> float:
        """Mean of `f1` over the thresholds."""
        return math.fsum(self.f1) / len(self.thresholds)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matches:
    """Matched objects; each is in at most one pair."""

    reference_index: NDArray[np.intp]
    """`(pairs,)`: index of the reference object."""
    predicted_index: NDArray[np.intp]
    """`(pairs,)`: index of the predicted object."""
    iou: NDArray[np.float64]
    """`(pairs,)`: their intersection over union, 0..1, falling."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelScore:
    """Pixel counts of one class; scores of blocks are added with `+`."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0

    def __add__(self, other: PixelScore) -> PixelScore:
        return PixelScore(
            true_positives=self.true_positives + other.true_positives,
            false_positives=self.false_positives + other.false_positives,
            false_negatives=self.false_negatives + other.false_negatives,
        )

    @property
    def iou(self) -> float:
        """Intersection over union; 1 when both masks are empty."""
        return _score("iou", self.true_positives, self.false_positives, self.false_negatives)

    @property
    def precision(self) -> float:
        """`tp / (tp + fp)`; 1 when nothing is predicted."""
        return _score("precision", self.true_positives, self.false_positives, self.false_negatives)

    @property
    def recall(self) -> float:
        """`tp / (tp + fn)`; 1 when no pixel is of the class."""
        return _score("recall", self.true_positives, self.false_positives, self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, the Dice coefficient; 1 when both masks are empty."""
        return _score("f1", self.true_positives, self.false_positives, self.false_negatives)


def score_polygons(reference: Polygons, predicted: Polygons, *, min_iou: float = 0.5) -> ObjectScore:
    """Match predicted to reference polygons whose intersection over union is above `min_iou`.

    Pairs are taken in order of falling IoU and each polygon at most once. When the polygons of neither
    side overlap one another, no polygon has two partners above 0.5, so the matching is unique.

    Args:
        reference: polygons or multipolygons; invalid ones are repaired for the comparison.
        predicted: the same, in the same CRS. Clip both to the same valid area beforehand.
        min_iou: a pair must exceed it, 0..1.

    >>> square = shapely.box(0, 0, 10, 10)
    >>> score_polygons([square], [shapely.box(0, 0, 10, 8), shapely.box(20, 0, 30, 10)]).f1
    0.6666666666666666
    """
    iou = match_polygons(reference, predicted, min_iou=min_iou).iou
    mean = float(np.mean(iou)) if len(iou) else 0.0
    return ObjectScore(reference=len(reference), predicted=len(predicted), matched=len(iou), mean_iou=mean)


def score_object_curve(
    reference: Polygons, predicted: Polygons, *, thresholds: tuple[float, ...] = THRESHOLDS
) -> ObjectCurve:
    """Object scores at rising IoU thresholds (0..1) from one matching; each equals `score_polygons` at its threshold.

    >>> score_object_curve([shapely.box(0, 0, 10, 10)], [shapely.box(0, 0, 10, 8)]).mean_f1
    0.6
    """
    iou = match_polygons(reference, predicted, min_iou=min(thresholds)).iou
    counts = tuple(int(np.count_nonzero(iou > bound)) for bound in thresholds)
    return ObjectCurve(reference=len(reference), predicted=len(predicted), matched=counts, thresholds=thresholds)


def match_polygons(reference: Polygons, predicted: Polygons, *, min_iou: float = 0.5) -> Matches:
    """Pairs of a reference and a predicted polygon, in order of falling IoU, each polygon at most once; ties by index.

    The IoU of a pair exceeds `min_iou` (0..1). The best pairs are taken first, so the pairs above a higher threshold
    are the first ones above a lower threshold. Both sides are in one CRS; invalid polygons are repaired.
    """
    reference_index, predicted_index, iou = _overlaps(_valid(reference), _valid(predicted))

    # Greedy, best pair first; indices as further sort keys make ties reproducible.
    order = np.lexsort((predicted_index, reference_index, -iou))
    kept, used_reference, used_predicted = [], set(), set()
    for pair in order[iou[order] > min_iou].tolist():
        i, j = int(reference_index[pair]), int(predicted_index[pair])
        if i not in used_reference and j not in used_predicted:
            used_reference.add(i)
            used_predicted.add(j)
            kept.append(pair)
    return Matches(reference_index=reference_index[kept], predicted_index=predicted_index[kept], iou=iou[kept])


def clip_to_area(polygons: Polygons, area: shapely.Geometry) -> NDArray[np.object_]:
    """Polygons, repaired and clipped to an area in their CRS; left out if less than half of one is inside.

    Objects outside the valid or labelled area are left out, and slivers that reach into it are not objects.
    """
    whole = _valid(polygons)
    parts = shapely.intersection(whole, area)
    kept: NDArray[np.object_] = parts[(shapely.area(parts) >= 0.5 * shapely.area(whole)) & (shapely.area(whole) > 0)]
    return kept


def score_pixels(
    reference: NDArray[np.bool_], predicted: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None
) -> PixelScore:
    """Count the pixels of two masks of one class, or of two blocks of them.

    Args:
        reference: True = of the class, any shape.
        predicted: True = predicted as the class, same shape.
        valid: True = the pixel counts, same shape; all by default.

    >>> score_pixels(np.array([True, True, False]), np.array([True, False, False])).iou
    0.5
    """
    if valid is not None:
        reference, predicted = reference & valid, predicted & valid
    true_positives = int(np.count_nonzero(reference & predicted))
    return PixelScore(
        true_positives=true_positives,
        false_positives=int(np.count_nonzero(predicted)) - true_positives,
        false_negatives=int(np.count_nonzero(reference)) - true_positives,
    )


def _valid(polygons: Polygons) -> NDArray[np.object_]:
    array = np.array(list(polygons), dtype=object)
    broken = ~shapely.is_valid(array)
    array[broken] = shapely.make_valid(array[broken])
    return array


def _overlaps(
    reference: NDArray[np.object_], predicted: NDArray[np.object_]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Reference index, predicted index and IoU of all pairs that touch."""
    predicted_index, reference_index = shapely.STRtree(reference).query(predicted, predicate="intersects")
    intersection = shapely.area(shapely.intersection(reference[reference_index], predicted[predicted_index]))
    union = shapely.area(reference)[reference_index] + shapely.area(predicted)[predicted_index] - intersection
    return reference_index, predicted_index, np.divide(intersection, union, out=np.zeros(len(union)), where=union > 0)


def _object_score(name: str, objects: ObjectScore | ObjectCurve, matched: int) -> float:
    return _score(name, matched, objects.predicted - matched, objects.reference - matched)


def _score(name: str, true_positives: int, false_positives: int, false_negatives: int) -> float:
    """`confusion_ratio` of one class; 1 where it is undefined."""
    ratio = float(confusion_ratio(name, (true_positives, false_positives, false_negatives, 0)))
    return 1.0 if math.isnan(ratio) else ratio
