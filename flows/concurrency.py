"""Concurrent scenes of a flow run: at most `n` tasks at a time, recorded as they finish."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from threading import Event

from prefect.futures import PrefectFuture

from pipeline.catalog import CatalogEntry
from pipeline.config import SegmentSpec
from pipeline.distribute import cluster
from pipeline.results import SceneReport
from pipeline.run import RunLedger, split_workers

LOCAL_CONCURRENCY, MAX_CONCURRENCY = 2, 64
"""Concurrent scenes on one machine, where one is vectorized while the next is inferred, and at most on a cluster."""

Submit = Callable[[CatalogEntry, Event], PrefectFuture[SceneReport]]
"""Submits a scene; its task ends in the state `Cancelled` soon after the event is set."""
OnFinish = Callable[[SceneReport], None]


def resolve_concurrency(spec: SegmentSpec, scenes: int) -> tuple[int, SegmentSpec]:
    """The number of concurrent scenes, and the settings of each, with its share of a cluster's workers."""
    with cluster(spec.distribute) as client:
        if client is None:
            return LOCAL_CONCURRENCY, spec
        return split_workers(spec, client, scenes, max_scenes=MAX_CONCURRENCY)


def run_scenes(
    ledger: RunLedger,
    entries: Sequence[CatalogEntry],
    submit: Submit,
    on_finish: OnFinish = lambda _: None,
    *,
    max_concurrent: int = LOCAL_CONCURRENCY,
) -> None:
    """Run scenes concurrently until all are recorded; none is submitted once the ledger says that the run is stopped.

    A cancelled run cancels its scenes too: their finished stages are kept, and they are not recorded. The ledger is
    saved first, since the process may be killed before they end.
    """
    stop = Event()
    in_progress: dict[CatalogEntry, PrefectFuture[SceneReport]] = {}
    finished: SimpleQueue[CatalogEntry] = SimpleQueue()

    def record(entry: CatalogEntry) -> None:
        future = in_progress[entry]
        future.wait()
        # A cancelled scene is not recorded, so that the next run continues it.
        if not future.state.is_cancelled():
            on_finish(ledger.record(entry, future.state.result(raise_on_failure=False)))
        del in_progress[entry]

    try:
        for entry in entries:
            # The queue gives scenes in the order in which they finish, not in which they started.
            if len(in_progress) == max_concurrent:
                record(finished.get())
            if skipped := ledger.skip(entry):
                on_finish(skipped)
                continue
            in_progress[entry] = submit(entry, stop)
            in_progress[entry].add_done_callback(partial(lambda each, _: finished.put(each), entry))
        while in_progress:
            record(finished.get())
    except BaseException:
        stop.set()
        ledger.save()
        raise
    finally:
        # After a cancellation, scenes that still finished are recorded.
        for entry in [*in_progress]:
            record(entry)
