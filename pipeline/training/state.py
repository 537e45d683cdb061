"""Training state on disk, written atomically, so that a killed run loses only the work since the last save.

model.run/
  report.json             report and identity of a finished run
  state/                  while the run is in progress
    state.json            progress, identity, and the names of the two files below
    <sha256>.safetensors  weights, their moving average, and the optimizer's state
    <sha256>.best...      the checkpoint of the best epoch so far: a hard link to the published file

The two files are written before the JSON that names them; files that it no longer names are deleted afterwards.
No pickle.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline.errors import TransientError
from pipeline.storage import atomic_write, ensure_dir, try_lock
from pipeline.training.identity import Identity, describe_difference
from pipeline.training.records import EpochRecord
from pipeline.training.settings.learning import Keep

log = logging.getLogger(__name__)

MAX_SAVING_SHARE = 0.05
"""Largest share of a run's time spent on saving its state between epochs; short epochs are not all saved."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Progress of a run."""

    epoch: int = 1
    """The current epoch, from 1."""
    batch: int = 0
    """Batches of it trained on."""
    loss_sum: float = 0.0
    """Sum of their losses."""
    epoch_s: float = 0.0
    """Seconds spent on the current epoch."""
    learning_s: float = 0.0
    """Seconds spent training in all epochs, without validation."""
    history: tuple[EpochRecord, ...] = ()
    """One record per finished epoch."""

    @property
    def seconds(self) -> float:
        """Seconds spent on training and validation in all epochs."""
        return sum(record.seconds for record in self.history) + self.epoch_s

    @property
    def scores(self) -> tuple[float, ...]:
        """Validation IoU of each finished epoch."""
        return tuple(record.iou for record in self.history)

    @property
    def best(self) -> EpochRecord | None:
        """The first epoch of the highest validation IoU."""
        return max(self.history, key=lambda record: record.iou, default=None)

    def kept_epoch(self, keep: Keep) -> EpochRecord | None:
        """The epoch whose weights are kept; None before the first has ended."""
        return self.best if keep == "best" or not self.history else self.history[-1]

    def after_batch(self, loss: float, seconds: float) -> TrainingState:
        """The state after one more batch."""
        return replace(
            self,
            batch=self.batch + 1,
            loss_sum=self.loss_sum + loss,
            epoch_s=self.epoch_s + seconds,
            learning_s=self.learning_s + seconds,
        )

    def after_epoch(self, record: EpochRecord) -> TrainingState:
        """The state at the start of the next epoch."""
        return TrainingState(epoch=self.epoch + 1, learning_s=self.learning_s, history=(*self.history, record))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TrainingState:
        """Inverse of `asdict`, after JSON."""
        return cls(**{**record, "history": tuple(EpochRecord(**each) for each in record["history"])})


@contextmanager
def locked_run_folder(folder: Path) -> Iterator[None]:
    """Create and lock a run folder against other trainings; the system releases the lock when the process dies."""
    ensure_dir(folder)
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise TransientError(f"{folder}: cannot be read: {error}; check the disk and its permissions") from error
    try:
        if not try_lock(handle):
            raise TransientError(f"{folder}: another training is writing here; wait for it, or write to another out")
        yield
    finally:
        os.close(handle)
        with suppress(OSError):
            folder.rmdir()  # succeeds only when it is empty


class StateStore:
    """Reads and writes the state of one run in its folder."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder, self.identity = folder, identity
        self._inner = folder / "state"
        self.best: Path | None = None
        self._written_at, self._writing_s = time.perf_counter(), 0.0

    @property
    def unsaved_s(self) -> float:
        """Seconds of work that a kill would lose."""
        return time.perf_counter() - self._written_at

    @property
    def is_worth_writing(self) -> bool:
        """Whether saving now takes at most `MAX_SAVING_SHARE` of the time since the last save."""
        return self._writing_s <= MAX_SAVING_SHARE * self.unsaved_s

    def read(self) -> tuple[TrainingState, dict[str, Tensor]] | None:
        """The saved state; None when there is none, it is damaged, or its identity differs."""
        try:
            record = json.loads((self._inner / "state.json").read_text(encoding="utf-8"))
            if record["identity"] != self.identity:
                log.warning("%s starts again: %s", self.folder, describe_difference(record["identity"], self.identity))
                return None
            found = TrainingState.from_record(record["standing"]), self._tensors(record["tensors"])
            self.best = self._best(record["best"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s starts again, because its saved state cannot be used: %s", self.folder, error)
            return None
        return found

    def write(self, state: TrainingState, tensors: Mapping[str, Tensor]) -> None:
        """Save this state; TransientError when the disk fails."""
        from safetensors.torch import save

        started = time.perf_counter()
        content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
        best = self.best.name if self.best else ""
        record = {"identity": self.identity, "standing": asdict(state), "tensors": name, "best": best}

        # Tensors come before the JSON that names them: a kill in between leaves the last state valid.
        ensure_dir(self._inner)
        atomic_write(self._inner / name, content)
        atomic_write(self._inner / "state.json", json.dumps(record, indent=1))
        with suppress(OSError):  # the next save tries again
            self._keep_only("state.json", name, best)
        self._written_at = time.perf_counter()
        self._writing_s = self._written_at - started

    def keep_best(self, checkpoint: Path, sha256: str) -> None:
        """Link a published checkpoint into the state, so that it survives when its name is overwritten."""
        best = self._inner / f"{sha256}.best.safetensors"
        ensure_dir(self._inner)
        if not best.exists():
            _link(checkpoint, best)
        self.best = best

    def clear(self) -> None:
        """Delete the saved state: the run is finished, or starts again."""
        self.best = None
        shutil.rmtree(self._inner, ignore_errors=True)

    def _tensors(self, name: str) -> dict[str, Tensor]:
        from safetensors.torch import load

        content = (self._inner / name).read_bytes()
        if f"{hashlib.sha256(content).hexdigest()}.safetensors" != name:
            raise ValueError(f"{name} is damaged")
        return load(content)

    def _best(self, name: str) -> Path | None:
        if name and not (self._inner / name).is_file():
            raise ValueError(f"{name} is missing")
        return self._inner / name if name else None

    def _keep_only(self, *names: str) -> None:
        for path in self._inner.iterdir():
            if path.name not in names:
                path.unlink()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        atomic_write(target, source.read_bytes())
