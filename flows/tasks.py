"""The tasks of our flows: each is one call into `pipeline`; retries and names are in the decorators."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Failed

from pipeline.catalog import CatalogEntry
from pipeline.config import SegmentSpec
from pipeline.distribute import cluster
from pipeline.distribute_spec import DistributeSpec
from pipeline.errors import ModelError, ScenemillError, WorldError
from pipeline.evaluation.evaluate import evaluate_scene
from pipeline.evaluation.plan import EvaluationPlan
from pipeline.evaluation.records import SceneEvaluation
from pipeline.evaluation.truth import LabelFiles
from pipeline.merge import MergeReport, MergeSpec, merge_scenes
from pipeline.predictor import InferenceSpec, Prepared
from pipeline.report import SceneReport
from pipeline.retrying import RunSpec, is_world_fault
from pipeline.run import segment_entry
from pipeline.run_devices import load_models
from pipeline.training.records import TrainReport
from pipeline.training.settings import TrainSpec
from pipeline.training.train import train

Given = ParamSpec("Given")
Result = TypeVar("Result")


def world_faults_retried(spec: RunSpec) -> dict[str, Any]:
    """Options of every task: what disk, network and workers spoil is tried again; results lie on the disk."""
    return {
        "retries": spec.retries,
        "retry_delay_seconds": [*spec.pauses_s],
        "retry_condition_fn": _failed_by_the_world,
        "cache_policy": NO_CACHE,
        "persist_result": False,
    }


def _failed_by_the_world(task: Any, run: TaskRun, state: State[Any]) -> bool:
    return is_world_fault(state.result(raise_on_failure=False))


def plainly(body: Callable[Given, Result]) -> Callable[Given, Result]:
    """A flow that fails with our own errors as they are: one paragraph that an operator can act on, no traceback."""

    @wraps(body)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        try:
            return body(*args, **kwargs)
        except ScenemillError as error:
            # Prefect takes a returned State for the run's own, and raises what it holds.
            return cast("Result", Failed(message=str(error), data=error))

    # Prefect reads types of parameters from here, and would look up their names in this module.
    run.__signature__ = inspect.signature(body, eval_str=True)  # type: ignore[attr-defined]
    return run


def load_model(models: str | Sequence[str], spec: SegmentSpec) -> Prepared:
    """The model or models of a run, loaded once per process, and again when a file has changed."""
    paths = (models,) if isinstance(models, str) else tuple(models)
    changed_ns = tuple(Path(path).stat().st_mtime_ns if Path(path).is_file() else None for path in paths)
    return _load(paths, changed_ns, spec.inference, spec.distribute, spec.polygons.threshold)


@lru_cache(maxsize=1)
def _load(
    paths: tuple[str, ...],
    changed_ns: tuple[int | None, ...],
    inference: InferenceSpec,
    distribute: DistributeSpec,
    threshold: float | None,
) -> Prepared:
    return load_models(paths, inference, distribute=distribute, threshold=threshold)


@task(name="segment-scene", task_run_name="{entry.id}", **world_faults_retried(RunSpec()))
def segment_one(entry: CatalogEntry, model: str | list[str], out: str, spec: SegmentSpec) -> SceneReport:
    """Segment one scene of a catalog into its folder under `out`."""
    try:
        predictor = load_model(model, spec)
    except ModelError as error:
        raise WorldError(f"{error}; it was whole when the run began") from error
    with cluster(spec.distribute) as client:
        return segment_entry(entry, out, predictor=predictor, spec=spec, client=client)


@task(name="merge-scenes", task_run_name="{out}", **world_faults_retried(RunSpec()))
def merge_all(out: str, spec: MergeSpec, work_dir: str | None) -> MergeReport | None:
    """Merge the polygons of all whole results under `out`."""
    return merge_scenes(out, spec, work_dir=work_dir)


@task(name="train", task_run_name="{out}", **world_faults_retried(RunSpec()))
def train_one(images: list[str], labels: list[str], out: str, spec: TrainSpec) -> TrainReport | ScenemillError:
    """Train a network; a retry goes on from the last saved state. What no retry can mend is returned, not raised."""
    try:
        return train(images, labels, out, spec=spec)
    except WorldError:
        raise
    except ScenemillError as error:
        return error


@task(name="evaluate-scene", task_run_name="{entry.id}", **world_faults_retried(RunSpec()))
def evaluate_one(
    plan: EvaluationPlan, entry: CatalogEntry, files: LabelFiles, predictor: Prepared | None
) -> SceneEvaluation:
    """Evaluate one scene into its folder."""
    return evaluate_scene(plan, entry, files, predictor=predictor)
