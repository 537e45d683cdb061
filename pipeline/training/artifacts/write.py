"""Artifacts next to the checkpoint: history, curves, pictures of held-out windows, and the model card's page.

model.run/
  history.csv         a row per epoch, rewritten atomically after every epoch
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
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import SettingsError
from pipeline.model import ModelCard
from pipeline.storage import atomic_write, ensure_dir
from pipeline.training.artifacts.card_facts import CardFacts
from pipeline.training.artifacts.card_markdown import card_page
from pipeline.training.artifacts.curves import curves_png, reliability_png
from pipeline.training.artifacts.overlays import PredictedWindow, choose_windows, overlay_png
from pipeline.training.artifacts.tensorboard import record_values
from pipeline.training.records import EpochRecord, TrainReport
from pipeline.training.settings.artifacts import ArtifactsSpec

if TYPE_CHECKING:
    from pipeline.training.validation.calibration import Reliability

HISTORY, CURVES, RELIABILITY, OVERLAYS, CARD = "history.csv", "curves.png", "reliability.png", "overlays", "card.md"


def check_artifacts(spec: ArtifactsSpec) -> None:
    """Raise SettingsError before the run when TensorBoard is on and not installed."""
    if spec.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise SettingsError(
            "artifacts.tensorboard is on, but the package tensorboard is not installed; "
            "pip install scenemill[tensorboard], or set artifacts.tensorboard=false"
        )


def write_history(folder: Path, records: Sequence[EpochRecord]) -> Path:
    """Write `history.csv`: a row per epoch, a column per number; a class's columns are `classes.<name>.<number>`."""
    rows = [{".".join(path): _cell(value) for path, value in record_values(record)} for record in records]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    ensure_dir(folder)
    return _written(folder / HISTORY, text.getvalue())


def write_artifacts(
    folder: Path,
    report: TrainReport,
    *,
    spec: ArtifactsSpec,
    reliability: tuple[Reliability, Reliability] | None = None,
    windows: Iterable[PredictedWindow] = (),
) -> tuple[Path, ...]:
    """Write the artifacts of a finished run into its folder; returns the files, the card's page last.

    `reliability` is that of held-out pixels before and after calibration (None = no diagram); `windows` hold the kept
    epoch's probabilities and are iterated once.
    """
    history = write_history(folder, report.history)
    pictures = [_written(folder / CURVES, curves_png(report.history, report.best_epoch))]
    if reliability is not None:
        pictures.append(_written(folder / RELIABILITY, reliability_png(*reliability)))
    pictures += _write_overlays(folder / OVERLAYS, windows, report.card, spec.overlays)
    addresses = [path.relative_to(folder).as_posix() for path in pictures]
    page = card_page(report.card, checkpoint=report.checkpoint.name, report=report, pictures=addresses)
    return (history, *pictures, _written(folder / CARD, page))


def _write_overlays(folder: Path, windows: Iterable[PredictedWindow], card: ModelCard, count: int) -> list[Path]:
    """Write a picture per chosen window, the worst first, and delete pictures of an earlier run."""
    seed = CardFacts(card=card).number("settings", "seed") or 0
    chosen = choose_windows(windows, card, count=count, seed=int(seed)) if count else []
    ensure_dir(folder)
    written = []
    for number, (kind, window) in enumerate(chosen, start=1):
        scene = re.sub(r"[^\w.-]+", "_", window.scene)[:80]
        path = folder / f"{number:02d}-{kind}-{scene}-r{window.row}-c{window.col}.png"
        written.append(_written(path, overlay_png(window, card, title=kind)))
    for path in set(folder.glob("[0-9][0-9]-*.png")) - set(written):
        path.unlink(missing_ok=True)
    return written


def _written(path: Path, content: bytes | str) -> Path:
    atomic_write(path, content)
    return path


def _cell(value: object) -> str:
    """A number with six digits; empty where undefined."""
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
