"""Bounded concurrent maps over threads, with results in the order of the items."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_concurrently(
    function: Callable[[Item], Result], items: Iterable[Item], *, max_workers: int
) -> Generator[Result]:
    """Apply `function` to each item concurrently and yield results in order. The first exception cancels the rest.

    Args:
        function: called in a worker thread; suits work that waits, e.g. for a network.
        items: drawn one by one, at most `max_workers` ahead of the result that is yielded next.
        max_workers: concurrent calls; 1 calls `function` in the caller's thread.
    """
    if max_workers == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(max_workers, "map")
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(pending) == max_workers:
                yield pending.popleft().result()
            pending.append(pool.submit(function, item))
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cpus() -> int:
    """CPUs that this process may use, which containers and `taskset` bound."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
