"""Many scenes on one model and the devices of the settings: one after another, or on a cluster several at once.

A scene's failure is recorded and stops no other, unless the settings limit how many may fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from pipeline.area import load_area
from pipeline.averaging import EnsemblePredictor
from pipeline.batches import MOST_READERS
from pipeline.catalog import CatalogEntry
from pipeline.catalog_scene import describe_entry
from pipeline.config import SegmentSpec
from pipeline.devices import kind_of, resolve_devices, resolve_workers, share_of
from pipeline.distant import DistantPredictor
from pipeline.distribute import resolve_exchange
from pipeline.distribute_client import is_lost
from pipeline.distribute_devices import dask_cuda_workers, device_workers
from pipeline.distribute_plan import share_workers
from pipeline.distribute_spec import DistributeSpec
from pipeline.errors import SettingsError, WorldError
from pipeline.predictor import InferenceSpec, Prepared
from pipeline.predictor_loaded import load_predictor
from pipeline.processors import usable_cpus
from pipeline.report import SceneReport
from pipeline.results import open_results
from pipeline.retrying import RunSpec, retry_world_faults
from pipeline.run_in_hand import ScenesInHand, stoppable
from pipeline.run_ledger import RunLedger, open_ledger
from pipeline.segment import Watch, segment_scene
from pipeline.segment_inputs import resolve_settings
from pipeline.stac_files import write_item

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


def load_models(
    paths: Sequence[str | Path], inference: InferenceSpec, *, distribute: DistributeSpec, threshold: float | None
) -> Prepared:
    """The model of a run, or the ensemble of several; only verified here when it runs in other processes.

    Args:
        paths: checkpoints or imported networks, at least one.
        inference: devices and precision.
        distribute: which processes run it.
        threshold: stands in for those of several models.

    Raises:
        ModelError: a file is missing, damaged or none of ours, or the models contradict each other.
        SettingsError: no path, the device is not there, or the models' thresholds differ and none is set.
        WorldError: the models cannot be laid into the exchange place.
    """
    if not paths:
        raise SettingsError("no model is named; name one checkpoint, or several to average")
    devices = resolve_devices(inference.device)
    models: list[Prepared]
    if len(devices) > 1 or distribute.workers or distribute.scheduler is not None:
        device = devices[0] if len(devices) == 1 else kind_of(devices[0])
        exchange, precision = resolve_exchange(distribute), inference.precision
        models = [DistantPredictor(Path(path), device, precision=precision, exchange=exchange) for path in paths]
    else:
        models = [load_predictor(path, devices[0], precision=inference.precision) for path in paths]
    return models[0] if len(models) == 1 else EnsemblePredictor(models, threshold=threshold)


def load_run_models(paths: Sequence[str | Path], spec: SegmentSpec) -> Prepared:
    """`load_models` as the settings of a run say."""
    return load_models(paths, spec.inference, distribute=spec.distribute, threshold=spec.polygons.threshold)


@contextmanager
def on_devices(spec: SegmentSpec) -> Iterator[SegmentSpec]:
    """Yield settings that run on the devices of `inference.device`; each of several workers has a process meanwhile.

    These settings name one device, the scheduler of the workers, and each worker's share of the CPU's threads.

    Raises:
        SettingsError: the devices are not there, or a scheduler is set beside workers of this machine.
        WorldError: the processes cannot be started.
    """
    distribute, devices = spec.distribute, resolve_devices(spec.inference.device)
    if distribute.scheduler is not None:
        _check_scheduler_alone(distribute, devices)
    workers = resolve_workers(devices, distribute.workers)
    if not workers:
        yield replace(spec, inference=replace(spec.inference, device=devices[0]))
        return
    cpus = usable_cpus()
    threads = share_of(spec.inference.threads or cpus, len(workers))
    readers = share_of(spec.reading.threads or min(cpus, MOST_READERS * len(workers)), len(workers))
    started = dask_cuda_workers(workers) if distribute.dask_cuda else device_workers(workers, threads=threads)
    with started as scheduler:
        yield replace(
            spec,
            reading=replace(spec.reading, threads=readers),
            inference=replace(spec.inference, device=kind_of(workers[0]), threads=threads),
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


def segment_entry(
    entry: CatalogEntry,
    out_dir: str | Path,
    *,
    predictor: Prepared,
    spec: SegmentSpec,
    client: Client | None = None,
    watch: Watch | None = None,
) -> SceneReport:
    """Describe and segment one scene of a catalog, with its STAC Item; raises what `segment_scene` raises."""
    scene = describe_entry(entry, spec.reading, card=predictor.card)
    made = segment_scene(scene, out_dir, predictor=predictor, spec=spec, client=client, watch=watch)
    report = replace(made, source=entry.source)
    write_item(open_results(out_dir, spec.run.work_dir), report)
    log.info("%s: %s, %d pass(es) of a network per tile", report.scene, report.status, report.passes)
    return report


def segment_catalog(
    entries: Sequence[CatalogEntry],
    out_dir: str | Path,
    *,
    predictor: Prepared,
    spec: SegmentSpec,
    client: Client | None = None,
    watcher: Callable[[CatalogEntry], Watch | None] = lambda _: None,
) -> Generator[SceneReport]:
    """Yield a report for every scene, in order, whatever becomes of it; the end, or closing it, writes `run.json`.

    Faults of the world are tried again, scenes in quarantine left alone, and a hopeless run ended, as `spec.run` says.

    Args:
        entries: the scenes.
        out_dir: their folders go here.
        predictor: the model.
        spec: settings.
        client: runs regions on a cluster; several scenes are in hand then.
        watcher: gives the progress callback of a scene; with a client it is called in threads.

    Raises:
        SettingsError: before the first scene, when settings and model do not fit or `out_dir` is a file.
        WorldError: `run.json` cannot be written, or the cluster is lost.
    """
    check_settings(spec, predictor)
    check_out(out_dir, spec.run.work_dir)
    with open_ledger(entries, out_dir, predictor=predictor, spec=spec) as ledger:
        if client is not None:
            work = partial(segment_entry, out_dir=out_dir, predictor=predictor, client=client)
            yield from _side_by_side(entries, ledger, work, spec, client, watcher)
            return
        for entry in entries:
            work = partial(segment_entry, entry, out_dir, predictor=predictor, spec=spec)
            yield ledger.passed_over(entry) or ledger.settle(
                entry, _outcome(entry, partial(work, watch=watcher(entry)), spec.run)
            )


def _side_by_side(
    entries: Sequence[CatalogEntry],
    ledger: RunLedger,
    work: Callable[..., SceneReport],
    spec: SegmentSpec,
    client: Client,
    watcher: Callable[[CatalogEntry], Watch | None],
) -> Generator[SceneReport]:
    """Reports of scenes on a cluster, several of which are in hand."""
    most, shared = share_workers(spec.distribute, client, len(entries))
    cut = replace(spec, distribute=shared)

    def attempt(entry: CatalogEntry, stop: Event) -> SceneReport | Exception:
        watch = stoppable(watcher(entry), stop)
        return _outcome(entry, partial(work, entry, spec=cut, watch=watch), spec.run, sleep=stop.wait)

    def settle(entry: CatalogEntry, outcome: SceneReport | Exception) -> SceneReport:
        report = ledger.settle(entry, outcome)
        if is_lost(client):
            raise WorldError(f"the run ends here, for its cluster is lost: {report.reason}")
        return report

    yield from ScenesInHand(ledger.passed_over, attempt, settle).run(entries, most=most)


def _outcome(
    entry: CatalogEntry,
    work: Callable[[], SceneReport],
    spec: RunSpec,
    sleep: Callable[[float], object] = time.sleep,
) -> SceneReport | Exception:
    """The report of a scene, or what it failed with after all retries."""

    def tell(error: BaseException, pause_s: float) -> None:
        log.warning("%s: %s; trying again in %g s", entry.id, error, pause_s)

    try:
        return retry_world_faults(work, spec, tell=tell, sleep=sleep)
    except SettingsError:
        raise
    except Exception as error:
        log.debug("%s failed", entry.location, exc_info=True)
        return error


def check_settings(spec: SegmentSpec, predictor: Prepared) -> None:
    """Raise SettingsError when tile size, overlap, blend or threshold do not suit the network, or the area is none."""
    resolve_settings(spec, predictor.card)
    if spec.area is not None:
        load_area(spec.area)


def check_out(out_dir: str | Path, work_dir: str | None = None) -> None:
    """Raise SettingsError when results cannot go there, before any work."""
    open_results(out_dir, work_dir).check()
