"""Where a run stands, on disk: written whole or not at all, so that a kill costs only the work since.

model.run/
  report.json             what a finished run did, and what decided its result
  state/                  while it runs
    state.json            where it stands, what decides its result, and the names of the two files below
    <sha256>.safetensors  weights, their average, and the optimiser's state
    <sha256>.best...      the checkpoint of the best epoch so far: another name of the file that was published

The two files are written before the JSON that names them, and those it no longer names go after it. No pickle.
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
"""Most of a run's time that goes into saving its state between epochs; where epochs are short, not after each."""


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """How far a run has come."""

    epoch: int = 1
    """The epoch at hand, from 1."""
    batch: int = 0
    """Batches of it learned from."""
    loss_sum: float = 0.0
    """Sum of their losses."""
    epoch_s: float = 0.0
    """Seconds spent on the epoch at hand."""
    learning_s: float = 0.0
    """Seconds spent learning in all epochs, validation left out."""
    history: tuple[EpochRecord, ...] = ()
    """One record per finished epoch."""

    @property
    def seconds(self) -> float:
        """Spent on learning and validating in all epochs."""
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
        """The epoch whose weights are kept, or None before the first has ended."""
        return self.best if keep == "best" or not self.history else self.history[-1]

    def after_batch(self, loss: float, seconds: float) -> TrainingState:
        """One batch further."""
        return replace(
            self,
            batch=self.batch + 1,
            loss_sum=self.loss_sum + loss,
            epoch_s=self.epoch_s + seconds,
            learning_s=self.learning_s + seconds,
        )

    def after_epoch(self, record: EpochRecord) -> TrainingState:
        """At the start of the next epoch."""
        return TrainingState(epoch=self.epoch + 1, learning_s=self.learning_s, history=(*self.history, record))

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TrainingState:
        """Inverse of `asdict`, after JSON."""
        return cls(**{**record, "history": tuple(EpochRecord(**each) for each in record["history"])})


@contextmanager
def locked_run_folder(folder: Path) -> Iterator[None]:
    """Hold a run folder, made when missing, against other trainings; the system lets go when the process dies.

    Raises:
        TransientError: another process holds it, or the disk refuses.
    """
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
            folder.rmdir()  # only when nothing was left in it


class StateStore:
    """The state of one run in its folder."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        """Of the run of this identity in a run folder."""
        self.folder, self.identity = folder, identity
        self._inner = folder / "state"
        self.best: Path | None = None
        self._written_at, self._writing_s = time.perf_counter(), 0.0

    @property
    def unsaved_s(self) -> float:
        """Seconds of work that a kill would cost."""
        return time.perf_counter() - self._written_at

    @property
    def is_worth_writing(self) -> bool:
        """Whether there is enough new work for writing to take no more than `MAX_SAVING_SHARE` of the time."""
        return self._writing_s <= MAX_SAVING_SHARE * self.unsaved_s

    def read(self) -> tuple[TrainingState, dict[str, Tensor]] | None:
        """Where this run was left; None when it never began, differs in identity, or is damaged."""
        try:
            record = json.loads((self._inner / "state.json").read_text(encoding="utf-8"))
            if record["identity"] != self.identity:
                log.warning("%s starts anew: %s", self.folder, describe_difference(record["identity"], self.identity))
                return None
            found = TrainingState.from_record(record["standing"]), self._tensors(record["tensors"])
            self.best = self._best(record["best"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s starts anew, because its saved state cannot be used: %s", self.folder, error)
            return None
        return found

    def write(self, standing: TrainingState, tensors: Mapping[str, Tensor]) -> None:
        """Make this the state that a run continues from.

        Raises:
            TransientError: the disk refuses.
        """
        from safetensors.torch import save

        began = time.perf_counter()
        content = save({key: value.detach().cpu().contiguous() for key, value in tensors.items()})
        name = f"{hashlib.sha256(content).hexdigest()}.safetensors"
        best = self.best.name if self.best else ""
        record = {"identity": self.identity, "standing": asdict(standing), "tensors": name, "best": best}
        ensure_dir(self._inner)
        atomic_write(self._inner / name, content)
        atomic_write(self._inner / "state.json", json.dumps(record, indent=1))
        with suppress(OSError):  # the next state tries again
            self._keep_only("state.json", name, best)
        self._written_at = time.perf_counter()
        self._writing_s = self._written_at - began

    def keep_best(self, checkpoint: Path, sha256: str) -> None:
        """Hold on to a published checkpoint, whatever becomes of its name.

        Raises:
            TransientError: the disk refuses.
        """
        best = self._inner / f"{sha256}.best.safetensors"
        ensure_dir(self._inner)
        if not best.exists():
            _link(checkpoint, best)
        self.best = best

    def clear(self) -> None:
        """Forget the state: the run is finished, or is to start anew."""
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
    except OSError:  # a disk without hard links
        atomic_write(target, source.read_bytes())
