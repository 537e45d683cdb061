"""Progress is shown to a person at a terminal, and to nobody else."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console
from rich.progress import Progress

from pipeline.cli.progress import PixelRate, merge_progress, progress_bars, scene_progress, train_progress
from pipeline.training.records import TrainProgress


def terminal(*, is_terminal: bool) -> tuple[Console, io.StringIO]:
    sink = io.StringIO()
    return Console(file=sink, force_terminal=is_terminal, width=120, color_system=None, legacy_windows=False), sink


def test_a_file_or_pipe_gets_nothing() -> None:
    console, sink = terminal(is_terminal=False)
    with progress_bars(console) as bars:
        progress = scene_progress(bars, "town")
        progress("infer", 50, 100)
        progress("infer", 100, 100)
    assert sink.getvalue() == ""


def test_a_terminal_shows_scene_stage_share_rate_and_time_left() -> None:
    console, sink = terminal(is_terminal=True)
    seconds = iter(range(1000))
    with progress_bars(console) as bars:
        bars.get_time = lambda: float(next(seconds))
        progress = scene_progress(bars, "[town]")
        progress("infer", 10_000_000, 100_000_000)
        progress("infer", 25_000_000, 100_000_000)
        bars.refresh()
    text = sink.getvalue()
    assert "[town] infer" in text
    assert " 25 %" in text
    assert "Mpx/s" in text
    assert "--:--" not in text.splitlines()[-1]


def test_a_stage_has_a_bar_until_it_is_done() -> None:
    bars = Progress(disable=True)
    progress = scene_progress(bars, "town")
    progress("infer", 10, 100)
    progress("infer", 100, 100)
    progress("polygons", 30, 100)
    assert [(task.description, task.completed, task.visible) for task in bars.tasks] == [
        ("town infer", 100, False),
        ("town polygons", 30, True),
    ]


def test_the_bar_of_a_failed_scene_goes_when_the_next_begins() -> None:
    bars = Progress(disable=True)
    scene_progress(bars, "broken")("infer", 10, 100)
    scene_progress(bars, "next")("infer", 20, 100)
    assert [task.description for task in bars.tasks] == ["next infer"]


def test_a_merge_is_counted_in_scenes_and_pairs_of_them() -> None:
    console, sink = terminal(is_terminal=True)
    with progress_bars(console) as bars:
        progress = merge_progress(bars)
        progress("compare", 1200, 4000)
        bars.refresh()
        progress("compare", 4000, 4000)
        progress("merge", 3, 20)
        bars.refresh()
    text = sink.getvalue()
    assert "1,200 of 4,000 pairs of scenes" in text
    assert "3 of 20 scenes" in text
    assert "Mpx/s" not in text


def test_the_rate_is_blank_before_it_is_known() -> None:
    bars = Progress(disable=True)
    bars.add_task("town", total=100)
    assert PixelRate().render(bars.tasks[0]).plain == ""


def test_training_shows_one_bar_that_restarts_with_every_epoch() -> None:
    bars = Progress(disable=True)
    progress = train_progress(bars)
    step = TrainProgress(epoch=1, epochs=2, step=1, steps=2, loss=0.75, best_iou=None, pixels=100)
    progress(step)
    progress(replace(step, step=2, loss=0.5))
    (task,) = bars.tasks
    assert (task.completed, task.total, task.description) == (200, 200, "epoch 1/2 loss 0.500")
    progress(replace(step, epoch=2, loss=0.25, best_iou=0.6))
    (task,) = bars.tasks
    assert (task.completed, task.total, task.description) == (100, 200, "epoch 2/2 loss 0.250, best IoU 0.600")
