"""CPU worker threads: each runs one batch at a time, and results come in the order of the batches.

On a machine with many CPUs, several workers with a batch each are faster than one batch that all CPUs share: no CPU
waits for the others at the end of a layer, and a CPU that decodes or compresses for a moment delays one worker only.
And the result of a network cannot depend on how many threads share its layers.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from pipeline.concurrency import map_ordered

MAX_CPU_WORKERS = 32
"""Worker threads at most; each holds the features of a batch, which bounds the memory of a machine with many CPUs."""
BATCHES_PER_WORKER = 2
"""Batches in progress per worker, including those whose results wait to be taken."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def resolve_cpu_workers(threads: int, *, plain: bool) -> int:
    """Worker threads of a region.

    Args:
        threads: CPU threads that the network may use.
        plain: True for a plain function, which need not be safe to call from several threads at once.

    >>> resolve_cpu_workers(2, plain=False), resolve_cpu_workers(64, plain=False), resolve_cpu_workers(64, plain=True)
    (2, 32, 1)
    """
    return 1 if plain else min(threads, MAX_CPU_WORKERS)


def map_in_workers(
    compute: Callable[[Item], Result], items: Iterable[Item], *, workers: int, ahead: int, threads: int = 1
) -> Generator[Result]:
    """Apply `compute` to each item in worker threads and yield results in order.

    Args:
        compute: called from `workers` threads at once.
        items: drawn in the caller's thread, only as workers are about to need them.
        workers: worker threads.
        ahead: items that may be drawn and not yet yielded.
        threads: threads that torch may use in each worker.
    """
    pool = ThreadPoolExecutor(workers, "cpu-worker", torch.set_num_threads, (threads,))
    with torch_num_threads(threads), pool:
        yield from map_ordered(compute, items, pool, ahead=ahead - 1)


@contextmanager
def torch_num_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads for the caller's thread and threads started in the body; restored after it."""
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(usual)
