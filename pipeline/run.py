"""Many scenes on one model and the devices of the settings: one after another, or on a cluster several at once.

A scene's failure is recorded and stops no other, unless the settings limit how many may fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from pipeline.area import load_area
from pipeline.catalog import CatalogEntry
from pipeline.catalog_scene import describe_entry
from pipeline.config import SegmentSpec
from pipeline.distribute import cluster
from pipeline.distribute_client import is_lost
from pipeline.distribute_plan import share_workers
from pipeline.errors import SettingsError, WorldError
from pipeline.predictor import Prepared
from pipeline.report import SceneReport
from pipeline.results import open_results
from pipeline.retrying import RunSpec, retry_world_faults
from pipeline.run_devices import on_devices
from pipeline.run_in_hand import ScenesInHand, stoppable
from pipeline.run_ledger import RunLedger, open_ledger
from pipeline.segment import Watch, segment_scene
from pipeline.segment_inputs import resolve_settings
from pipeline.stac_files import write_item

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


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


@contextmanager
def open_run(
    entries: Sequence[CatalogEntry],
    out_dir: str | Path,
    *,
    predictor: Prepared,
    spec: SegmentSpec,
    client: Client | None = None,
) -> Iterator[tuple[RunLedger, SegmentSpec]]:
    """Yield the ledger of a run, and its settings as they run on its devices; the end writes `run.json`.

    Raises:
        SettingsError: before anything is begun, when settings and model do not fit or `out_dir` is a file.
        WorldError: `run.json` cannot be written.
    """
    check_settings(spec, predictor)
    check_out(out_dir, spec.run.work_dir)
    with (
        on_devices(spec) if client is None else nullcontext(spec) as running,
        open_ledger(entries, out_dir, predictor=predictor, spec=running) as ledger,
    ):
        yield ledger, running


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
        client: a cluster reached before, by settings that are on their devices; else the settings say where they run.
        watcher: gives the progress callback of a scene; on a cluster several are in hand, and it is called in threads.

    Raises:
        SettingsError: before the first scene, when settings and model do not fit or `out_dir` is a file.
        WorldError: `run.json` cannot be written, or the cluster is not there, or lost.
    """
    with (
        open_run(entries, out_dir, predictor=predictor, spec=spec, client=client) as (ledger, running),
        cluster(running.distribute) if client is None else nullcontext(client) as workers,
    ):
        if workers is not None:
            work = partial(segment_entry, out_dir=out_dir, predictor=predictor, client=workers)
            yield from _side_by_side(entries, ledger, work, running, workers, watcher)
            return
        for entry in entries:
            work = partial(segment_entry, entry, out_dir, predictor=predictor, spec=running)
            yield ledger.passed_over(entry) or ledger.settle(
                entry, _outcome(entry, partial(work, watch=watcher(entry)), running.run)
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
