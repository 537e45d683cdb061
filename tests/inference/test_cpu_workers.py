"""CPU worker threads yield in order, look ahead no further than asked, and stop at the first exception."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.concurrency import usable_cpus
from pipeline.inference.cpu_workers import map_in_workers, resolve_cpu_workers


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4), st.integers(1, 9))
def test_results_come_in_the_order_of_the_work(work: list[int], workers: int, ahead: int) -> None:
    assert list(map_in_workers(lambda x: x + 1, work, workers=workers, ahead=ahead)) == [x + 1 for x in work]


def test_several_workers_compute_at_once() -> None:
    together = threading.Barrier(3, timeout=60)
    assert list(map_in_workers(lambda _: together.wait() >= 0, range(6), workers=3, ahead=6)) == [True] * 6


def test_work_is_drawn_no_further_than_asked() -> None:
    drawn: list[int] = []

    def work() -> Iterator[int]:
        for item in range(100):
            drawn.append(item)
            yield item

    results = map_in_workers(lambda x: x, work(), workers=2, ahead=5)
    for taken in range(1, 21):
        next(results)
        assert len(drawn) <= taken + 4
    results.close()


def test_the_first_exception_in_order_is_raised_and_no_later_item_starts() -> None:
    started: list[int] = []

    def compute(item: int) -> int:
        started.append(item)
        if item == 3:
            raise ValueError("three")
        return item

    results = map_in_workers(compute, range(100), workers=1, ahead=50)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert started == [0, 1, 2, 3]


def test_an_exception_of_the_items_is_raised_and_the_threads_end() -> None:
    def work() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(map_in_workers(lambda x: x, work(), workers=2, ahead=4))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cpu-worker")]


def test_torch_has_the_threads_of_a_worker_in_it_and_its_own_afterwards() -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        counts = map_in_workers(lambda _: torch.get_num_threads(), range(4), workers=2, threads=3, ahead=4)
        assert set(counts) == {3}
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize(
    ("threads", "plain", "workers"),
    [
        (2, False, 2),
        (64, False, 32),  # memory follows the workers
        (16, True, 1),  # a plain function need not be safe to call twice at once
    ],
)
def test_the_number_of_workers_follows_the_threads(threads: int, plain: bool, workers: int) -> None:
    assert resolve_cpu_workers(threads, plain=plain) == workers


def test_this_process_may_use_a_cpu() -> None:
    assert usable_cpus() >= 1
