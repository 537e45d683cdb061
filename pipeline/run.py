"""Many scenes, one after another, on one model and the devices of the settings.

A scene's failure is recorded and stops no other, unless the settings limit how many may fail.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.averaging import EnsemblePredictor
from pipeline.batches import MOST_READERS
from pipeline.catalog import CatalogEntry
from pipeline.catalog_scene import describe_entry
from pipeline.config import SegmentSpec
from pipeline.devices import kind_of, resolve_devices, share_of
from pipeline.distant import DistantPredictor
from pipeline.distribute_devices import device_workers
from pipeline.errors import SettingsError
from pipeline.predictor import InferenceSpec, Prepared, load_predictor
from pipeline.processors import usable_cpus
from pipeline.report import SceneReport
from pipeline.results import open_results
from pipeline.retrying import RunSpec, retry_world_faults
from pipeline.run_ledger import open_ledger
from pipeline.segment import Watch, resolve_settings, segment_scene
from pipeline.stac_files import write_item

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


def load_models(
    paths: Sequence[str | Path], inference: InferenceSpec, *, scheduler: str | None, threshold: float | None
) -> Prepared:
    """The model of a run, or the ensemble of several; only verified here when it runs in other processes.

    Args:
        paths: checkpoints or imported networks, at least one.
        inference: devices and precision.
        scheduler: whose workers run it; None: this process, or one per device if there are several.
        threshold: stands in for those of several models.

    Raises:
        ModelError: a file is missing, damaged or none of ours, or the models contradict each other.
        SettingsError: no path, the device is not there, or the models' thresholds differ and none is set.
    """
    if not paths:
        raise SettingsError("no model is named; name one checkpoint, or several to average")
    devices = resolve_devices(inference.device)
    models: list[Prepared]
    if len(devices) > 1 or scheduler is not None:
        device = devices[0] if len(devices) == 1 else kind_of(devices[0])
        models = [DistantPredictor(Path(path), device, precision=inference.precision) for path in paths]
    else:
        models = [load_predictor(path, devices[0], precision=inference.precision) for path in paths]
    return models[0] if len(models) == 1 else EnsemblePredictor(models, threshold=threshold)


def load_run_models(paths: Sequence[str | Path], spec: SegmentSpec) -> Prepared:
    """`load_models` as the settings of a run say."""
    scheduler, threshold = spec.distribute.scheduler, spec.polygons.threshold
    return load_models(paths, spec.inference, scheduler=scheduler, threshold=threshold)


@contextmanager
def on_devices(spec: SegmentSpec) -> Iterator[SegmentSpec]:
    """Yield settings that run on the devices of `inference.device`; of several, each has a worker process meanwhile.

    These settings name one device, the scheduler of the workers, and each worker's share of the CPU's threads.

    Raises:
        SettingsError: the devices are not there, or a scheduler is set beside several.
        WorldError: the processes cannot be started.
    """
    devices = resolve_devices(spec.inference.device)
    if len(devices) == 1:
        yield replace(spec, inference=replace(spec.inference, device=devices[0]))
        return
    if spec.distribute.scheduler is not None:
        raise SettingsError(
            f"inference.device names {len(devices)} devices, but distribute.scheduler has workers of its own; name one "
            "kind of device, e.g. cuda, and start a worker for each device"
        )
    cpus = usable_cpus()
    threads = share_of(spec.inference.threads or cpus, len(devices))
    readers = share_of(spec.reading.threads or min(cpus, MOST_READERS * len(devices)), len(devices))
    with device_workers(devices, threads=threads) as scheduler:
        yield replace(
            spec,
            reading=replace(spec.reading, threads=readers),
            inference=replace(spec.inference, device=kind_of(devices[0]), threads=threads),
            distribute=replace(spec.distribute, scheduler=scheduler),
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
    write_item(open_results(out_dir), report)
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
        client: runs regions on a cluster.
        watcher: gives the progress callback of a scene.

    Raises:
        SettingsError: before the first scene, when settings and model do not fit or `out_dir` is a file.
        WorldError: `run.json` cannot be written.
    """
    check_settings(spec, predictor)
    check_out(out_dir)
    with open_ledger(entries, out_dir, predictor=predictor, spec=spec) as ledger:
        for entry in entries:
            report = ledger.passed_over(entry)
            if report is None:
                work = partial(segment_entry, entry, out_dir, predictor=predictor, spec=spec, client=client)
                report = ledger.settle(entry, _outcome(entry, partial(work, watch=watcher(entry)), spec.run))
            yield report


def _outcome(entry: CatalogEntry, work: Callable[[], SceneReport], spec: RunSpec) -> SceneReport | Exception:
    """The report of a scene, or what it failed with after all retries."""

    def tell(error: BaseException, pause_s: float) -> None:
        log.warning("%s: %s; trying again in %g s", entry.id, error, pause_s)

    try:
        return retry_world_faults(work, spec, tell=tell)
    except SettingsError:
        raise
    except Exception as error:
        log.debug("%s failed", entry.location, exc_info=True)
        return error


def check_settings(spec: SegmentSpec, predictor: Prepared) -> None:
    """Raise SettingsError when tile size, overlap, blend or threshold do not suit the network."""
    resolve_settings(spec, predictor.card)


def check_out(out_dir: str | Path) -> None:
    """Raise SettingsError when results cannot go there, before any work."""
    open_results(out_dir).check()
