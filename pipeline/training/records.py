"""What training tells: its progress step by step, a record per epoch, and a report at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.model import ModelCard

Stop = Literal["finished", "patience", "time", "diverged"]
"""Why training ended; all but `finished` end it before the last epoch."""
ClassScores = Mapping[str, Mapping[str, float | None]]
"""Class name -> name of a pixel metric -> its value, 0 to 1; None where it is undefined."""


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Where a running training stands; told after every step."""

    epoch: int
    """From 1."""
    epochs: int
    """Most epochs there can be."""
    step: int
    """Batches of the epoch learned from, from 1; the first that is told is a later one when a run continues."""
    steps: int
    """Batches of an epoch."""
    pixels: int
    """Pixels learned from in this step."""
    loss: float
    """Mean loss of the epoch so far."""
    best_iou: float | None
    """Best validation IoU so far, 0 to 1; None before the first validation."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch in numbers."""

    epoch: int
    """From 1."""
    loss: float
    """Mean training loss."""
    learning_rate: float
    """Of the epoch's last optimiser step."""
    iou: float
    """Mean validation IoU over classes, 0 to 1."""
    seconds: float
    """Learning and validating together; the one number here that two equal runs do not share."""
    bce: float = 0.0
    """Validation cross-entropy in nats per pixel, before calibration."""
    f1: float = 0.0
    """Mean validation F1 (Dice) over classes, 0 to 1."""
    threshold: float = 0.5
    """Probability from which a pixel is of a class, chosen on validation for the best mean IoU."""
    classes: ClassScores = field(default_factory=dict)
    """Validation metrics of each class."""


@dataclass(frozen=True, kw_only=True)
class PartScores:
    """How good the kept weights are on one held-out part, at the card's threshold and temperature."""

    iou: float
    """Mean IoU over classes, 0 to 1."""
    f1: float
    """Mean F1 (Dice) over classes, 0 to 1."""
    bce: float
    """Cross-entropy in nats per pixel, before calibration."""
    ece_before: float
    """Expected calibration error of the bare probabilities, 0 to 1."""
    ece: float
    """The same after calibration."""
    classes: ClassScores
    """Metrics of each class."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training did."""

    checkpoint: Path
    """The best epoch's weights and card."""
    sha256: str
    """Content hash of the checkpoint."""
    card: ModelCard
    """As it is in the checkpoint; its temperature and threshold were chosen on the validation part."""
    best_epoch: int
    """The epoch whose weights are kept: the best on validation or the last, as `learning.keep` says; from 1."""
    best_iou: float
    """Its mean validation IoU, 0 to 1."""
    stopped: Stop
    """Why training ended."""
    history: tuple[EpochRecord, ...]
    """One record per finished epoch."""
    seconds: float
    """Of learning and validating, over all sessions of the run."""
    pixels_per_second: float
    """Pixels learned from per second of learning, validation left out."""
    folder: Path = Path()
    """What the run leaves beside its checkpoint: history, pictures, the card's page, and its state while it runs."""
    validation: PartScores | None = None
    """The kept weights on the validation part, which chose them: a flattering figure."""
    test: PartScores | None = None
    """The kept weights on the test part, which nothing was chosen on; None without one."""
    reused: bool = False
    """Whether the run had been finished before, and nothing was done."""
