"""The tasks of our flows: each is one call into `pipeline`; retries and names are in the decorators."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import exponential_backoff

from pipeline.catalog import CatalogEntry
from pipeline.config import SegmentSpec
from pipeline.distribute import cluster
from pipeline.errors import WorldError
from pipeline.predictor import InferenceSpec, LoadedPredictor, Precision, load_predictor
from pipeline.report import SceneReport
from pipeline.run import segment_entry
from pipeline.training.records import TrainReport
from pipeline.training.settings import TrainSpec
from pipeline.training.train import train


def is_world_fault(task: Any, run: TaskRun, state: State[Any]) -> bool:
    """Retry faults of disk, network and workers; bad data stays bad."""
    return isinstance(state.result(raise_on_failure=False), WorldError)


def load_model(path: str, spec: InferenceSpec) -> LoadedPredictor:
    """The model of a run, loaded once per process, and again when its file has changed."""
    file = Path(path)
    changed_ns = file.stat().st_mtime_ns if file.is_file() else None
    return _load(path, changed_ns, spec.device, spec.precision)


@lru_cache(maxsize=1)
def _load(path: str, changed_ns: int | None, device: str, precision: Precision) -> LoadedPredictor:
    return load_predictor(path, device, precision=precision)


@task(
    name="segment-scene",
    task_run_name="{entry.id}",
    tags=["scene"],
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_world_fault,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def segment_one(entry: CatalogEntry, model: str, out: str, spec: SegmentSpec) -> SceneReport:
    """Segment one scene of a catalog into its folder under `out`."""
    predictor = load_model(model, spec.inference)
    with cluster(spec.distribute) as client:
        return segment_entry(entry, Path(out), predictor=predictor, spec=spec, client=client)


@task(
    name="train",
    task_run_name="{out}",
    tags=["training"],
    retries=3,
    retry_delay_seconds=exponential_backoff(backoff_factor=2),
    retry_jitter_factor=0.5,
    retry_condition_fn=is_world_fault,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def train_one(images: list[str], labels: list[str], out: str, spec: TrainSpec) -> TrainReport:
    """Train a network; a retry goes on from the last saved state."""
    return train(images, labels, out, spec=spec)
