"""Worst windows: the blocks with the most wrong pixels, and their pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from rasterio.windows import Window

from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.metrics.counts import BlockCounts
from pipeline.evaluation.plan import EvaluationPlan, open_comparison
from pipeline.evaluation.records import EvaluateSpec, SceneEvaluation, WorstWindow
from pipeline.evaluation.reference import LabelFiles
from pipeline.storage import atomic_write, ensure_dir
from pipeline.training.artifacts import overlay_png

FOLDER = "worst"
"""Folder of the pictures, in the evaluation's folder."""


def find_worst(
    scenes: Sequence[SceneEvaluation], tables: Sequence[BlockCounts], spec: EvaluateSpec
) -> list[WorstWindow]:
    """The blocks with the most wrong pixels, at least one each; ties in the order of scenes and blocks."""
    size, windows = spec.bootstrap.block_size, []
    for scene, table in zip(scenes, tables, strict=True):
        for block in (-table.wrong).argsort(kind="stable")[: spec.worst_windows].tolist():
            row, col = int(table.row[block]), int(table.col[block])
            window = WorstWindow(
                scene=scene.scene,
                row=row,
                col=col,
                height=min(size, scene.shape[0] - row),
                width=min(size, scene.shape[1] - col),
                wrong=int(table.wrong[block]),
                counted=int(table.counted[block]),
            )
            windows.append(window)
    return [w for w in sorted(windows, key=lambda w: -w.wrong)[: spec.worst_windows] if w.wrong]


def draw_worst(plan: EvaluationPlan, files: LabelFiles, worst: Sequence[WorstWindow]) -> tuple[WorstWindow, ...]:
    """Draw the windows, scene by scene, so that each scene is opened once."""
    for previous in (plan.out / FOLDER).glob("[0-9][0-9]*-r*-c*.png"):
        previous.unlink()
    if worst:
        ensure_dir(plan.out / FOLDER)
    drawn: dict[int, WorstWindow] = {}
    for entry in plan.entries:
        ranked = [(rank, window) for rank, window in enumerate(worst, start=1) if window.scene == entry.id]
        if not ranked:
            continue
        with closing(open_comparison(plan, entry, files)) as comparison:
            for rank, window in ranked:
                name = f"{FOLDER}/{rank:02}-{entry.id}-r{window.row}-c{window.col}.png"
                atomic_write(plan.out / name, draw_window(comparison, window, title=f"{rank}"))
                drawn[rank] = replace(window, image=name)
    return tuple(drawn[rank] for rank in sorted(drawn))


def draw_window(comparison: Comparison, window: WorstWindow, *, title: str) -> bytes:
    """A PNG of one window: picture, labels, probability, errors."""
    shown = comparison.shown_window(Window(window.col, window.row, window.width, window.height))
    return overlay_png(shown, comparison.display_card, title=title)
