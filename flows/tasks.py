"""Prefect tasks: each is one call into `pipeline`; retries and names are in the decorators."""

from __future__ import annotations

from threading import Event
from typing import cast

from prefect import task
from prefect.states import Cancelled

from flows.model_cache import load_model
from flows.retries import task_options
from pipeline.catalog import CatalogEntry
from pipeline.config import RunSpec, SegmentSpec
from pipeline.distribute import cluster
from pipeline.errors import ModelError, ScenemillError, TransientError
from pipeline.evaluation import EvaluationPlan, LabelFiles, SceneEvaluation, evaluate_scene
from pipeline.merge import MergeReport, MergeSpec, merge_scenes
from pipeline.model.predictor import LoadedModel
from pipeline.results import SceneReport
from pipeline.run import RunCancelledError, cancellable, segment_entry
from pipeline.training import TrainReport, TrainSpec, train


@task(name="segment-scene", task_run_name="{entry.id}", **task_options(RunSpec()))
def segment_one(entry: CatalogEntry, model: str | list[str], out: str, spec: SegmentSpec, stop: Event) -> SceneReport:
    """Segment one scene of a catalog into its folder under `out`; cancelled soon after the event is set."""
    try:
        predictor = load_model(model, spec)
    except ModelError as error:
        raise TransientError(f"{error}; it was valid when the run started") from error
    try:
        with cluster(spec.distribute) as client:
            progress = cancellable(None, stop)
            return segment_entry(entry, out, predictor=predictor, spec=spec, client=client, progress=progress)
    except ScenemillError as error:
        # Prefect logs causes, too, and theirs may quote an address with its secrets.
        raise error from None
    except RunCancelledError:
        # Prefect takes a returned State as the state of the task.
        return cast("SceneReport", Cancelled(message="the run was stopped; run again to continue"))


@task(name="merge-scenes", task_run_name="{out}", **task_options(RunSpec()))
def merge_all(out: str, spec: MergeSpec, work_dir: str | None) -> MergeReport | None:
    """Merge the polygons of all complete results under `out`."""
    return merge_scenes(out, spec, work_dir=work_dir)


@task(name="train", task_run_name="{out}", **task_options(RunSpec()))
def train_one(images: list[str], labels: list[str], out: str, spec: TrainSpec) -> TrainReport | ScenemillError:
    """Train a network; a retry resumes from the last saved state. A permanent error is returned, not raised."""
    try:
        return train(images, labels, out, spec=spec)
    except TransientError:
        raise
    except ScenemillError as error:
        return error


@task(name="evaluate-scene", task_run_name="{entry.id}", **task_options(RunSpec()))
def evaluate_one(
    plan: EvaluationPlan, entry: CatalogEntry, files: LabelFiles, predictor: LoadedModel | None
) -> SceneEvaluation:
    """Evaluate one scene into its folder."""
    return evaluate_scene(plan, entry, files, predictor=predictor)
