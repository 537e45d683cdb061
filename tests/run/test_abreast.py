"""Work on several items at once: in order, bounded, and faults in their turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pipeline.concurrency import map_concurrently

WAIT_S = 20


def test_items_are_worked_on_at_once_and_come_in_order() -> None:
    together = threading.Barrier(3)

    def meet(item: int) -> int:
        together.wait(WAIT_S)
        return item * 2

    assert [*map_concurrently(meet, range(6), most=3)] == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_never_more_than_so_many_are_taken_up_before_the_one_that_is_waited_for(most: int) -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(9):
            taken.append(item)
            yield item

    for number, item in enumerate(map_concurrently(lambda item: item, items(), most=most)):
        assert item == number
        assert len(taken) <= number + most + 1


def test_the_first_fault_in_order_is_raised_though_a_later_one_came_before() -> None:
    later = threading.Event()

    def fail(item: int) -> int:
        if item == 2:
            later.set()
        elif item == 1:
            assert later.wait(WAIT_S)
        if item:
            raise KeyError(item)
        return item

    results = map_concurrently(fail, range(3), most=3)
    assert next(results) == 0
    with pytest.raises(KeyError, match="1"):
        next(results)


def test_one_at_a_time_stays_in_the_callers_thread() -> None:
    assert {*map_concurrently(lambda _: threading.get_ident(), range(3), most=1)} == {threading.get_ident()}


def test_closing_begins_no_other_item() -> None:
    begun: list[int] = []
    results = map_concurrently(begun.append, range(99), most=2)
    next(results)
    results.close()
    assert len(begun) <= 3
