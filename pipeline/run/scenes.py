"""Run over a catalog: scenes one after another in this process, or concurrently on a cluster.

The failure of a scene is recorded and does not stop the others, unless the settings limit the number of failures.
"""

from __future__ import annotations

import logging
import resource
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
from pipeline.distribute import ProgressCallback, cluster, is_lost, share_workers
from pipeline.errors import SettingsError, TransientError
from pipeline.grid import load_area
from pipeline.model.predictor import LoadedModel
from pipeline.results import SceneReport, open_results
from pipeline.run.concurrent import ConcurrentScenes, RunCancelledError, cancellable
from pipeline.run.ledger import RunLedger, open_ledger
from pipeline.run.models import on_devices
from pipeline.run.one_scene import is_remote, segment_entry, skip_entry
from pipeline.stages import resolve_settings
from pipeline.storage import retry_transient

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)

MIN_OPEN_FILES = 64
"""A run on one thread needs about 15; with fewer, libraries report files that are missing instead."""
LOOKAHEAD = 8
"""Remote scenes whose results are looked up concurrently before their turn, since requests to a store are slow."""

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
    """Yield the ledger of a run and the settings for its devices; `run.json` is written at the end.

    Raises:
        SettingsError: before any work, when settings and model do not fit or `out_dir` is a file.
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
    progress_of: Callable[[CatalogEntry], ProgressCallback | None] = lambda _: None,
) -> Generator[SceneReport]:
    """Yield a report for every scene, in order; the end, or closing the generator, writes `run.json`.

    Transient errors are retried, scenes in quarantine skipped, and the run stopped after too many failures, as
    `spec.run` says.

    Args:
        entries: the scenes.
        out_dir: parent of their folders.
        predictor: the model.
        spec: settings.
        client: of a cluster that is connected already, with settings for its devices; None: as the settings say.
        progress_of: the progress callback of a scene; on a cluster it is called in several threads.

    Raises:
        SettingsError: before the first scene, when settings and model do not fit or `out_dir` is a file.
        TransientError: `run.json` cannot be written, or the cluster is unreachable or lost.
    """
    with (
        open_run(entries, out_dir, predictor=predictor, spec=spec, client=client) as (ledger, running),
        cluster(running.distribute) if client is None else nullcontext(client) as workers,
    ):
        # On a cluster, scenes run concurrently, each with its share of the workers.
        if workers is not None:

            def work(entry: CatalogEntry, stop: Event) -> Callable[[SegmentSpec], SceneReport]:
                progress = cancellable(progress_of(entry), stop)
                return lambda shared: segment_entry(
                    entry, out_dir, predictor=predictor, spec=shared, client=workers, progress=progress
                )

            yield from _segment_on_cluster(entries, ledger, work, running, workers)
            return

        # On one machine, scenes run one by one, in order.
        def attempt(entry: CatalogEntry) -> SceneReport | Exception:
            work = partial(
                segment_entry, entry, out_dir, predictor=predictor, spec=running, progress=progress_of(entry)
            )
            return _run_with_retries(entry, work, running.run)

        with closing(_find_finished_ahead(entries, out_dir, ledger, predictor=predictor, spec=running)) as ahead:
            for entry, skipped in zip(entries, ahead, strict=True):
                yield ledger.skip(entry) or ledger.record(entry, skipped or attempt(entry))


def _find_finished_ahead(
    entries: Sequence[CatalogEntry],
    out_dir: str | Path,
    ledger: RunLedger,
    *,
    predictor: LoadedModel,
    spec: SegmentSpec,
) -> Generator[SceneReport | None]:
    """Yield the report of each scene that is remote and finished, else None, with concurrent look-ups ahead.

    Errors are ignored here: they occur again when the scene runs.
    """
    look_up, once = partial(skip_entry, out_dir=out_dir, predictor=predictor, spec=spec), replace(spec.run, retries=0)

    def finished(entry: CatalogEntry) -> SceneReport | None:
        found = None if ledger.is_stopped else _run_with_retries(entry, partial(look_up, entry), once)
        return None if isinstance(found, Exception) else found

    return map_concurrently(finished, entries, max_workers=LOOKAHEAD if any(map(is_remote, entries)) else 1)


def _segment_on_cluster(
    entries: Sequence[CatalogEntry],
    ledger: RunLedger,
    work: Callable[[CatalogEntry, Event], Callable[[SegmentSpec], SceneReport]],
    spec: SegmentSpec,
    client: Client,
) -> Generator[SceneReport]:
    """Yield reports of scenes that run concurrently on a cluster.

    `work` gives the function that processes a scene with its share of the workers, until the event is set.
    """
    max_scenes, shared = split_workers(spec, client, len(entries))

    def attempt(entry: CatalogEntry, stop: Event) -> SceneReport | Exception:
        segment = work(entry, stop)

        def once() -> SceneReport:
            try:
                return segment(shared)
            except TransientError as error:
                if stop.is_set():  # the cluster may be closed by now, which is not an error
                    raise RunCancelledError from error
                raise

        return _run_with_retries(entry, once, spec.run, sleep=stop.wait)

    def record(entry: CatalogEntry, outcome: SceneReport | Exception) -> SceneReport:
        report = ledger.record(entry, outcome)
        if is_lost(client):
            raise TransientError(f"the run ends here, since its cluster is lost: {report.reason}")
        return report

    yield from ConcurrentScenes(ledger.skip, attempt, record).run(entries, max_scenes=max_scenes)


def split_workers(
    spec: SegmentSpec, client: Client, scenes: int, *, max_scenes: int | None = None
) -> tuple[int, SegmentSpec]:
    """Scenes that run concurrently, at most `max_scenes`, and the settings of each, with its share of the workers."""
    count, shared = share_workers(spec.distribute, client, scenes, max_scenes=max_scenes)
    return count, replace(spec, distribute=shared)


def _run_with_retries(
    entry: CatalogEntry,
    work: Callable[[], Made],
    spec: RunSpec,
    sleep: Callable[[float], object] = time.sleep,
) -> Made | Exception:
    """The result of `work`, or its error after all retries."""

    def log_retry(error: BaseException, pause_s: float) -> None:
        log.warning("%s: %s; trying again in %g s", entry.id, error, pause_s)

    try:
        return retry_transient(work, spec.retry_policy, on_retry=log_retry, sleep=sleep)
    except SettingsError:
        # Wrong settings would fail every scene, so they end the run.
        raise
    except Exception as error:
        log.debug("%s failed", entry.shown, exc_info=True)
        return error


def check_settings(spec: SegmentSpec, predictor: LoadedModel) -> None:
    """Raise SettingsError when tiling, blend or threshold do not fit the network, or the area is invalid."""
    resolve_settings(spec, predictor.card)
    if spec.area is not None:
        load_area(spec.area)


def check_out(out_dir: str | Path, work_dir: str | None = None) -> None:
    """Raise SettingsError when results cannot be written to `out_dir`, or too few files opened, before any work."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < MIN_OPEN_FILES:
        raise SettingsError(
            f"this process may open {most} files, and a run needs at least {MIN_OPEN_FILES}; raise the limit: "
            "ulimit -n 1024"
        )
    open_results(out_dir, work_dir).documents.check()
