"""Train a U-Net on labelled scenes: open, split, survey, then epochs of learning and validating. Start here.

The checkpoint on disk is always the best epoch so far, whole; whatever stops a run leaves it in place.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from pipeline.card import ModelCard
from pipeline.checkpoint import save_checkpoint
from pipeline.errors import ModelError, SettingsError
from pipeline.predictor import resolve_device
from pipeline.training.feed import Batch, Feed
from pipeline.training.learning import choose_precision, rate_factor
from pipeline.training.losses import segmentation_loss
from pipeline.training.metrics import Confusion
from pipeline.training.records import EpochRecord, Stop, TrainProgress, TrainReport
from pipeline.training.samples import LabelledData, cache, open_data
from pipeline.training.settings import TrainSpec
from pipeline.training.splits import Split, check_validation, split_data
from pipeline.training.survey import Survey, survey
from pipeline.training.windows import cover
from pipeline.unet import UNet, UNetSpec

__all__ = ["TrainProgress", "TrainReport", "TrainSpec", "make_card", "train"]

log = logging.getLogger(__name__)


def train(
    images: Sequence[str | Path],
    labels: str | Path,
    out: str | Path,
    *,
    spec: TrainSpec | None = None,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainReport:
    """Train a network and write the best epoch's checkpoint.

    Args:
        images: scenes, or folders of GeoTIFF scenes.
        labels: a vector file or mask raster for all scenes, or a folder with one file per scene of the
            scene's stem, or a folder of vector files that together label every scene.
        out: the checkpoint to write, `*.safetensors`.
        spec: all settings.
        progress: called after every step.

    Raises:
        SettingsError: a setting is wrong or does not fit the data; nothing is written.
        SceneError: a scene cannot be read or does not fit the others.
        LabelError: labels cannot be used.
        ModelError: the loss was not finite before the first epoch's end.
    """
    spec, out, start = spec or TrainSpec(), Path(out), time.perf_counter()
    _check_out(out)
    resolve_device(spec.learning.device)
    opened = open_data(images, labels, spec)
    with closing(opened):
        run, stopped = _learn(cache(opened, spec.samples.cache_mb, len(spec.classes)), spec, out, progress)
    return run.report(stopped, time.perf_counter() - start)


def _learn(
    data: LabelledData, spec: TrainSpec, out: Path, progress: Callable[[TrainProgress], None] | None
) -> tuple[_Run, Stop]:
    network_spec = spec.network.unet(bands=len(data.sources[0].scene.bands), classes=len(spec.classes))
    split = split_data(data, spec.split, seed=spec.seed, core_size=spec.samples.tile_size - 2 * network_spec.margin)
    check_validation(split)
    facts = survey(split.training, spec.classes, seed=spec.seed)
    card = make_card(spec, network_spec, data, split, facts)
    with Feed(spec, card.normalization, margin=network_spec.margin) as feed, torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        run = _Run(UNet(network_spec), feed, split, card, out)
        return run, run.learn(progress)


def make_card(spec: TrainSpec, network: UNetSpec, data: LabelledData, split: Split, facts: Survey) -> ModelCard:
    """The card of a network that is about to be trained."""
    scene = data.sources[0].scene
    sizes = [source.scene.grid.resolution_m for source in data.sources]
    validation, test = (tuple(Path(n).stem for n in names) for names in (spec.split.validation, spec.split.test))
    return ModelCard(
        bands=facts.bands,
        classes=spec.classes,
        outputs="logits",
        normalization=facts.normalization(),
        dtype=scene.dtype,
        resolution_m=round(spec.resolution_m or math.fsum(sizes) / len(sizes), 6),
        stride=network.stride,
        size_offset=network.size_offset,
        margin=network.margin,
        receptive_field=network.receptive_field,
        training={
            "split": split.as_record(),
            "labels": {"repaired": data.repaired, "dropped": data.dropped},
            "class_share": dict(zip(spec.classes, facts.class_share.round(6).tolist(), strict=True)),
            "settings": asdict(replace(spec, split=replace(spec.split, validation=validation, test=test))),
        },
    )


class _Run:
    """The loop and what it carries from step to step."""

    def __init__(self, network: UNet, feed: Feed, split: Split, card: ModelCard, out: Path) -> None:
        learning = feed.spec.learning
        self.device = resolve_device(learning.device)
        self.network = network.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.feed, self.split, self.card, self.out = feed, split, card, out
        self.cores = cover(split.validation, feed.core_size)
        self.optimizer = AdamW(network.parameters(), lr=learning.learning_rate, weight_decay=learning.weight_decay)
        self.schedule = LambdaLR(self.optimizer, lambda step: rate_factor(step, feed.batches_per_epoch, learning))
        self.precision = choose_precision(learning.precision, self.device)
        self.history: list[EpochRecord] = []
        self.best: EpochRecord | None = None
        self.sha256 = ""
        self.learning_s = 0.0

    def learn(self, progress: Callable[[TrainProgress], None] | None) -> Stop:
        """Learn and validate epoch by epoch until a reason to stop."""
        learning, start = self.feed.spec.learning, time.perf_counter()
        for epoch in range(1, learning.epochs + 1):
            began = time.perf_counter()
            loss = self.learn_epoch(epoch, progress)
            if not math.isfinite(loss):
                return self._diverged(epoch)
            self.learning_s += time.perf_counter() - began
            confusion = self.validate()
            rate = float(self.schedule.get_last_lr()[0])
            seconds = time.perf_counter() - began
            record = EpochRecord(epoch=epoch, loss=loss, learning_rate=rate, iou=confusion.mean_iou, seconds=seconds)
            self.history.append(record)
            self._keep_if_best(record, confusion)
            if learning.max_minutes is not None and time.perf_counter() - start > 60 * learning.max_minutes:
                return "time"
            if self.best is not None and 0 < learning.patience <= epoch - self.best.epoch:
                return "patience"
        return "finished"

    def learn_epoch(self, epoch: int, progress: Callable[[TrainProgress], None] | None) -> float:
        """One optimiser step per batch; returns the mean loss, or at once a loss that is not finite."""
        self.network.train()
        total, steps = 0.0, self.feed.batches_per_epoch
        for step, batch in enumerate(self.feed.training(self.split.training, epoch), start=1):
            loss = self._step(batch)
            if not math.isfinite(loss):
                return loss
            total += loss
            if progress is not None:
                progress(
                    TrainProgress(
                        epoch=epoch,
                        epochs=self.feed.spec.learning.epochs,
                        step=step,
                        steps=steps,
                        pixels=batch.counted[:, 0].numel(),
                        loss=total / step,
                        best_iou=self.best.iou if self.best else None,
                    )
                )
        return total / steps

    def _step(self, batch: Batch) -> float:
        logits = self._logits(batch.pixels)
        target, counted = batch.target.to(self.device), batch.counted.to(self.device)
        loss = segmentation_loss(logits, target, counted, spec=self.feed.spec.loss)
        if not bool(loss.isfinite()):
            return math.nan  # and the weights stay as they were
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.feed.spec.learning.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return float(loss.detach())

    @torch.no_grad()
    def validate(self) -> Confusion:
        """Counts over the held-out part, decided at the card's threshold."""
        self.network.eval()
        threshold = math.log(self.card.threshold / (1 - self.card.threshold))
        confusion = Confusion.zero(len(self.card.classes))
        for batch in self.feed.validation(self.cores):
            predicted = (self._logits(batch.pixels).float() >= threshold).cpu().numpy()
            confusion += Confusion.of(predicted, batch.target.numpy() > 0, batch.counted.numpy())
        return confusion

    def _logits(self, pixels: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = self.network(pixels.to(self.device, non_blocking=True))
        return logits

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.precision)

    def _keep_if_best(self, record: EpochRecord, confusion: Confusion) -> None:
        if self.best is not None and record.iou <= self.best.iou:
            return
        self.best = record
        metrics = {
            "epoch": record.epoch,
            "iou": round(record.iou, 4),
            "classes": confusion.as_record(self.card.classes),
        }
        facts = {**self.card.training, "metrics": metrics}
        self.card = replace(self.card, training=facts)
        self.sha256 = save_checkpoint(self.out, self.network, self.card)

    def _diverged(self, epoch: int) -> Stop:
        reason = f"the loss became NaN or infinite in epoch {epoch}"
        advice = f"lower learning.learning_rate (now {self.feed.spec.learning.learning_rate:g}) and check the pixels"
        if self.best is None:
            raise ModelError(f"{reason}, before any checkpoint was worth keeping; {advice}")
        log.warning("%s; epoch %d is kept; %s", reason, self.best.epoch, advice)
        return "diverged"

    def report(self, stopped: Stop, seconds: float) -> TrainReport:
        """What was done."""
        assert self.best is not None
        spec = self.feed.spec.samples
        pixels = len(self.history) * self.feed.batches_per_epoch * spec.batch_size * spec.tile_size**2
        return TrainReport(
            checkpoint=self.out,
            sha256=self.sha256,
            card=self.card,
            best_epoch=self.best.epoch,
            best_iou=self.best.iou,
            stopped=stopped,
            history=tuple(self.history),
            seconds=seconds,
            pixels_per_second=pixels / self.learning_s if self.learning_s else 0.0,
        )


def _check_out(out: Path) -> None:
    if out.suffix != ".safetensors":
        raise SettingsError(f"out must end in .safetensors, not {out.name!r}")
    if out.is_dir():
        raise SettingsError(f"out: {out} is a folder; name a file in it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"out: the folder {out.parent} cannot be made: {error}") from error
