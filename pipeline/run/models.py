"""Models and devices of a run; several devices get one worker process each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.concurrency import usable_cpus
from pipeline.config import SegmentSpec
from pipeline.distribute import DistributeSpec, RemotePredictor, dask_cuda_workers, device_workers, resolve_exchange
from pipeline.errors import SettingsError
from pipeline.inference.tiling import MAX_READERS
from pipeline.model import InferenceSpec, load_predictor
from pipeline.model.predictor import (
    EnsemblePredictor,
    LoadedModel,
    device_type,
    resolve_devices,
    resolve_worker_devices,
    threads_per_process,
)


@dataclass(frozen=True, kw_only=True)
class RunModels:
    """Which models a run loads, and how; a cache key as long as the files are unchanged."""

    paths: tuple[str | Path, ...]
    """Checkpoints or imported networks, at least one; several are averaged."""
    inference: InferenceSpec
    """Devices and precision."""
    distribute: DistributeSpec
    """Cluster or local workers."""
    threshold: float | None
    """Replaces the thresholds of several models."""


def models_of(paths: Sequence[str | Path], spec: SegmentSpec) -> RunModels:
    """The models of a run with these settings."""
    threshold = spec.polygons.threshold
    return RunModels(paths=tuple(paths), inference=spec.inference, distribute=spec.distribute, threshold=threshold)


def load_models(wanted: RunModels) -> LoadedModel:
    """Load the model of a run, or an ensemble; a model that runs in other processes is only verified here.

    Raises:
        ModelError: a file is missing, damaged or of another format, or the models do not fit each other.
        SettingsError: no path, a missing device, or models of different thresholds while none is set.
        TransientError: the models cannot be uploaded to the staging area.
    """
    if not wanted.paths:
        raise SettingsError("no model is named; name one checkpoint, or several to average")
    inference, distribute = wanted.inference, wanted.distribute
    devices, precision = resolve_devices(inference.device), inference.precision
    models: list[LoadedModel]
    if uses_remote_model(inference, distribute):
        device = devices[0] if len(devices) == 1 else device_type(devices[0])
        exchange = resolve_exchange(distribute)
        models = [RemotePredictor(Path(path), device, precision=precision, exchange=exchange) for path in wanted.paths]
    else:
        models = [load_predictor(path, devices[0], precision=precision) for path in wanted.paths]
    return models[0] if len(models) == 1 else EnsemblePredictor(models, threshold=wanted.threshold)


def load_run_models(paths: Sequence[str | Path], spec: SegmentSpec) -> LoadedModel:
    """Load the models of a run with these settings."""
    return load_models(models_of(paths, spec))


def uses_remote_model(inference: InferenceSpec, distribute: DistributeSpec) -> bool:
    """Whether other processes run the model: local workers, or those of a scheduler."""
    return distribute.scheduler is not None or distribute.workers > 0 or len(resolve_devices(inference.device)) > 1


@contextmanager
def on_devices(spec: SegmentSpec) -> Iterator[SegmentSpec]:
    """Start local workers if the settings ask for several, and yield settings that run on them.

    These settings name one device, the scheduler of the workers, and each worker's share of the CPU threads.

    Raises:
        SettingsError: a device is missing, or both a scheduler and local workers are set.
        TransientError: the processes cannot be started.
    """
    distribute, devices = spec.distribute, resolve_devices(spec.inference.device)
    if distribute.scheduler is not None:
        _check_scheduler_alone(distribute, devices)
    workers = resolve_worker_devices(devices, distribute.workers)
    if not workers:
        yield replace(spec, inference=replace(spec.inference, device=devices[0]))
        return
    cpus = usable_cpus()
    threads = threads_per_process(spec.inference.threads or cpus, len(workers))
    readers = threads_per_process(spec.reading.threads or min(cpus, MAX_READERS * len(workers)), len(workers))
    started = dask_cuda_workers(workers) if distribute.dask_cuda else device_workers(workers, threads=threads)
    with started as scheduler:
        yield replace(
            spec,
            reading=replace(spec.reading, threads=readers),
            inference=replace(spec.inference, device=device_type(workers[0]), threads=threads),
            distribute=replace(distribute, scheduler=scheduler, workers=len(workers)),
        )


def _check_scheduler_alone(distribute: DistributeSpec, devices: Sequence[str]) -> None:
    if len(devices) > 1:
        raise SettingsError(
            f"inference.device names {len(devices)} devices, but distribute.scheduler has workers of its own; name one "
            "kind of device, e.g. cuda, and start a worker for each device"
        )
    if distribute.workers or distribute.dask_cuda:
        raise SettingsError(
            "distribute.scheduler has workers of its own; leave distribute.workers and distribute.dask_cuda out"
        )
