"""The training loop against the bare forward and backward step, in one run."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from benchmarks.trials.records import CONFIGS, Options, Table
from benchmarks.trials.towns import TRAINING, VALIDATION, draw
from pipeline.config import load_settings
from pipeline.model import build_network
from pipeline.model.predictor import resolve_device
from pipeline.training import TrainSpec, train
from pipeline.training.optimizer import resolve_autocast_dtype

STEPS = 24
"""Bare steps before and after the training, of which the first few are not timed."""
WARMUP = 4


def run(out: Path, options: Options) -> list[Table]:
    """Speed of learning from files against the bare network on fixed tensors."""
    images, covers = draw(out.parent / "towns-drawn")
    rows = [_compare(base, images, covers, out, options) for base in (16, 32)]
    return [Table(title="Training on 4-band towns, depth 4, windows of 256 px, 8 a batch", rows=rows)]


def _compare(base: int, images: Path, covers: Path, out: Path, options: Options) -> dict[str, object]:
    named = ", ".join(f"town{seed}" for seed in VALIDATION)
    changes = (f"network.base_channels={base}", "network.depth=4", "learning.epochs=3", f"split.validation=[{named}]")
    spec = load_settings(TrainSpec, CONFIGS / "losses.yaml", (*changes, "split.test_share=0", *options.overrides))
    scenes = [images / f"town{seed}.tif" for seed in (*TRAINING, *VALIDATION)]
    before = bare_rate(spec)
    target = out / f"{base}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    report = train(scenes, covers, target, spec=spec)
    bare = (before + bare_rate(spec)) / 2
    loop = report.pixels_per_second
    return {"base channels": base, "bare Mpx/s": bare / 1e6, "loop Mpx/s": loop / 1e6, "loop / bare": loop / bare}


def bare_rate(spec: TrainSpec) -> float:
    """Pixels per second of forward, mean, backward; no loss, optimiser or data."""
    device = resolve_device(spec.learning.device)
    network = build_network(spec.network.shape(bands=4, classes=len(spec.outputs)))
    network = network.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    size, side = spec.samples.batch_size, spec.samples.tile_size
    pixels = torch.randn(size, 4, side, side, device=device).to(memory_format=torch.channels_last)
    precision = resolve_autocast_dtype(spec.learning.precision, device)
    start = 0.0
    for step in range(STEPS + WARMUP):
        if step == WARMUP:
            start = _now(device)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            logits = network(pixels)
        logits.float().mean().backward()
        network.zero_grad(set_to_none=True)
    return STEPS * size * side * side / (_now(device) - start)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
