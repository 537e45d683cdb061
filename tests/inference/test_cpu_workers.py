"""Lanes hand over in order, look ahead no further than asked, and end with the first fault."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.concurrency import usable_cpus
from pipeline.inference.cpu_workers import in_order, resolve_lanes


@given(st.lists(st.integers(), max_size=30), st.integers(1, 4), st.integers(1, 9))
def test_results_come_in_the_order_of_the_work(work: list[int], lanes: int, ahead: int) -> None:
    assert list(in_order(lambda x: x + 1, work, lanes=lanes, ahead=ahead)) == [x + 1 for x in work]


def test_several_lanes_compute_at_once() -> None:
    together = threading.Barrier(3, timeout=60)
    assert list(in_order(lambda _: together.wait() >= 0, range(6), lanes=3, ahead=6)) == [True] * 6


def test_work_is_drawn_no_further_than_asked() -> None:
    drawn: list[int] = []

    def work() -> Iterator[int]:
        for piece in range(100):
            drawn.append(piece)
            yield piece

    results = in_order(lambda x: x, work(), lanes=2, ahead=5)
    for taken in range(1, 21):
        next(results)
        assert len(drawn) <= taken + 4
    results.close()  # type: ignore[attr-defined]


def test_the_first_fault_in_order_is_raised_and_nothing_behind_it_begins() -> None:
    begun: list[int] = []

    def compute(piece: int) -> int:
        begun.append(piece)
        if piece == 3:
            raise ValueError("three")
        return piece

    results = in_order(compute, range(100), lanes=1, ahead=50)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert begun == [0, 1, 2, 3]


def test_a_fault_of_whoever_names_the_work_is_raised_and_the_threads_end() -> None:
    def work() -> Iterator[int]:
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(in_order(lambda x: x, work(), lanes=2, ahead=4))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("lane")]


def test_torch_has_the_threads_of_a_lane_in_it_and_its_own_again_afterwards() -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        counts = in_order(lambda _: torch.get_num_threads(), range(4), lanes=2, threads=3, ahead=4)
        assert set(counts) == {3}
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(usual)


@pytest.mark.parametrize(
    ("threads", "plain", "lanes"),
    [
        (2, False, 2),
        (64, False, 32),  # memory follows the lanes
        (16, True, 1),  # a plain function need not be safe to call twice at once
    ],
)
def test_lanes_suit_the_threads(threads: int, plain: bool, lanes: int) -> None:
    assert resolve_lanes(threads, plain=plain) == lanes


def test_this_process_may_use_a_cpu() -> None:
    assert usable_cpus() >= 1
