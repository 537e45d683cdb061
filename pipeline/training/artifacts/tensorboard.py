"""Scalars of each epoch for TensorBoard, an option: the same numbers as `history.csv`, as event files."""

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
    """Writes one point per epoch and number; a context manager, for its file."""

    def __init__(self, folder: Path, *, first_epoch: int = 1) -> None:
        """Open a new event file in `folder / EVENTS`.

        Args:
            folder: the run folder.
            first_epoch: the first that will be told; points that a killed run told of this and later epochs are
                withdrawn (`purge_step`), so that no epoch is shown twice.
        """
        from torch.utils.tensorboard import SummaryWriter

        self._writer: SummaryWriter = SummaryWriter(str(folder / EVENTS), purge_step=first_epoch)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def add(self, record: EpochRecord) -> None:
        """Add an epoch and flush it to the disk."""
        for name, value in scalars(record):
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()


def scalars(record: EpochRecord) -> Iterator[tuple[str, float]]:
    """`(name, value)` of every number of a record that is defined, but the epoch; maps lead to `a/b/c`."""
    for path, value in record_values(record):
        if path != ("epoch",) and isinstance(value, int | float) and value == value:
            yield "/".join(path), float(value)


def record_values(record: EpochRecord) -> Iterator[tuple[tuple[str, ...], object]]:
    """`(path, value)` of everything in a record, maps walked to their ends; the one order of columns and scalars."""
    for each in fields(record):
        yield from _walk((each.name,), getattr(record, each.name))


def _walk(path: tuple[str, ...], value: object) -> Iterator[tuple[tuple[str, ...], object]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk((*path, str(key)), inner)
    else:
        yield path, value
