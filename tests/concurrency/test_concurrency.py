"""Concurrent maps: results in order, bounded look-ahead, the first exception in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.concurrency import map_concurrently, map_ordered

WAIT_S = 20


def test_items_run_concurrently_and_results_come_in_order() -> None:
    together = threading.Barrier(3)

    def meet(item: int) -> int:
        together.wait(WAIT_S)
        return item * 2

    assert [*map_concurrently(meet, range(6), max_workers=3)] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("max_workers", [1, 2, 5])
def test_items_are_drawn_no_further_than_max_workers_ahead(max_workers: int) -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(9):
            drawn.append(item)
            yield item

    for number, item in enumerate(map_concurrently(lambda item: item, items(), max_workers=max_workers)):
        assert item == number
        assert len(drawn) <= number + max_workers + 1


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_as_many_items_are_drawn_as_may_be_ahead(ahead: int) -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(9):
            drawn.append(item)
            yield item

    with ThreadPoolExecutor(2) as pool:
        for number, item in enumerate(map_ordered(lambda item: item, items(), pool, ahead=ahead)):
            assert item == number
            assert len(drawn) == min(9, number + ahead + 1)


def test_the_first_exception_in_order_is_raised_though_a_later_one_came_first() -> None:
    later = threading.Event()

    def fail(item: int) -> int:
        if item == 2:
            later.set()
        elif item == 1:
            assert later.wait(WAIT_S)
        if item:
            raise KeyError(item)
        return item

    results = map_concurrently(fail, range(3), max_workers=3)
    assert next(results) == 0
    with pytest.raises(KeyError, match="1"):
        next(results)


def test_one_worker_runs_in_the_callers_thread() -> None:
    assert {*map_concurrently(lambda _: threading.get_ident(), range(3), max_workers=1)} == {threading.get_ident()}


def test_closing_starts_no_other_item() -> None:
    started: list[int] = []
    results = map_concurrently(started.append, range(99), max_workers=2)
    next(results)
    results.close()
    assert len(started) <= 3


def test_a_shared_pool_stays_open_and_starts_nothing_behind_a_failed_item() -> None:
    started: list[int] = []

    def fail(item: int) -> int:
        started.append(item)
        return 1 // (2 - item)

    with ThreadPoolExecutor(1) as pool:
        results = map_ordered(fail, range(9), pool, ahead=8)
        assert [next(results) for _ in range(2)] == [0, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert pool.submit(len, started).result() == 3


def test_closing_takes_back_what_waits_in_a_shared_pool() -> None:
    started, gate = list[int](), threading.Event()

    def hold(item: int) -> int:
        started.append(item)
        if item:
            gate.wait(30)
        return item

    with ThreadPoolExecutor(1) as pool:
        results = map_ordered(hold, range(9), pool, ahead=8)
        assert next(results) == 0
        results.close()
        gate.set()
        assert pool.submit(len, started).result() <= 2
