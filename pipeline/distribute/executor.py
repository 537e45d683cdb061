"""Executor protocol: where the model, the regions and the output stages of a scene run.

    LocalExecutor     this process, one region after another
    ClusterExecutor   tasks on a dask.distributed cluster, see `pipeline.distribute.cluster_executor`

An executor serves one scene. It gets the progress callback once, which cancels the work by raising.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar

from pipeline.distribute.plan import plan_local_regions
from pipeline.distribute.spec import DistributeSpec
from pipeline.grid import RasterGrid
from pipeline.inference import Region, RegionJob, RegionResult, choose_precision
from pipeline.inference.region import infer_stack
from pipeline.inference.tiling import group_adjacent
from pipeline.model import ArrayFunction, Predictor
from pipeline.model.predictor import PrecisionCheck, device_lock, identity_of
from pipeline.scene import Scene

Outputs = TypeVar("Outputs")
ProgressCallback = Callable[[str, int, int], None]
"""Called with `(stage, finished pixels, all pixels)`; cancels the work by raising."""


class OutputTask(Protocol[Outputs]):
    """The output stages of a scene: they need files of its work folder but no model; pickles."""

    @property
    def scene(self) -> Scene:
        """The scene."""

    def input_files(self) -> Sequence[Path]:
        """Files that the task reads, in the work folder; empty: it reads others, and runs on this machine only."""

    def run(self, result: Path, progress: ProgressCallback | None) -> Outputs:
        """Make the outputs in a folder of the work folder."""

    def record(self, result: Path, outputs: Outputs) -> None:
        """Record the outputs after they were made on another machine and downloaded."""


class Executor(Protocol):
    """Runs the work of one scene."""

    def identity(self, predictor: Predictor | ArrayFunction, scene: Scene) -> str | None:
        """Identity of the model where regions run; None for a plain function."""

    def workspace(self, work: Path, preload: Callable[[], object]) -> AbstractContextManager[None]:
        """The context of all later calls.

        Args:
            work: the work folder of the scene.
            preload: called in a thread when the first region starts, if the output stages run in this process.

        Raises:
            TransientError: the staging area is missing.
        """

    def reserve(self, predictor: Predictor | ArrayFunction) -> AbstractContextManager[object]:
        """Hold the predictor's device if it is in this process."""

    def check_precision(self, job: RegionJob, predictor: Predictor | ArrayFunction) -> PrecisionCheck:
        """`choose_precision` for the scene, on a device that runs regions."""

    def plan_regions(self, job: RegionJob, predictor: Predictor | ArrayFunction) -> tuple[Region, ...]:
        """Cut the scene into regions."""

    def run_regions(
        self, job: RegionJob, regions: Sequence[Region], predictor: Predictor | ArrayFunction
    ) -> Generator[RegionResult]:
        """Run regions; yield each result when its rasters are in the job's folder. The other regions are done already.

        Raises:
            TransientError: a worker was lost repeatedly, or the scheduler.
            ScenemillError: raised by a region.
        """

    def run_outputs(self, task: OutputTask[Outputs], result: Path) -> Outputs:
        """Run the output stages; their files are in the folder `result` afterwards.

        Raises:
            TransientError: workers were lost repeatedly, or the scheduler.
            ScenemillError: raised by the task.
        """


class LocalExecutor:
    """Runs the work of a scene in this process."""

    def __init__(self, spec: DistributeSpec | None = None, progress: ProgressCallback | None = None) -> None:
        """`progress` is called with finished pixels."""
        self._spec, self._progress = spec or DistributeSpec(), progress
        self._preload: Callable[[], object] = lambda: None

    def identity(self, predictor: Predictor | ArrayFunction, scene: Scene) -> str | None:
        """See `Executor`."""
        return identity_of(predictor)

    @contextmanager
    def workspace(self, work: Path, preload: Callable[[], object]) -> Iterator[None]:
        """See `Executor`."""
        with ThreadPoolExecutor(1, "preload") as background:
            self._preload = partial(background.submit, preload)
            yield

    def reserve(self, predictor: Predictor | ArrayFunction) -> AbstractContextManager[object]:
        """See `Executor`."""
        return device_lock(predictor)

    def check_precision(self, job: RegionJob, predictor: Predictor | ArrayFunction) -> PrecisionCheck:
        """See `Executor`."""
        check_cancelled(self._progress, job.scene)
        return choose_precision(job.scene, job.plan, job.card, predictor)

    def plan_regions(self, job: RegionJob, predictor: Predictor | ArrayFunction) -> tuple[Region, ...]:
        """See `Executor`."""
        return plan_local_regions(job, predictor, rows=self._spec.regions)

    def run_regions(
        self, job: RegionJob, regions: Sequence[Region], predictor: Predictor | ArrayFunction
    ) -> Generator[RegionResult]:
        """See `Executor`."""
        progress = regions_progress(self._progress, job.scene, regions)
        if regions:
            self._preload()
        for stack in group_adjacent(regions):
            yield from infer_stack(job, stack, predictor, progress)

    def run_outputs(self, task: OutputTask[Outputs], result: Path) -> Outputs:
        """See `Executor`."""
        return task.run(result, self._progress)


def regions_progress(
    progress: ProgressCallback | None, scene: Scene, regions: Sequence[Region]
) -> Callable[[int], None] | None:
    """A counter of the pixels of regions that run now; all other pixels of the scene are finished already."""
    done = scene.grid.height * scene.grid.width - sum(region.pixels for region in regions)
    return stage_progress(progress, "infer", scene.grid, done=done)


def check_cancelled(progress: ProgressCallback | None, scene: Scene) -> None:
    """Call the progress callback, which may cancel: the run may have ended while the scene waited for a device."""
    if (report := stage_progress(progress, "infer", scene.grid)) is not None:
        report(0)


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
