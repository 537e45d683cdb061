"""Lanes: a few worker threads that compute side by side and hand over in the order in which work was given.

A network on many CPUs is quicker as several lanes of one batch each than as one batch that all CPUs share: nobody
waits at the end of a layer, and a CPU that decodes or compresses for a moment holds up one lane, not all. And what a
network returns cannot depend on how many threads share its layers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

MOST_LANES = 32
"""Lanes at most; each holds the features of a batch, so they bound the memory of a machine with many CPUs."""
AHEAD = 2
"""Pieces of work under way for each lane, counting those whose results wait to be taken."""

Work = TypeVar("Work")
Result = TypeVar("Result")


def resolve_lanes(threads: int, *, plain: bool) -> int:
    """Lanes for a region.

    Args:
        threads: CPU threads that the network may use.
        plain: True for a plain function, which need not be safe to call from several threads at once.

    >>> resolve_lanes(2, plain=False), resolve_lanes(64, plain=False), resolve_lanes(64, plain=True)
    (2, 32, 1)
    """
    return 1 if plain else min(threads, MOST_LANES)


def in_order(
    compute: Callable[[Work], Result], work: Iterable[Work], *, lanes: int, ahead: int, threads: int = 1
) -> Iterator[Result]:
    """Compute pieces of work in lanes; yield the results in the order of the work.

    Args:
        compute: called from `lanes` threads at once.
        work: drawn by the caller's thread, only as lanes are about to need it.
        lanes: worker threads.
        ahead: pieces that may be drawn and not yet yielded.
        threads: threads that torch may use in each lane.

    Raises:
        Exception: what `compute` or `work` raised, at the place of the first piece that failed; none behind it is
            begun after that.
    """
    failed: list[int] = []

    def run(place: int, piece: Work) -> Result:
        if failed and place > min(failed):
            raise CancelledError
        try:
            return compute(piece)
        except BaseException:
            failed.append(place)
            raise

    with torch_threads(threads), ThreadPoolExecutor(lanes, "lane", torch.set_num_threads, (threads,)) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for place, piece in enumerate(work):
                pending.append(pool.submit(run, place, piece))
                if len(pending) >= ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Give the caller's thread so many threads of torch, and those still to come; it has little to do beside lanes."""
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
