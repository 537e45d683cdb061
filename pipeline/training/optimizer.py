"""Optimizer, learning rate schedule and training precision: one small pure function each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from pipeline.errors import SettingsError
from pipeline.model.predictor import cpu_has_bfloat16
from pipeline.training.settings.learning import OptimizationSpec, TrainPrecision


def rate_factor(step: int, steps_per_epoch: int, spec: OptimizationSpec, scores: Sequence[float] = ()) -> float:
    """The learning rate of an optimizer step, counted from 0 over all epochs, as a share of its peak.

    Linear warm-up `(step + 1) / warmup` (Goyal et al. 2017, arXiv:1706.02677, section 2.2), then constant; or
    `drop_factor ** drops`; or half a cosine to 0 (Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5). `scores`
    are the validation IoU of each finished epoch; only `plateau` uses them.
    """
    warmup = round(min(spec.warmup_epochs, spec.epochs / 2) * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    if spec.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, spec.epochs * steps_per_epoch - warmup)))
    if spec.schedule == "step":
        return float(spec.drop_factor ** (step // steps_per_epoch // spec.drop_epochs))
    return float(spec.drop_factor ** count_drops(scores, spec.drop_epochs)) if spec.schedule == "plateau" else 1.0


def count_drops(scores: Sequence[float], patience: int) -> int:
    """How often the score stayed at or below its maximum for `patience` epochs; the count restarts after each drop.

    >>> count_drops([0.5, 0.6, 0.6, 0.6, 0.6, 0.7, 0.6], 2)
    1
    """
    best, stale, drops = -math.inf, 0, 0
    for score in scores:
        stale = 0 if score > best else stale + 1
        best = max(best, score)
        if stale == patience:
            stale, drops = 0, drops + 1
    return drops


def make_optimizer(parameters: Iterable[nn.Parameter], spec: OptimizationSpec) -> Optimizer:
    """The optimizer that `spec` names, at the peak learning rate."""
    if spec.optimizer == "sgd":
        return SGD(parameters, spec.learning_rate, momentum=spec.momentum, weight_decay=spec.weight_decay)
    kind = AdamW if spec.optimizer == "adamw" else Adam
    return kind(parameters, lr=spec.learning_rate, weight_decay=spec.weight_decay)


def resolve_autocast_dtype(precision: TrainPrecision, device: torch.device) -> torch.dtype:
    """The number format of convolutions; weights, loss and batch statistics stay float32.

    float16 is refused on other devices than CUDA, because it needs CUDA's gradient scaling.
    """
    if precision == "float16" and device.type != "cuda":
        raise SettingsError(f"learning.precision float16 needs a CUDA device, not {device}; use bfloat16 or auto")
    if precision != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else torch.float32
