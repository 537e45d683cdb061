"""What a run leaves beside its checkpoint: history, curves, pictures of held-out windows, and the card's page.

model.run/
  history.csv         a row per epoch, whole after every epoch
  curves.png          loss, IoU, F1 and learning rate over epochs
  reliability.png     predicted probability against observed share, before and after calibration
  overlays/*.png      held-out windows: picture, truth, probability, errors
  card.md             the model card as a page
  tensorboard/        scalars per epoch, when `tensorboard` is on
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.errors import SettingsError, WorldError
from pipeline.journal import write_durably
from pipeline.training.curves import ReliabilityBins
from pipeline.training.overlays import ShownWindow
from pipeline.training.records import EpochRecord, TrainReport

HISTORY = "history.csv"
"""Name of the table of epochs in a run folder."""


@dataclass(frozen=True, kw_only=True)
class LeavesSpec:
    """What is left beside the checkpoint."""

    overlays: int = 6
    """Pictures of held-out windows, 0 to 100: a third each of the best, the worst and any; 0 = none."""
    tensorboard: bool = False
    """Write scalars of each epoch for TensorBoard too; needs `pip install scenemill[tensorboard]`."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlays <= 100:
            raise SettingsError(f"overlays must be from 0 to 100, not {self.overlays}")


def check_leaves(spec: LeavesSpec) -> None:
    """Find out before the run whether its leaves can be written.

    Raises:
        SettingsError: TensorBoard is wanted and not installed.
    """
    if spec.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise SettingsError(
            "leaves.tensorboard is on, but the package tensorboard is not installed; "
            "pip install scenemill[tensorboard], or set leaves.tensorboard=false"
        )


def write_history(folder: Path, records: Sequence[EpochRecord]) -> Path:
    """Write `history.csv` anew: a row per epoch, a column per number; a class's numbers are `classes.<name>.<number>`.

    Raises:
        WorldError: the disk refuses.
    """
    rows = [dict(_cells(record)) for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = folder / HISTORY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, text.getvalue())
    except OSError as error:
        raise WorldError(f"{path}: cannot be written: {error}; check the disk and its permissions") from error
    return path


def write_leaves(
    folder: Path,
    report: TrainReport,
    *,
    spec: LeavesSpec,
    reliability: tuple[ReliabilityBins, ReliabilityBins] | None = None,
    windows: Iterable[ShownWindow] = (),
) -> tuple[Path, ...]:
    """Write everything that is made once, at the end of a run.

    Args:
        folder: the run folder, made when missing.
        report: the finished run; its `checkpoint` lies beside the folder.
        spec: how much is wanted.
        reliability: of held-out pixels before and after calibration; None = not measured.
        windows: held-out windows with the best epoch's probabilities, walked once; only the pictured ones are kept.

    Returns:
        The files written, the card's page last.

    Raises:
        WorldError: the disk refuses.
    """
    return (write_history(folder, report.history),)


def _cells(record: EpochRecord) -> Iterator[tuple[str, str]]:
    for each in fields(record):
        yield from _flat(each.name, getattr(record, each.name))


def _flat(name: str, value: object) -> Iterator[tuple[str, str]]:
    """The cells of one field: maps spread over columns, undefined numbers empty."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}", inner)
    elif value is None or value != value:
        yield name, ""
    else:
        yield name, f"{value:.6g}" if isinstance(value, float) else str(value)
