"""What training tells: its progress step by step, a record per epoch, and a report at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.card import ModelCard

Stop = Literal["finished", "patience", "time", "diverged"]
"""Why training ended; all but `finished` end it before the last epoch."""


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Where a running training stands; told after every step."""

    epoch: int
    """From 1."""
    epochs: int
    """Most epochs there can be."""
    step: int
    """From 1, within the epoch."""
    steps: int
    """Steps of an epoch."""
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
    """At the epoch's end."""
    iou: float
    """Mean validation IoU over classes, 0 to 1."""
    seconds: float
    """Learning and validating together."""


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a training did."""

    checkpoint: Path
    """The best epoch's weights and card."""
    sha256: str
    """Content hash of the checkpoint."""
    card: ModelCard
    """As it is in the checkpoint."""
    best_epoch: int
    """From 1."""
    best_iou: float
    """Its mean validation IoU, 0 to 1."""
    stopped: Stop
    """Why training ended."""
    history: tuple[EpochRecord, ...]
    """One record per finished epoch."""
    seconds: float
    """From the first scene opened to the last checkpoint written."""
    pixels_per_second: float
    """Pixels learned from per second of learning, validation left out."""
