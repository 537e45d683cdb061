"""Scores with bootstrap intervals from counts per block; every score is a ratio of sums of counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics.bootstrap import percentile_interval, resample_sums
from pipeline.evaluation.metrics.counts import (
    BOUNDARY_INTERSECTION,
    BOUNDARY_UNION,
    FN,
    FP,
    MATCHED_PREDICTED,
    MATCHED_REFERENCE,
    OBJECT_COLUMNS,
    PREDICTED,
    REFERENCE,
    TN,
    TP,
    BlockCounts,
)
from pipeline.evaluation.metrics.matching import THRESHOLDS
from pipeline.evaluation.records import (
    METRICS,
    BootstrapSpec,
    CalibrationBins,
    ClassPlanes,
    ClassScores,
    Estimate,
    Scores,
)
from pipeline.training.validation import FORMULAS, divide_or_nan

ColumnWeights = dict[int, int]
_CONFUSION_COLUMNS = (TP, FP, FN, TN)
_REFERENCE_COLUMNS = range(MATCHED_REFERENCE, MATCHED_PREDICTED)
_PREDICTED_COLUMNS = range(MATCHED_PREDICTED, OBJECT_COLUMNS)
PIXEL_RATIOS: dict[str, tuple[ColumnWeights, ColumnWeights]] = {
    **{
        name: (dict(zip(_CONFUSION_COLUMNS, part, strict=True)), dict(zip(_CONFUSION_COLUMNS, whole, strict=True)))
        for name, (part, whole) in FORMULAS.items()
    },
    "boundary_iou": ({BOUNDARY_INTERSECTION: 1}, {BOUNDARY_UNION: 1}),
}
"""Score -> weights of the columns of `BlockCounts.pixels` in numerator and denominator; F1 is the Dice coefficient."""
OBJECT_RATIOS = {
    "object_f1": ({MATCHED_REFERENCE: 1, MATCHED_PREDICTED: 1}, {REFERENCE: 1, PREDICTED: 1}),
    "object_precision": ({MATCHED_PREDICTED: 1}, {PREDICTED: 1}),
    "object_recall": ({MATCHED_REFERENCE: 1}, {REFERENCE: 1}),
    "object_f1_mean": (
        dict.fromkeys((*_REFERENCE_COLUMNS, *_PREDICTED_COLUMNS), 1),
        {REFERENCE: len(THRESHOLDS), PREDICTED: len(THRESHOLDS)},
    ),
}
"""The same for the columns of `BlockCounts.objects`; a matched pair counts once on each side."""


def join_counts(tables: Sequence[BlockCounts]) -> BlockCounts:
    """The blocks of several scenes in one table; rows and columns are then no longer unique."""
    names = BlockCounts.__dataclass_fields__
    return BlockCounts(**{name: np.concatenate([getattr(table, name) for table in tables]) for name in names})


def score_counts(
    counts: BlockCounts, planes: ClassPlanes, spec: BootstrapSpec, *, calibration: CalibrationBins | None = None
) -> Scores:
    """All scores of the blocks of one scene or of several joined, each with its interval.

    As in `Confusion`, the mean is over the classes for which a score is defined, without a background; the accuracy of
    exclusive classes is the share of pixels with the right class.
    """
    shape = _Shape(counts.pixels.shape[1:], counts.objects.shape[1:], int(planes.background), planes.exclusive)
    # Each score is a ratio of sums, so intervals need only resampled sums of the blocks' counts.
    flat = _flatten(counts)
    total = flat.sum(axis=0, keepdims=True)
    resampled = resample_sums(flat, spec) if len(counts) > 1 else np.zeros((0, flat.shape[1]))
    value, value_mean = _scores_of(total, shape)
    each, mean = _scores_of(resampled, shape)
    interval, interval_mean = (percentile_interval(scores, spec.confidence) for scores in (each, mean))
    return Scores(
        classes=tuple(
            ClassScores(
                name=name,
                metrics=_estimates(value[0, k], interval[0][k], interval[1][k]),
                pixels=_pixel_totals(counts.pixels[:, k].sum(axis=0)),
                objects=_object_totals(counts.objects[:, k].sum(axis=0)),
            )
            for k, name in enumerate(planes.names)
        ),
        mean=_estimates(value_mean[0], *interval_mean),
        counted=int(counts.counted.sum()),
        wrong=int(counts.wrong.sum()),
        blocks=len(counts),
        calibration=calibration,
    )


class _Shape(NamedTuple):
    """Layout of a row of flat sums."""

    pixels: tuple[int, ...]
    """Planes and columns of `BlockCounts.pixels`."""
    objects: tuple[int, ...]
    """Planes and columns of `BlockCounts.objects`."""
    first: int
    """First plane that counts in means."""
    exclusive: bool
    """True = a pixel is of one class only."""


def _flatten(counts: BlockCounts) -> NDArray[np.int64]:
    """One row of all counts per block, see `_Shape`; pixels counted and wrong come last."""
    blocks, last = len(counts), np.stack([counts.counted, counts.wrong], axis=1)
    return np.concatenate([counts.pixels.reshape(blocks, -1), counts.objects.reshape(blocks, -1), last], axis=1)


def _scores_of(sums: NDArray[np.generic], shape: _Shape) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`(n, planes, metrics)` per class and `(n, metrics)` over classes, from rows of flat sums."""
    n, pixel_columns = len(sums), shape.pixels[0] * shape.pixels[1]
    pixels = sums[:, :pixel_columns].reshape(n, *shape.pixels).astype(np.float64)
    objects = sums[:, pixel_columns:-2].reshape(n, *shape.objects).astype(np.float64)
    each = np.concatenate([_ratios(pixels, PIXEL_RATIOS), _ratios(objects, OBJECT_RATIOS)], axis=-1)
    mean = _mean_over_planes(each[:, shape.first :])

    # A pixel of exclusive classes is right or wrong once, not once per class.
    if shape.exclusive:
        counted, wrong = sums[:, -2].astype(np.float64), sums[:, -1].astype(np.float64)
        mean[:, METRICS.index("accuracy")] = divide_or_nan(counted - wrong, counted)
    return each, mean


def _ratios(counts: NDArray[np.float64], table: dict[str, tuple[ColumnWeights, ColumnWeights]]) -> NDArray[np.float64]:
    """`(..., columns)` -> `(..., ratios)`."""
    # `weights[0]` gives the numerators, `weights[1]` the denominators.
    weights = np.zeros((2, counts.shape[-1], len(table)))
    for ratio, sides in enumerate(table.values()):
        for side, columns in enumerate(sides):
            for column, weight in columns.items():
                weights[side, column, ratio] = weight
    return divide_or_nan(counts @ weights[0], counts @ weights[1])


def _mean_over_planes(each: NDArray[np.float64]) -> NDArray[np.float64]:
    defined = np.isfinite(each)
    return divide_or_nan(np.where(defined, each, 0).sum(axis=1), defined.sum(axis=1).astype(np.float64))


def _estimates(value: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]) -> dict[str, Estimate]:
    return {name: Estimate.of(value[k], low[k], high[k]) for k, name in enumerate(METRICS)}


def _pixel_totals(sums: NDArray[np.int64]) -> dict[str, int]:
    names = {TP: "true_positive", FP: "false_positive", FN: "false_negative", TN: "true_negative"}
    return {name: int(sums[column]) for column, name in names.items()}


def _object_totals(sums: NDArray[np.int64]) -> dict[str, int]:
    return {"truth": int(sums[REFERENCE]), "found": int(sums[PREDICTED]), "matched": int(sums[MATCHED_REFERENCE])}
