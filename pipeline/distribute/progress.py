"""Progress callbacks: counting the finished pixels of a stage."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from pipeline.grid import RasterGrid

ProgressCallback = Callable[[str, int, int], None]
"""Called with `(stage, finished pixels, all pixels)`; cancels the work by raising."""


def stage_progress(
    progress: ProgressCallback | None, stage: str, grid: RasterGrid, *, done: int = 0
) -> Callable[[int], None] | None:
    """A thread-safe counter of a stage's pixels that reports to `progress`; `done` of them are finished already."""
    if progress is None:
        return None
    total, lock = grid.height * grid.width, Lock()

    def advance(pixels: int) -> None:
        nonlocal done
        with lock:
            done += pixels
            progress(stage, done, total)

    return advance
