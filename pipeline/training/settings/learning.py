"""Optimization settings: optimizer, learning rate schedule, stopping rules and precision."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from pipeline.errors import SettingsError

OptimizerName = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "step", "cosine", "plateau"]
Keep = Literal["best", "last"]
TrainPrecision = Literal["auto", "float32", "bfloat16", "float16"]
CHOICES = {"optimizer": OptimizerName, "schedule": Schedule, "keep": Keep, "precision": TrainPrecision}
"""Keys with a fixed list of values."""
REQUIRED_CHOICES: dict[str, tuple[str, tuple[str, ...]]] = {
    "momentum": ("optimizer", ("sgd",)),
    "drop_factor": ("schedule", ("step", "plateau")),
    "drop_epochs": ("schedule", ("step", "plateau")),
}
"""Keys that have an effect only for some values of another key; otherwise they must keep their default."""


@dataclass(frozen=True, kw_only=True)
class OptimizationSpec:
    """How the weights are optimized."""

    epochs: int = 50
    """Largest number of epochs of `windows_per_epoch` windows, at least 1."""
    optimizer: OptimizerName = "adamw"
    """`adamw` (Loshchilov & Hutter 2019), `adam` (Kingma & Ba 2015), or `sgd` with momentum."""
    learning_rate: float = 1e-4
    """Peak step size, above 0 and at most 0.1 (for `sgd` 1)."""
    weight_decay: float = 1e-4
    """Weight decay, 0 to 1: decoupled for `adamw`, added to the gradient for the others."""
    momentum: float = 0.9
    """Only `sgd`: share of the previous step kept in the next, 0 to below 1."""
    schedule: Schedule = "cosine"
    """`cosine` falls to 0 over all epochs, `step` drops every `drop_epochs`, `plateau` when validation stalls."""
    warmup_epochs: float = 1.0
    """Epochs over which the rate rises linearly to its peak, at least 0; at most half of `epochs` is used."""
    drop_factor: float = 0.1
    """`step` and `plateau`: factor of the rate at each drop, above 0 and below 1."""
    drop_epochs: int = 10
    """`step`: epochs between drops; `plateau`: epochs without a better validation IoU until a drop; at least 1."""
    clip_norm: float = 1.0
    """Gradients with a larger norm are scaled down to this norm, at least 0; 0 = no clipping."""
    accumulate: int = 1
    """Batches per optimizer step, at least 1: the step uses the gradient of the mean of their losses."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights, 0 to below 1 (0.99 to 0.9999 is usual); 0 = no averaging."""
    keep: Keep = "best"
    """Which epoch's weights are kept: `best` validation IoU, or the `last` epoch. With few validation scenes the best
    epoch is partly chance, and a cosine schedule ends with settled weights."""
    patience: int = 15
    """Epochs without a better validation IoU after which training stops; 0 = never."""
    max_minutes: float | None = None
    """Training ends with the epoch in which this much time has passed; None = no limit (with one, runs can differ)."""
    save_minutes: float = 5.0
    """Minutes of work inside an epoch that a kill can lose, at least 0; 0 = the state is saved at every step."""
    precision: TrainPrecision = "auto"
    """Number format of the network; `auto`: bfloat16 where the device supports it natively; float16 needs CUDA."""
    device: str = "auto"
    """`auto` (CUDA when there is one), `cpu`, `cuda` or `cuda:N`."""

    def __post_init__(self) -> None:
        self._check_choices()
        bounds = {"epochs": 1, "drop_epochs": 1, "accumulate": 1}
        bounds |= dict.fromkeys(("warmup_epochs", "clip_norm", "patience", "save_minutes"), 0)
        for key, lower in bounds.items():
            if not lower <= getattr(self, key) < math.inf:
                raise SettingsError(f"{key} must be at least {lower} and finite, not {getattr(self, key)}")
        for key in ("momentum", "ema_decay"):
            if not 0 <= getattr(self, key) < 1:
                raise SettingsError(f"{key} must be at least 0 and below 1, not {getattr(self, key)}")
        upper = 1.0 if self.optimizer == "sgd" else 0.1
        if not 0 < self.learning_rate <= upper:
            raise SettingsError(
                f"learning_rate must be above 0 and at most {upper:g} for {self.optimizer}, not {self.learning_rate}"
            )
        if not 0 <= self.weight_decay <= 1:
            raise SettingsError(f"weight_decay must be from 0 to 1, not {self.weight_decay}")
        if not 0 < self.drop_factor < 1:
            raise SettingsError(f"drop_factor must be above 0 and below 1, not {self.drop_factor}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise SettingsError(f"max_minutes must be above 0, not {self.max_minutes}")

    def _check_choices(self) -> None:
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in get_args(allowed):
                raise SettingsError(f"{key} must be one of {', '.join(get_args(allowed))}, not {getattr(self, key)!r}")
        for key, default in ((each.name, each.default) for each in fields(self) if each.name in REQUIRED_CHOICES):
            chooser, allowing = REQUIRED_CHOICES[key]
            if getattr(self, key) != default and getattr(self, chooser) not in allowing:
                raise SettingsError(
                    f"{key} has no effect with {chooser} {getattr(self, chooser)}, only with {' and '.join(allowing)}; "
                    f"leave it at {default} or choose another {chooser}"
                )
