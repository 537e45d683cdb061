"""Many scenes on one model and the devices of the settings: one after another, or on a cluster several at once.

A scene's failure is recorded and stops no other, unless the settings limit how many may fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, TypeVar

from pipeline.catalog import CatalogEntry
from pipeline.concurrency import map_concurrently
from pipeline.config import RunSpec, SegmentSpec
from pipeline.distribute import cluster, is_lost, share_workers
from pipeline.errors import SettingsError, TransientError
from pipeline.grid import load_area
from pipeline.model.predictor import LoadedModel
from pipeline.results import SceneReport, open_results
from pipeline.run.concurrent import ConcurrentScenes, RunCancelledError, cancellable
from pipeline.run.ledger import RunLedger, open_ledger
from pipeline.run.models import on_devices
from pipeline.run.one_scene import is_remote, segment_entry, skip_entry
from pipeline.segment import Watch
from pipeline.stages import resolve_settings
from pipeline.storage import retry_transient

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

LOOKED_AHEAD = 8
"""Remote scenes that are looked up at once, before their turn: a store answers slowly, and many are finished."""

Made = TypeVar("Made")


@contextmanager
def open_run(
    entries: Sequence[CatalogEntry],
    out_dir: str | Path,
    *,
    predictor: LoadedModel,
    spec: SegmentSpec,
    client: Client | None = None,
) -> Iterator[tuple[RunLedger, SegmentSpec]]:
    """Yield the ledger of a run, and its settings as they run on its devices; the end writes `run.json`.

    Raises:
        SettingsError: before anything is begun, when settings and model do not fit or `out_dir` is a file.
        TransientError: `run.json` cannot be written.
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
    predictor: LoadedModel,
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
        TransientError: `run.json` cannot be written, or the cluster is not there, or lost.
    """
    with (
        open_run(entries, out_dir, predictor=predictor, spec=spec, client=client) as (ledger, running),
        cluster(running.distribute) if client is None else nullcontext(client) as workers,
    ):
        if workers is not None:
            work = partial(segment_entry, out_dir=out_dir, predictor=predictor, client=workers)
            yield from _side_by_side(entries, ledger, work, running, workers, watcher)
            return

        def attempt(entry: CatalogEntry) -> SceneReport | Exception:
            work = partial(segment_entry, entry, out_dir, predictor=predictor, spec=running, watch=watcher(entry))
            return _outcome(entry, work, running.run)

        with closing(_skipped_ahead(entries, out_dir, ledger, predictor=predictor, spec=running)) as ahead:
            for entry, skipped in zip(entries, ahead, strict=True):
                yield ledger.passed_over(entry) or ledger.settle(entry, skipped or attempt(entry))


def _skipped_ahead(
    entries: Sequence[CatalogEntry],
    out_dir: str | Path,
    ledger: RunLedger,
    *,
    predictor: LoadedModel,
    spec: SegmentSpec,
) -> Generator[SceneReport | None]:
    """Of each scene its report, if it is remote and finished; those whose turn is next are looked up meanwhile.

    What goes wrong with that is not told: it will again when the scene's turn comes.
    """
    look, once = partial(skip_entry, out_dir=out_dir, predictor=predictor, spec=spec), replace(spec.run, retries=0)

    def seen(entry: CatalogEntry) -> SceneReport | None:
        found = None if ledger.is_stopped else _outcome(entry, partial(look, entry), once)
        return None if isinstance(found, Exception) else found

    return map_concurrently(seen, entries, most=LOOKED_AHEAD if any(map(is_remote, entries)) else 1)


def _side_by_side(
    entries: Sequence[CatalogEntry],
    ledger: RunLedger,
    work: Callable[..., SceneReport],
    spec: SegmentSpec,
    client: Client,
    watcher: Callable[[CatalogEntry], Watch | None],
) -> Generator[SceneReport]:
    """Reports of scenes on a cluster, several of which are in hand."""
    most, cut = split_workers(spec, client, len(entries))

    def attempt(entry: CatalogEntry, stop: Event) -> SceneReport | Exception:
        watch = cancellable(watcher(entry), stop)

        def once() -> SceneReport:
            try:
                return work(entry, spec=cut, watch=watch)
            except TransientError as error:
                if stop.is_set():  # its cluster may be closed by now, which is no fault
                    raise RunCancelledError from error
                raise

        return _outcome(entry, once, spec.run, sleep=stop.wait)

    def settle(entry: CatalogEntry, outcome: SceneReport | Exception) -> SceneReport:
        report = ledger.settle(entry, outcome)
        if is_lost(client):
            raise TransientError(f"the run ends here, for its cluster is lost: {report.reason}")
        return report

    yield from ConcurrentScenes(ledger.passed_over, attempt, settle).run(entries, most=most)


def split_workers(
    spec: SegmentSpec, client: Client, scenes: int, *, most: int | None = None
) -> tuple[int, SegmentSpec]:
    """How many scenes are in hand at once, at most so many, and the settings of each, with its share of the workers."""
    in_hand, shared = share_workers(spec.distribute, client, scenes, most=most)
    return in_hand, replace(spec, distribute=shared)


def _outcome(
    entry: CatalogEntry,
    work: Callable[[], Made],
    spec: RunSpec,
    sleep: Callable[[float], object] = time.sleep,
) -> Made | Exception:
    """The report of a scene, or what it failed with after all retries."""

    def tell(error: BaseException, pause_s: float) -> None:
        log.warning("%s: %s; trying again in %g s", entry.id, error, pause_s)

    try:
        return retry_transient(work, spec.pauses_s, on_retry=tell, sleep=sleep)
    except SettingsError:
        raise
    except Exception as error:
        log.debug("%s failed", entry.location, exc_info=True)
        return error


def check_settings(spec: SegmentSpec, predictor: LoadedModel) -> None:
    """Raise SettingsError when tile size, overlap, blend or threshold do not suit the network, or the area is none."""
    resolve_settings(spec, predictor.card)
    if spec.area is not None:
        load_area(spec.area)


def check_out(out_dir: str | Path, work_dir: str | None = None) -> None:
    """Raise SettingsError when results cannot go there, before any work."""
    open_results(out_dir, work_dir).check()
