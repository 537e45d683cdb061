"""TensorBoard event files with the scalars of each epoch, the same values as `history.csv`; optional."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pipeline.training.records import EpochRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

EVENTS = "tensorboard"
"""Name of the folder of event files in a run folder: `tensorboard --logdir model.run/tensorboard`."""


class EventLog:
    """Writes one point per epoch and scalar; a context manager that owns its file."""

    def __init__(self, folder: Path, *, first_epoch: int = 1) -> None:
        """Open a new event file in the run folder's `EVENTS`.

        Points of `first_epoch` and later ones from a killed run are discarded, so that no epoch is shown twice.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter = SummaryWriter(str(folder / EVENTS), purge_step=first_epoch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, record: EpochRecord) -> None:
        """Write the scalars of an epoch and flush them to disk."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()


def scalars(record: EpochRecord) -> Iterator[tuple[str, float]]:
    """`(name, value)` of every defined number of a record but the epoch; nested maps give names like `a/b/c`."""
    for path, value in record_values(record):
        if path != ("epoch",) and isinstance(value, int | float) and value == value:
            yield "/".join(path), float(value)


def record_values(record: EpochRecord) -> Iterator[tuple[tuple[str, ...], object]]:
    """`(path, value)` of every field of a record, nested maps flattened, in the order of columns and scalars."""
    for each in fields(record):
        yield from _walk((each.name,), getattr(record, each.name))


def _walk(path: tuple[str, ...], value: object) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk((*path, str(key)), inner)
    else:
        yield path, value
