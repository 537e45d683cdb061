"""Lanes: a few worker threads that compute side by side and hand over in the order in which work was given.

A network on many CPUs is quicker as several lanes of one batch each than as one batch that all CPUs share: nobody
waits at the end of a layer, and a CPU that decodes or compresses for a moment holds up one lane, not all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

MOST_LANES = 8
"""Lanes at most; more CPUs than that are shared out among them."""
AHEAD = 2
"""Pieces of work under way for each lane, counting those whose results wait to be taken."""

Work = TypeVar("Work")
Result = TypeVar("Result")


def resolve_lanes(threads: int, batches: int | None, *, plain: bool) -> int:
    """Lanes for a region.

    Args:
        threads: CPU threads that the network may use.
        batches: batches of the region, for more lanes than that would idle; None where the network's results
            depend on how many threads of torch a lane has, which is then the same for every region.
        plain: True for a plain function, which need not be safe to call from several threads at once.

    >>> resolve_lanes(2, 80, plain=False), resolve_lanes(64, 80, plain=False), resolve_lanes(64, 3, plain=False)
    (2, 8, 3)
    """
    most = MOST_LANES if batches is None else min(MOST_LANES, batches)
    return 1 if plain else max(1, min(threads, most))


def in_order(
    compute: Callable[[Work], Result], work: Iterable[Work], *, lanes: int, threads: int, ahead: int
) -> Iterator[Result]:
    """Compute pieces of work in lanes; yield the results in the order of the work.

    Args:
        compute: called from `lanes` threads at once.
        work: drawn by the caller's thread, only as lanes are about to need it.
        lanes: worker threads.
        threads: CPU threads that torch may use in all.
        ahead: pieces that may be drawn and not yet yielded.

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

    with sharing_threads(lanes, threads), ThreadPoolExecutor(lanes, "lane") as pool:
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
def sharing_threads(lanes: int, threads: int) -> Iterator[None]:
    """Give each lane its share of torch's threads, the caller's thread too, for it has little to do.

    torch keeps the number for threads that are still to come, and each thread keeps its own.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // lanes))
    try:
        yield
    finally:
        torch.set_num_threads(usual)
