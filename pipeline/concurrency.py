"""Bounded concurrent maps over threads, with results in the order of the items."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], pool: Executor, *, ahead: int
) -> Generator[Result]:
    """Apply `function` to each item in a thread pool and yield results in order.

    The first exception in order is raised in place of its result; items behind a failed one are not started any more.
    Closing the generator cancels calls that have not started. The pool stays open.

    Args:
        function: called in the pool's threads.
        items: drawn one by one in the caller's thread.
        pool: its threads.
        ahead: items that are submitted beyond the one whose result is yielded next; bounds memory.
    """
    failed: list[int] = []

    def run(index: int, item: Item) -> Result:
        if failed and index > min(failed):
            raise CancelledError
        try:
            return function(item)
        except BaseException:
            failed.append(index)
            raise

    pending: deque[Future[Result]] = deque()
    try:
        for index, item in enumerate(items):
            pending.append(pool.submit(run, index, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def map_concurrently(
    function: Callable[[Item], Result], items: Iterable[Item], *, max_workers: int
) -> Generator[Result]:
    """Apply `function` to each item in threads of its own and yield results in order; see `map_ordered`.

    Args:
        function: suits work that waits, e.g. for a network.
        items: drawn one by one, at most `max_workers` of them before the result that is yielded next.
        max_workers: concurrent calls; 1 calls `function` in the caller's thread.
    """
    if max_workers == 1:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(max_workers, "map") as pool:
        yield from map_ordered(function, items, pool, ahead=max_workers - 1)


def usable_cpus() -> int:
    """CPUs that this process may use, which containers and `taskset` bound."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
