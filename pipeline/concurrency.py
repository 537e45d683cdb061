"""The same work on several items at once, for what only waits for a network; results come in the order of the items."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_concurrently(work: Callable[[Item], Result], items: Iterable[Item], *, most: int) -> Generator[Result]:
    """Yield what comes of each item, in order; its fault is raised when its turn comes, and ends the others.

    Args:
        work: what is done about an item, in a thread of its own.
        items: taken up one by one, never more than `most` before the one that is waited for.
        most: so many at once; 1 does the work in the caller's thread.
    """
    if most == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(most, "abreast")
    in_hand: deque[Future[Result]] = deque()
    try:
        for item in items:
            if len(in_hand) == most:
                yield in_hand.popleft().result()
            in_hand.append(pool.submit(work, item))
        while in_hand:
            yield in_hand.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def usable_cpus() -> int:
    """CPUs that this process may use, which containers and `taskset` bound."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
