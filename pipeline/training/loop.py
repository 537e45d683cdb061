"""Training loop: open the data, split it, measure it, then train and validate epoch by epoch. Start here.

The checkpoint on disk is always the complete checkpoint of the best epoch so far. An interrupted run keeps it, and
the same command continues the run to the result that it would have had without the interruption.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path

from pipeline.errors import DivergedError, SettingsError
from pipeline.model import save_checkpoint
from pipeline.model.predictor import resolve_device
from pipeline.storage import remove_stale_partials
from pipeline.training.artifacts.tensorboard import EventLog
from pipeline.training.artifacts.write import check_artifacts, write_history
from pipeline.training.data.loader import Batch
from pipeline.training.data.samples import cache, open_data
from pipeline.training.finish import finish, provisional_card
from pipeline.training.identity import run_identity
from pipeline.training.records import EpochRecord, Stop, TrainProgress, TrainReport
from pipeline.training.report import read_report
from pipeline.training.settings.spec import TrainSpec
from pipeline.training.setup import Setup, set_up
from pipeline.training.state import StateStore, TrainingState, locked_run_folder

log = logging.getLogger(__name__)


def train(
    images: Sequence[str | Path],
    labels: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    spec: TrainSpec | None = None,
    resume: bool = True,
    progress: Callable[[TrainProgress], None] | None = None,
) -> TrainReport:
    """Train a network and write the best epoch's checkpoint.

    Args:
        images: scenes, or folders of them.
        labels: a vector file or mask raster for all scenes, or a folder with one file per scene of the
            scene's stem, or a folder of vector files that together label every scene; or several of these.
        out: the checkpoint to write, `*.safetensors`; `run_folder(out)` next to it holds all other files.
        spec: all settings.
        resume: continue an interrupted run of the same settings and data, and return the report of a finished
            one without work; False starts again.
        progress: called after every batch.

    Raises:
        SettingsError: a setting is wrong or does not fit the data; nothing is written.
        SceneError: a scene cannot be read or does not fit the others.
        LabelError: labels cannot be used.
        DivergedError: the loss became NaN or infinite before the first epoch ended.
        TransientError: the disk fails, or another training writes to the same place.
    """
    spec, out = spec or TrainSpec(), Path(out)
    labels = [labels] if isinstance(labels, str | Path) else [*labels]
    _check(out, spec)
    folder = run_folder(out)
    with closing(open_data(images, labels, spec)) as data, locked_run_folder(folder):
        identity = run_identity(spec, data, labels)
        if resume and (done := read_report(out, folder, identity, max_minutes=spec.learning.max_minutes)):
            return done
        remove_stale_partials(out)
        store = StateStore(folder, identity)
        with set_up(cache(data, spec.samples.cache_mb, len(spec.classes)), spec, out) as setup:
            loop = _Loop(setup, store, progress)
            if resume:
                loop.resume()
            stopped = loop.run()
            return finish(setup, store, loop.state, stopped)


def run_folder(out: Path) -> Path:
    """The folder of a run's state and artifacts: `model.safetensors` -> `model.run`."""
    return out.with_suffix(".run")


class _Loop:
    """Train an epoch, validate, keep the best epoch, save the state; starts from any saved state."""

    def __init__(self, setup: Setup, store: StateStore, progress: Callable[[TrainProgress], None] | None) -> None:
        self.setup, self.store, self.progress = setup, store, progress
        self.learning = setup.spec.learning
        self.validation = setup.cores("validation")
        self.state = TrainingState()
        self.clock = time.perf_counter()

    def resume(self) -> None:
        found = self.store.read()
        if found is not None:
            self.state, tensors = found
            self.setup.trainer.load_state_dict(tensors)
            log.info("%s: continues in epoch %d after batch %d", self.setup.out, self.state.epoch, self.state.batch)

    def run(self) -> Stop:
        with self.open_events() as events:
            while (stop := self.reason_to_stop()) is None:
                if not self.train_epoch():
                    return self.diverge()
                record = self.validate()
                if events is not None:
                    events.add(record)
                if self.store.is_worth_writing:
                    self.save()

        # A run killed in `finish` resumes there.
        self.save()
        return stop

    def reason_to_stop(self) -> Stop | None:
        """Checked between two epochs; depends on the training state alone, so a continued run decides the same."""
        at, best, minutes = self.state, self.state.best, self.learning.max_minutes
        if at.epoch > self.learning.epochs:
            return "finished"

        # `at.epoch` is the next epoch, so `at.epoch - 1 - best.epoch` epochs brought no improvement.
        if best is not None and 0 < self.learning.patience <= at.epoch - 1 - best.epoch:
            return "patience"
        if minutes is not None and at.history and at.seconds > 60 * minutes:
            return "time"
        return None

    def train_epoch(self) -> bool:
        """Train on the remaining batches of the epoch; False when loss or weights are no longer finite."""
        loader, trainer, begin = self.setup.loader, self.setup.trainer, self.state
        batches = loader.training(self.setup.split.training, begin.epoch, start=begin.batch)
        for index, batch in enumerate(batches, start=begin.batch):
            loss = trainer.step(batch, epoch=begin.epoch, index=index, scores=begin.scores)
            self.state = self.state.after_batch(loss, self.lap())
            if not math.isfinite(loss):
                return False
            self.report(batch)
            # Accumulated gradients are not saved, so the state is complete only between optimizer steps.
            if trainer.is_between_steps(index + 1) and self.store.unsaved_s >= 60 * self.learning.save_minutes:
                self.save()
        return trainer.is_finite()

    def validate(self) -> EpochRecord:
        """End the epoch: record its metrics, and write the checkpoint when it is the epoch to keep so far."""
        at, counts = self.state, self.setup.count(self.validation)
        confusion = counts.confusion()
        record = EpochRecord(
            epoch=at.epoch,
            loss=at.loss_sum / at.batch,
            learning_rate=self.setup.trainer.learning_rate(at.epoch, at.batch - 1, at.scores),
            bce=counts.bce,
            threshold=counts.best_threshold,
            iou=confusion.mean_iou,
            f1=confusion.mean_f1,
            classes=confusion.as_record(counts.outputs),
            seconds=at.epoch_s + self.lap(),
        )
        self.state = at.after_epoch(record)

        # Publish the checkpoint, then link the published file into the state.
        if self.state.kept_epoch(self.learning.keep) is record:
            card = provisional_card(self.setup.card, record)
            sha256 = save_checkpoint(self.setup.out, self.setup.trainer.checkpoint_network, card)
            self.store.keep_best(self.setup.out, sha256)
        write_history(self.store.folder, self.state.history)
        return record

    def save(self) -> None:
        self.store.write(self.state, self.setup.trainer.state_dict())
        self.lap()

    def diverge(self) -> Stop:
        """Log where the training diverged and end it with the epoch kept so far; DivergedError when there is none."""
        at, kept = self.state, self.state.kept_epoch(self.learning.keep)
        what = "weights" if math.isfinite(at.loss_sum) else "loss"
        reason = f"the {what} became NaN or infinite in epoch {at.epoch}, step {at.batch}"
        advice = f"lower learning.learning_rate (now {self.learning.learning_rate:g}) and check the pixels"
        if kept is None:
            raise DivergedError(f"{reason}, before the first checkpoint was written; {advice}")
        log.warning("%s; epoch %d is kept; %s", reason, kept.epoch, advice)
        return "diverged"

    def open_events(self) -> AbstractContextManager[EventLog | None]:
        if not self.setup.spec.artifacts.tensorboard:
            return nullcontext()
        return EventLog(self.store.folder, first_epoch=self.state.epoch)

    def report(self, batch: Batch) -> None:
        if self.progress is None:
            return
        at, best = self.state, self.state.best
        self.progress(
            TrainProgress(
                epoch=at.epoch,
                epochs=self.learning.epochs,
                step=at.batch,
                steps=self.setup.loader.batches_per_epoch,
                pixels=batch.weight_mask[:, 0].numel(),
                loss=at.loss_sum / at.batch,
                best_iou=best.iou if best else None,
            )
        )

    def lap(self) -> float:
        """Seconds since the last call; the time of saving is not counted."""
        previous, self.clock = self.clock, time.perf_counter()
        return self.clock - previous


def _check(out: Path, spec: TrainSpec) -> None:
    """Check output and settings before any data is read."""
    if out.suffix != ".safetensors":
        raise SettingsError(f"out must end in .safetensors, not {out.name!r}")
    if out.is_dir():
        raise SettingsError(f"out: {out} is a folder; name a file in it")
    resolve_device(spec.learning.device, key="learning.device")
    check_artifacts(spec.artifacts)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"out: the folder {out.parent} cannot be created: {error}") from error
