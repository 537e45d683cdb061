"""Several scenes in hand at once, each in a thread that waits for its cluster; all else stays with the caller's thread.

begin --> in hand, at most so many --> settle --> reports, in the order of the scenes
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Generic, TypeVar

from pipeline.catalog import CatalogEntry
from pipeline.results import SceneReport
from pipeline.segment import Watch

Outcome = TypeVar("Outcome")


class RunCancelledError(BaseException):
    """The run ends before the scene does: no fault, like Ctrl-C, so what is done of the scene is kept.

    Raised in the scene's own thread, and seen by nobody.
    """


def cancellable(watch: Watch | None, stop: Event) -> Watch:
    """A progress callback that ends the scene it is told of once the event is set; a cluster calls it every second."""

    def told(stage: str, done: int, total: int) -> None:
        if stop.is_set():
            raise RunCancelledError
        if watch is not None:
            watch(stage, done, total)

    return told


class ConcurrentScenes(Generic[Outcome]):
    """Runs scenes side by side; used by one thread."""

    def __init__(
        self,
        begin: Callable[[CatalogEntry], SceneReport | None],
        work: Callable[[CatalogEntry, Event], Outcome],
        settle: Callable[[CatalogEntry, Outcome], SceneReport],
    ) -> None:
        """Have nothing in hand.

        Args:
            begin: the report of a scene that is passed over; None begins it.
            work: what is done about a scene, in a thread of its own; ends soon after the event is set.
            settle: enters what came of it.
        """
        self._begin, self._work, self._settle = begin, work, settle
        self._stop = Event()
        self._running: dict[Future[Outcome], int] = {}
        self._finished: SimpleQueue[Future[Outcome]] = SimpleQueue()
        self._settled: dict[int, SceneReport] = {}
        self._out = 0

    def run(self, entries: Sequence[CatalogEntry], *, most: int) -> Generator[SceneReport]:
        """Yield a report of every scene, in order.

        Closing this, and whatever `work` raises, ends the scenes in hand.
        """
        with ThreadPoolExecutor(most, "scene") as threads:
            try:
                for number, entry in enumerate(entries):
                    while len(self._running) == most:
                        self._settle_next(entries)
                        yield from self._in_order()
                    self._take_up(threads, number, entry)
                    yield from self._in_order()
                while self._running:
                    self._settle_next(entries)
                    yield from self._in_order()
            finally:
                self._stop.set()

    def _take_up(self, threads: ThreadPoolExecutor, number: int, entry: CatalogEntry) -> None:
        passed = self._begin(entry)
        if passed is not None:
            self._settled[number] = passed
            return
        future = threads.submit(self._work, entry, self._stop)
        self._running[future] = number
        future.add_done_callback(self._finished.put)

    def _settle_next(self, entries: Sequence[CatalogEntry]) -> None:
        future = self._finished.get()
        number = self._running.pop(future)
        self._settled[number] = self._settle(entries[number], future.result())

    def _in_order(self) -> Iterator[SceneReport]:
        """Reports whose turn it is: those of all scenes before them are out."""
        while self._out in self._settled:
            yield self._settled.pop(self._out)
            self._out += 1
