"""Scenes in hand: as many at once as there is use for, each a task, settled as they finish."""

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

LOCAL_CONCURRENCY, MOST_IN_HAND = 2, 64
"""Scenes at once here, where one is vectorized while the next is inferred, and on a cluster."""

Submit = Callable[[CatalogEntry, Event], PrefectFuture[SceneReport]]
"""Begins a scene, which ends in the state `Cancelled` soon after the event is set."""
Settled = Callable[[SceneReport], None]


def resolve_concurrency(spec: SegmentSpec, scenes: int) -> tuple[int, SegmentSpec]:
    """How many scenes are in hand at once, and the settings of each, with its share of a cluster's workers."""
    with cluster(spec.distribute) as client:
        return (LOCAL_CONCURRENCY, spec) if client is None else split_workers(spec, client, scenes, most=MOST_IN_HAND)


def run_scenes(
    ledger: RunLedger,
    entries: Sequence[CatalogEntry],
    submit: Submit,
    settled: Settled = lambda _: None,
    *,
    most: int = LOCAL_CONCURRENCY,
) -> None:
    """Keep scenes in hand until all are settled; none is begun once the ledger says that the run is stopped.

    A run that is cancelled ends what is in hand: what is done of it is kept, and it is not settled. The run may be
    killed meanwhile, so the ledger is saved before.
    """
    stop = Event()
    in_hand: dict[CatalogEntry, PrefectFuture[SceneReport]] = {}
    finished: SimpleQueue[CatalogEntry] = SimpleQueue()

    def settle(entry: CatalogEntry) -> None:
        future = in_hand[entry]
        future.wait()
        if not future.state.is_cancelled():
            settled(ledger.settle(entry, future.state.result(raise_on_failure=False)))
        del in_hand[entry]

    try:
        for entry in entries:
            if len(in_hand) == most:
                settle(finished.get())
            if passed := ledger.passed_over(entry):
                settled(passed)
                continue
            in_hand[entry] = submit(entry, stop)
            in_hand[entry].add_done_callback(partial(_tell, finished, entry))
        while in_hand:
            settle(finished.get())
    except BaseException:
        stop.set()
        ledger.save()
        raise
    finally:
        for entry in [*in_hand]:
            settle(entry)


def _tell(finished: SimpleQueue[CatalogEntry], entry: CatalogEntry, _: PrefectFuture[SceneReport]) -> None:
    finished.put(entry)
