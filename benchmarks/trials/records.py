"""What the trials share: options in, tables out, and a line per epoch while they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.training import TrainProgress

DATA = Path(__file__).parents[3] / "shared" / "data"
"""Real scenes with labels, where they are."""
CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line that every trial takes."""

    overrides: tuple[str, ...] = ()
    """`section.key=value` of training settings."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of figures under one title."""

    title: str
    """One line."""
    rows: Sequence[Mapping[str, object]]
    """Column name -> value; numbers are printed with three decimals."""

    def markdown(self) -> str:
        """The table as docs/explanation/accuracy.md holds it."""
        if not self.rows:
            return f"**{self.title}**\n"
        columns = list(self.rows[0])
        lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        lines += [f"| {' | '.join(_text(row.get(column)) for column in columns)} |" for row in self.rows]
        return f"**{self.title}**\n\n" + "\n".join(lines) + "\n"

    def record(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


def skipped(folder: Path) -> list[Table]:
    """What a trial returns when its data are not here."""
    return [
        Table(title=f"skipped: there is no ../shared/data/{folder.relative_to(DATA)} next to the repository", rows=())
    ]


def show(progress: TrainProgress) -> None:
    """A line at the end of every tenth epoch and of the last."""
    if progress.step == progress.steps and (progress.epoch % 10 == 0 or progress.epoch == progress.epochs):
        best = "" if progress.best_iou is None else f", best IoU so far {progress.best_iou:.3f}"
        print(f"  epoch {progress.epoch}/{progress.epochs}: loss {progress.loss:.3f}{best}", flush=True)


def _text(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
