"""Records of a training run: progress of each step, metrics of each epoch, and the final report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pipeline.model import ModelCard

Stop = Literal["finished", "patience", "time", "diverged"]
"""Why training ended; every reason but `finished` ends it before the last epoch."""
ClassScores = Mapping[str, Mapping[str, float | None]]
"""Class name -> name of a pixel metric -> its value, 0 to 1; None where it is undefined."""


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Progress of a training run, passed to the callback after every step."""

    epoch: int
    """From 1."""
    epochs: int
    """Largest number of epochs."""
    step: int
    """Batches of the epoch trained on, from 1; a continued run starts at a later one."""
    steps: int
    """Batches per epoch."""
    pixels: int
    """Pixels trained on in this step."""
    loss: float
    """Mean loss of the epoch so far."""
    best_iou: float | None
    """Best validation IoU so far, 0 to 1; None before the first validation."""


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """Metrics of one epoch."""

    epoch: int
    """From 1."""
    loss: float
    """Mean training loss."""
    learning_rate: float
    """Of the epoch's last optimizer step."""
    iou: float
    """Mean validation IoU over classes, 0 to 1."""
    seconds: float
    """Duration of training and validation together; the only value that differs between two equal runs."""
    bce: float = 0.0
    """Validation cross-entropy in nats per pixel, before calibration."""
    f1: float = 0.0
    """Mean validation F1 (Dice) over classes, 0 to 1."""
    threshold: float = 0.5
    """Least probability of a pixel that counts as the class, chosen on validation for the best mean IoU."""
    classes: ClassScores = field(default_factory=dict)
    """Validation metrics of each class."""


@dataclass(frozen=True, kw_only=True)
class PartScores:
    """Metrics of the kept weights on one held-out part, at the card's threshold and temperature."""

    iou: float
    """Mean IoU over classes, 0 to 1."""
    f1: float
    """Mean F1 (Dice) over classes, 0 to 1."""
    bce: float
    """Cross-entropy in nats per pixel, before calibration."""
    ece_before: float
    """Expected calibration error of the uncalibrated probabilities, 0 to 1."""
    ece: float
    """The same after calibration."""
    classes: ClassScores
    """Metrics of each class."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """Result of a training run."""

    checkpoint: Path
    """The file with the kept epoch's weights and card."""
    sha256: str
    """Content hash of the checkpoint."""
    card: ModelCard
    """The card in the checkpoint; its temperature and threshold were chosen on the validation part."""
    best_epoch: int
    """The epoch whose weights are kept: the best on validation or the last, as `learning.keep` says; from 1."""
    best_iou: float
    """Its mean validation IoU, 0 to 1."""
    stopped: Stop
    """Why training ended."""
    history: tuple[EpochRecord, ...]
    """One record per finished epoch."""
    seconds: float
    """Duration of training and validation over all sessions of the run."""
    pixels_per_second: float
    """Pixels trained on per second, without the time of validation."""
    folder: Path = Path()
    """The run folder: history, pictures, the card's page, and the state while the run is in progress."""
    validation: PartScores | None = None
    """Metrics on the validation part, which chose the kept epoch: biased upwards."""
    test: PartScores | None = None
    """Metrics on the test part, which chose nothing; None without a test part."""
    reused: bool = False
    """Whether the run was already finished, so that nothing was done."""
