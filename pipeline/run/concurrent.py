"""Concurrent scenes: one thread per scene waits for the cluster; all else runs in the caller's thread.

skip? --> running, at most `max_scenes` --> record --> reports, in the order of the scenes
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event
from typing import Generic, TypeVar

from pipeline.catalog import CatalogEntry
from pipeline.distribute import ProgressCallback
from pipeline.results import SceneReport

Outcome = TypeVar("Outcome")


class RunCancelledError(BaseException):
    """The run was cancelled while the scene ran. Not an error, like Ctrl-C: completed stages of the scene are kept.

    Raised in the thread of the scene, never in the caller's.
    """


def cancellable(progress: ProgressCallback | None, stop: Event) -> ProgressCallback:
    """A progress callback that cancels its scene once the event is set; a cluster calls it every second."""

    def report(stage: str, done: int, total: int) -> None:
        if stop.is_set():
            raise RunCancelledError
        if progress is not None:
            progress(stage, done, total)

    return report


class ConcurrentScenes(Generic[Outcome]):
    """Runs scenes concurrently; used by one thread."""

    def __init__(
        self,
        skip: Callable[[CatalogEntry], SceneReport | None],
        work: Callable[[CatalogEntry, Event], Outcome],
        record: Callable[[CatalogEntry, Outcome], SceneReport],
    ) -> None:
        """Start with no scene.

        Args:
            skip: the report of a scene that is skipped; None: the scene is started.
            work: processes a scene in a thread; returns soon after the event is set.
            record: the report of a scene's outcome.
        """
        self._skip, self._work, self._record = skip, work, record
        self._stop = Event()
        self._running: dict[Future[Outcome], int] = {}
        self._finished: SimpleQueue[Future[Outcome]] = SimpleQueue()
        self._reports: dict[int, SceneReport] = {}
        self._next = 0

    def run(self, entries: Sequence[CatalogEntry], *, max_scenes: int) -> Generator[SceneReport]:
        """Yield a report of every scene, in order.

        Closing the generator, or an exception of `work`, cancels the running scenes.
        """
        with ThreadPoolExecutor(max_scenes, "scene") as threads:
            try:
                for number, entry in enumerate(entries):
                    while len(self._running) == max_scenes:
                        self._record_next(entries)
                        yield from self._in_order()
                    self._start(threads, number, entry)
                    yield from self._in_order()
                while self._running:
                    self._record_next(entries)
                    yield from self._in_order()
            finally:
                self._stop.set()

    def _start(self, threads: ThreadPoolExecutor, number: int, entry: CatalogEntry) -> None:
        skipped = self._skip(entry)
        if skipped is not None:
            self._reports[number] = skipped
            return
        future = threads.submit(self._work, entry, self._stop)
        self._running[future] = number
        future.add_done_callback(self._finished.put)

    def _record_next(self, entries: Sequence[CatalogEntry]) -> None:
        future = self._finished.get()
        number = self._running.pop(future)
        self._reports[number] = self._record(entries[number], future.result())

    def _in_order(self) -> Iterator[SceneReport]:
        """Yield the next reports, as far as all scenes before them have theirs."""
        while self._next in self._reports:
            yield self._reports.pop(self._next)
            self._next += 1
