"""How weights are learned: optimiser, schedule and number format, each a small pure choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from pipeline.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class LearningSpec:
    """How the weights are learned."""

    epochs: int = 50
    """Most rounds of `windows_per_epoch`, at least 1."""
    learning_rate: float = 1e-3
    """Peak step size of AdamW, above 0 and at most 0.1."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW, at least 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` falls from the peak to 0 over all epochs; `constant` stays."""
    warmup_epochs: float = 1.0
    """Epochs over which the step size rises linearly to its peak, at least 0 and below `epochs` (0 for one epoch)."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm, above 0."""
    patience: int = 15
    """Epochs without a better validation IoU after which training stops; 0 = never."""
    max_minutes: float | None = None
    """Training ends with the epoch in which this much time has passed; None = no limit (a limit makes runs differ)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network; `auto` takes bfloat16 where the device computes it natively."""
    device: str = "auto"
    """`auto` (CUDA when there is one), `cpu`, `cuda` or `cuda:N`."""

    def __post_init__(self) -> None:
        for key, bound in {"epochs": 1, "weight_decay": 0, "warmup_epochs": 0, "patience": 0}.items():
            if getattr(self, key) < bound:
                raise SettingsError(f"{key} must be at least {bound}, not {getattr(self, key)}")
        if not 0 < self.learning_rate <= 0.1:
            raise SettingsError(f"learning_rate must be above 0 and at most 0.1, not {self.learning_rate}")
        if not self.clip_norm > 0:
            raise SettingsError(f"clip_norm must be above 0, not {self.clip_norm}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise SettingsError(f"max_minutes must be above 0, not {self.max_minutes}")


def rate_factor(step: int, steps_per_epoch: int, spec: LearningSpec) -> float:
    """The learning rate of a step (from 0) as a share of its peak.

    Linear warm-up `(step + 1) / warmup`, then constant, or half a cosine to 0 (Loshchilov & Hutter 2017).
    """
    warmup = round(min(spec.warmup_epochs, spec.epochs / 2) * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if spec.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, spec.epochs * steps_per_epoch - warmup)))


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The number format of convolutions; weights, loss and batch statistics stay float32."""
    if wanted != "auto":
        return torch.bfloat16 if wanted == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    supports = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if device.type == "cpu" and supports is not None and supports() else torch.float32
