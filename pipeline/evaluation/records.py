"""Settings and records of an evaluation: one record per scene, and a report over all scenes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.config import SegmentSpec
from pipeline.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class BootstrapSpec:
    """Bootstrap intervals."""

    block_size: int = 256
    """Side in pixels of the blocks that are resampled, and of the worst windows; at least 16."""
    resamples: int = 1000
    """Resamples, 0 or at least 100; 0 = no intervals."""
    confidence: float = 0.95
    """Share of such intervals that contain the true score, above 0 and below 1."""
    seed: int = 0
    """Of the resampling; the same seed gives the same intervals."""

    def __post_init__(self) -> None:
        if self.block_size < 16:
            raise SettingsError(f"block_size must be at least 16, not {self.block_size}")
        if self.resamples != 0 and self.resamples < 100:
            raise SettingsError(f"resamples must be 0 (no intervals) or at least 100, not {self.resamples}")
        if not 0 < self.confidence < 1:
            raise SettingsError(f"confidence must be above 0 and below 1, not {self.confidence}")
        if self.seed < 0:
            raise SettingsError(f"seed must be at least 0, not {self.seed}")


Kind = Literal["model", "mosaics", "polygons"]
"""What is compared with the labels."""
PIXEL_METRICS = ("iou", "f1", "precision", "recall", "accuracy", "boundary_iou")
"""Per class and pixel."""
OBJECT_METRICS = ("object_f1", "object_precision", "object_recall", "object_f1_mean")
"""Per class and object: at an IoU above 0.5, and F1 averaged over the bounds 0.5 to 0.95."""
METRICS = PIXEL_METRICS + OBJECT_METRICS


@dataclass(frozen=True, kw_only=True)
class EvaluateSpec:
    """All settings of an evaluation."""

    classes: tuple[str, ...] = ()
    """Classes to compare; empty = those of the model or mosaics, and for polygons one class `object`."""
    class_field: str | None = None
    """Attribute of vector labels with the class; None = every polygon is of the only class."""
    class_map: dict[str, str] = field(default_factory=dict)
    """Label value -> class name, `none` or `unlabelled`, as in training; empty = see `classes` of training."""
    found_field: str | None = None
    """Attribute of compared polygons with the class; None = that of Scenemill's files, or there is only one class."""
    labelled_area: str | None = None
    """Polygon file of the area that was labelled; pixels outside do not count. None = everywhere."""
    boundary_px: int = 3
    """Width in pixels of the band along outlines that boundary IoU compares, at least 1."""
    worst_windows: int = 8
    """Pictures of the windows with the most wrong pixels, 0 to 100."""
    bootstrap: BootstrapSpec = field(default_factory=BootstrapSpec)
    """Settings of the intervals."""
    segment: SegmentSpec = field(default_factory=SegmentSpec)
    """Settings for reading scenes, and for segmenting them when a model is evaluated."""

    def __post_init__(self) -> None:
        if len(set(self.classes)) != len(self.classes):
            raise SettingsError(f"classes must be different names, not {self.classes}")
        if self.boundary_px < 1:
            raise SettingsError(f"boundary_px must be at least 1, not {self.boundary_px}")
        if not 0 <= self.worst_windows <= 100:
            raise SettingsError(f"worst_windows must be from 0 to 100, not {self.worst_windows}")


@dataclass(frozen=True, kw_only=True)
class ClassPlanes:
    """The classes of a comparison; each has a plane of pixels."""

    names: tuple[str, ...]
    """The classes; a background, where there is one, is the first."""
    background: bool = False
    """True = the first class is the absence of all others; it has no objects and does not count in means."""
    exclusive: bool = False
    """True = each pixel is of one class only."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names without the background."""
        return self.names[int(self.background) :]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A score with its interval."""

    value: float | None
    """The score, 0 to 1; None where it is undefined, e.g. the recall of an absent class."""
    low: float | None = None
    """Lower end of the bootstrap interval; None = no interval."""
    high: float | None = None

    @classmethod
    def of(cls, value: float, low: float = math.nan, high: float = math.nan) -> Estimate:
        """Rounded to 6 digits, None for NaN."""
        rounded = (None if math.isnan(number) else round(float(number), 6) for number in (value, low, high))
        return cls(**dict(zip(("value", "low", "high"), rounded, strict=True)))


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Scores and counts of one class."""

    name: str
    """The class, or the background of exclusive classes."""
    metrics: Mapping[str, Estimate]
    """Every name of `METRICS`."""
    pixels: Mapping[str, int]
    """Pixels: `true_positive`, `false_positive`, `false_negative`, `true_negative`."""
    objects: Mapping[str, int]
    """Objects: `truth` (reference), `found` (predicted), and `matched` at an IoU above 0.5; all 0 for a background."""


@dataclass(frozen=True, kw_only=True)
class CalibrationBins:
    """Reliability bins of equal width in probability."""

    count: tuple[int, ...]
    confidence: tuple[float | None, ...]
    """Mean probability of each bin; None where it is empty."""
    accuracy: tuple[float | None, ...]
    """Share of its pixels that are of the class; None where it is empty."""
    ece: float
    """Expected calibration error, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All scores of one scene, or of all scenes together."""

    classes: tuple[ClassScores, ...]
    """One per class; the background of exclusive classes first."""
    mean: Mapping[str, Estimate]
    """Every name of `METRICS`: the mean over the classes for which it is defined, without a background; `accuracy` of
    exclusive classes: share of pixels with the right class."""
    counted: int
    """Pixels that are valid and labelled."""
    wrong: int
    """Of the counted pixels, those wrong in any class."""
    blocks: int
    """Blocks that were resampled for the intervals."""
    calibration: CalibrationBins | None = None
    """Of a mosaic's probabilities; None for polygons."""


@dataclass(frozen=True, kw_only=True)
class WorstWindow:
    """A window with many wrong pixels."""

    scene: str
    row: int
    """First row in the prediction's grid."""
    col: int
    height: int
    width: int
    wrong: int
    """Its wrong pixels."""
    counted: int
    """Its pixels that count."""
    image: str | None = None
    """The picture, relative to the evaluation's folder; None until it is drawn."""


@dataclass(frozen=True, kw_only=True)
class SceneEvaluation:
    """The result of one scene; small and JSON-able."""

    scene: str
    location: str
    status: Literal["done", "failed"]
    reason: str | None = None
    """Why it failed, in one paragraph."""
    found: str = ""
    """The mosaic or polygon file that was compared."""
    labels: tuple[str, ...] = ()
    model: str = ""
    """SHA-256 of the checkpoint that made the mosaic; empty for polygons."""
    planes: ClassPlanes | None = None
    """Classes compared; None when it failed."""
    shape: tuple[int, int] = (0, 0)
    """Rows and columns of the prediction's grid."""
    resolution_m: float = 0.0
    """Pixel side on the ground, metres."""
    scores: Scores | None = None
    """The numbers; None when it failed."""
    errors: str | None = None
    """The error map, relative to the evaluation's folder."""
    counts: str | None = None
    """The counts per block, relative to the evaluation's folder."""
    seconds: float = 0.0
    """Wall time."""


@dataclass(frozen=True, kw_only=True)
class EvaluationReport:
    """The result of an evaluation, written as `evaluation.json`."""

    kind: Kind
    compared: str
    labels: str
    planes: ClassPlanes | None
    """Classes compared; None when every scene failed."""
    overall: Scores | None
    """All scenes together; None when every scene failed."""
    scenes: tuple[SceneEvaluation, ...]
    """Every scene, in order, failed ones too."""
    worst: tuple[WorstWindow, ...]
    """The worst windows of all scenes, worst first."""
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    """Versions of Scenemill and of the libraries that compute its numbers."""
    date: str = ""
    """Time of the evaluation, UTC, ISO 8601."""
    seconds: float = 0.0
    """Wall time."""
    page: str = "evaluation.html"
    """The page, relative to the evaluation's folder."""
    folder: str = ""

    @property
    def failed(self) -> tuple[SceneEvaluation, ...]:
        """The scenes that could not be evaluated."""
        return tuple(scene for scene in self.scenes if scene.status == "failed")
