"""How good is a result against the truth: per object (polygons) and per pixel (masks).

Pure arithmetic: no files, no models. Pixel scores add up, so a mask is scored block by block, and so do object
curves, scene by scene.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

Polygons = Sequence[shapely.Geometry] | NDArray[np.object_]
THRESHOLDS = tuple(step / 100 for step in range(50, 100, 5))
"""IoU bounds 0.50, 0.55, ..., 0.95 over which object scores are averaged, as in COCO (Lin et al. 2014)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectScore:
    """How many true objects were found, and how many found objects are true."""

    truth: int
    """True objects."""
    found: int
    """Found objects."""
    matched: int
    """Pairs of a true and a found object, each used at most once."""
    mean_iou: float
    """Mean intersection over union of the pairs, 0..1; 0 without pairs."""

    @property
    def precision(self) -> float:
        """Share of found objects that are true; 1 when nothing was found."""
        return _ratio(self.matched, self.found)

    @property
    def recall(self) -> float:
        """Share of true objects that were found; 1 when there is none."""
        return _ratio(self.matched, self.truth)

    @property
    def f1(self) -> float:
        """`2 * matched / (truth + found)`; 1 when both are empty."""
        return _ratio(2 * self.matched, self.truth + self.found)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectCurve:
    """Object scores at several IoU bounds; those of scenes add up with `+`."""

    truth: int = 0
    """True objects."""
    found: int = 0
    """Found objects."""
    matched: tuple[int, ...] = (0,) * len(THRESHOLDS)
    """Per bound, pairs of a true and a found object whose IoU is more than it; never rising."""
    thresholds: tuple[float, ...] = THRESHOLDS
    """The bounds, rising, 0..1."""

    def __add__(self, other: ObjectCurve) -> ObjectCurve:
        if self.thresholds != other.thresholds:
            raise ValueError(f"curves over {self.thresholds} and {other.thresholds} do not add up")
        return ObjectCurve(
            truth=self.truth + other.truth,
            found=self.found + other.found,
            matched=tuple(one + more for one, more in zip(self.matched, other.matched, strict=True)),
            thresholds=self.thresholds,
        )

    @property
    def precision(self) -> tuple[float, ...]:
        """Per bound, share of found objects that are true; 1 when nothing was found."""
        return tuple(_ratio(matched, self.found) for matched in self.matched)

    @property
    def recall(self) -> tuple[float, ...]:
        """Per bound, share of true objects that were found; 1 when there is none."""
        return tuple(_ratio(matched, self.truth) for matched in self.matched)

    @property
    def f1(self) -> tuple[float, ...]:
        """Per bound, `2 * matched / (truth + found)`; 1 when both are empty."""
        return tuple(_ratio(2 * matched, self.truth + self.found) for matched in self.matched)

    @property
    def mean_precision(self) -> float:
        """Mean of `precision` over the bounds."""
        return math.fsum(self.precision) / len(self.thresholds)

    @property
    def mean_recall(self) -> float:
        """Mean of `recall` over the bounds."""
        return math.fsum(self.recall) / len(self.thresholds)

    @property
    def mean_f1(self) -> float:
        """Mean of `f1` over the bounds."""
        return math.fsum(self.f1) / len(self.thresholds)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matches:
    """Matched objects; each is in at most one pair."""

    in_truth: NDArray[np.intp]
    """`(pairs,)`: index of the true object."""
    in_found: NDArray[np.intp]
    """`(pairs,)`: index of the found one."""
    iou: NDArray[np.float64]
    """`(pairs,)`: their intersection over union, 0..1, falling."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PixelScore:
    """Counts of one class's pixels; scores of blocks add up with `+`."""

    hits: int = 0
    """Pixels that are of the class and were found."""
    false_alarms: int = 0
    """Pixels that were found and are not of the class."""
    misses: int = 0
    """Pixels that are of the class and were not found."""

    def __add__(self, other: PixelScore) -> PixelScore:
        return PixelScore(
            hits=self.hits + other.hits,
            false_alarms=self.false_alarms + other.false_alarms,
            misses=self.misses + other.misses,
        )

    @property
    def iou(self) -> float:
        """Intersection over union; 1 when there is nothing to find and nothing was found."""
        return _ratio(self.hits, self.hits + self.false_alarms + self.misses)

    @property
    def precision(self) -> float:
        """Share of found pixels that are true; 1 when nothing was found."""
        return _ratio(self.hits, self.hits + self.false_alarms)

    @property
    def recall(self) -> float:
        """Share of true pixels that were found; 1 when there is none."""
        return _ratio(self.hits, self.hits + self.misses)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall, also called Dice; 1 when both are empty."""
        return _ratio(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses)


def score_polygons(truth: Polygons, found: Polygons, *, least_iou: float = 0.5) -> ObjectScore:
    """Match found to true polygons where their intersection over union is more than `least_iou`.

    Pairs are taken in order of falling IoU and each polygon at most once. When neither side overlaps
    itself, no polygon has two partners above 0.5, so the matching is the only one there is.

    Args:
        truth: polygons or multipolygons; invalid ones are repaired for the comparison.
        found: the same, in the same CRS. Both should be cut to the same valid area beforehand.
        least_iou: bound that a pair must exceed, 0..1.

    >>> square = shapely.box(0, 0, 10, 10)
    >>> score_polygons([square], [shapely.box(0, 0, 10, 8), shapely.box(20, 0, 30, 10)]).f1
    0.6666666666666666
    """
    iou = match_polygons(truth, found, least_iou=least_iou).iou
    mean = float(np.mean(iou)) if len(iou) else 0.0
    return ObjectScore(truth=len(truth), found=len(found), matched=len(iou), mean_iou=mean)


def score_polygons_over(truth: Polygons, found: Polygons, *, thresholds: tuple[float, ...] = THRESHOLDS) -> ObjectCurve:
    """Object scores at several bounds from one comparison; each equals `score_polygons` at its bound.

    Args:
        truth: polygons or multipolygons; invalid ones are repaired for the comparison.
        found: the same, in the same CRS. Both should be cut to the same area beforehand, see `cut_to_area`.
        thresholds: IoU bounds that pairs must exceed, rising, 0..1.

    >>> score_polygons_over([shapely.box(0, 0, 10, 10)], [shapely.box(0, 0, 10, 8)]).mean_f1
    0.6
    """
    iou = match_polygons(truth, found, least_iou=min(thresholds)).iou
    counts = tuple(int(np.count_nonzero(iou > bound)) for bound in thresholds)
    return ObjectCurve(truth=len(truth), found=len(found), matched=counts, thresholds=thresholds)


def match_polygons(truth: Polygons, found: Polygons, *, least_iou: float = 0.5) -> Matches:
    """Pairs of a true and a found polygon, in order of falling IoU, each polygon at most once; ties by index.

    Best pairs are taken first, so the pairs above a higher bound are the first ones above a lower bound.

    Args:
        truth: polygons or multipolygons; invalid ones are repaired for the comparison.
        found: the same, in the same CRS.
        least_iou: bound that a pair must exceed, 0..1.
    """
    in_truth, in_found, iou = _overlaps(_valid(truth), _valid(found))
    order = np.lexsort((in_found, in_truth, -iou))
    kept, used_truth, used_found = [], set(), set()
    for pair in order[iou[order] > least_iou].tolist():
        true, seen = int(in_truth[pair]), int(in_found[pair])
        if true not in used_truth and seen not in used_found:
            used_truth.add(true)
            used_found.add(seen)
            kept.append(pair)
    return Matches(in_truth=in_truth[kept], in_found=in_found[kept], iou=iou[kept])


def cut_to_area(polygons: Polygons, area: shapely.Geometry) -> NDArray[np.object_]:
    """The parts of polygons inside an area, of those that lie in it with at least half of their own area.

    Objects outside valid or labelled land are left out, and slivers that reach into it do not count as objects.

    Args:
        polygons: polygons or multipolygons; invalid ones are repaired.
        area: polygon or multipolygon in the same CRS.
    """
    whole = _valid(polygons)
    parts = shapely.intersection(whole, area)
    kept: NDArray[np.object_] = parts[(shapely.area(parts) >= 0.5 * shapely.area(whole)) & (shapely.area(whole) > 0)]
    return kept


def score_pixels(
    truth: NDArray[np.bool_], found: NDArray[np.bool_], valid: NDArray[np.bool_] | None = None
) -> PixelScore:
    """Compare two masks of one class, or two blocks of them.

    Args:
        truth: True where the class is, any shape.
        found: True where it was found, same shape.
        valid: True where pixels count, same shape; all by default.

    >>> score_pixels(np.array([True, True, False]), np.array([True, False, False])).iou
    0.5
    """
    if valid is not None:
        truth, found = truth & valid, found & valid
    hits = int(np.count_nonzero(truth & found))
    return PixelScore(
        hits=hits,
        false_alarms=int(np.count_nonzero(found)) - hits,
        misses=int(np.count_nonzero(truth)) - hits,
    )


def _valid(polygons: Polygons) -> NDArray[np.object_]:
    array = np.array(list(polygons), dtype=object)
    broken = ~shapely.is_valid(array)
    array[broken] = shapely.make_valid(array[broken])
    return array


def _overlaps(
    truth: NDArray[np.object_], found: NDArray[np.object_]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Index of the true, index of the found polygon and IoU of all pairs that touch."""
    in_found, in_truth = shapely.STRtree(truth).query(found, predicate="intersects")
    shared = shapely.area(shapely.intersection(truth[in_truth], found[in_found]))
    together = shapely.area(truth)[in_truth] + shapely.area(found)[in_found] - shared
    return in_truth, in_found, np.divide(shared, together, out=np.zeros(len(shared)), where=together > 0)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
