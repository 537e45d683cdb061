"""Progress bars with pixels per second and time left; hidden unless the output is a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from pipeline.cli.console import escape

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.distribute import ProgressCallback
    from pipeline.training import TrainProgress

COUNTED = {"compare": "pairs of scenes", "merge": "scenes"}
"""Unit of progress of each stage of a merge."""


class PixelRate(ProgressColumn):
    """Megapixels per second of the current stage; the count of one that is not counted in pixels."""

    def render(self, task: Task) -> Text:
        """The rate, or blank before it is known."""
        if counted := task.fields.get("counted"):
            return Text(f"{task.completed:,.0f} of {task.total or 0:,.0f} {counted}", style="cyan")
        return Text(f"{task.speed / 1e6:6.2f} Mpx/s" if task.speed else "", style="cyan")


@contextmanager
def progress_bars(console: Console) -> Iterator[Progress]:
    """A live display on a terminal; otherwise no output."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f} %"),
        PixelRate(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield progress


def scene_progress(progress: Progress, scene_id: str, *, concurrent: bool = False) -> ProgressCallback:
    """A callback that shows the current stage of one scene as a bar.

    Unless scenes run concurrently, the bars of previous scenes are removed.
    """
    for previous in () if concurrent else progress.task_ids:
        progress.remove_task(previous)
    return _stage_progress(progress, lambda stage, total: progress.add_task(f"{escape(scene_id)} {stage}", total=total))


def merge_progress(progress: Progress) -> ProgressCallback:
    """A callback that shows the current stage of a merge as a bar, with the number of finished scenes or pairs."""
    return _stage_progress(
        progress, lambda stage, total: progress.add_task(stage, total=total, counted=COUNTED.get(stage, "done"))
    )


def _stage_progress(progress: Progress, add_bar: Callable[[str, int], TaskID]) -> ProgressCallback:
    """A callback with a bar for each stage until the stage is done."""
    bars: dict[str, TaskID] = {}

    def update(stage: str, done: int, total: int) -> None:
        bar = bars.get(stage)
        if bar is None:
            bar = bars[stage] = add_bar(stage, total)
        progress.update(bar, completed=done, visible=done < total)

    return update


def train_progress(progress: Progress) -> Callable[[TrainProgress], None]:
    """A callback that shows the current epoch as one bar, with its loss and the best IoU so far."""
    bar = progress.add_task("training", total=None)
    shown = 0

    def update(step: TrainProgress) -> None:
        nonlocal shown
        best = "" if step.best_iou is None else f", best IoU {step.best_iou:.3f}"
        if step.epoch != shown:
            shown = step.epoch
            progress.reset(bar, total=step.steps * step.pixels)
        text = f"epoch {step.epoch}/{step.epochs} loss {step.loss:.3f}{best}"
        progress.update(bar, completed=step.step * step.pixels, description=text)

    return update
