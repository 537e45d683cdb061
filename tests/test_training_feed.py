"""Batches are the same for any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from labelled import (
    SMALL,
    Town,
    area_of,
)
from numpy.typing import NDArray

from pipeline.errors import LabelError
from pipeline.training.feed import Feed, prefetch
from pipeline.training.survey import survey


def batches(town: Town, threads: int, epoch: int) -> list[NDArray[np.float32]]:
    spec = replace(SMALL, samples=replace(SMALL.samples, threads=threads))
    area = area_of(town)
    with Feed(spec, survey([area], ("roof",), seed=0).normalization(), margin=0) as feed:
        return [torch.cat([b.pixels, b.target, b.counted], dim=1).numpy() for b in feed.training([area], epoch)]


def test_the_windows_of_an_epoch_depend_on_its_seed_and_number_alone(town: Town) -> None:
    one, many, next_epoch = batches(town, 1, 3), batches(town, 4, 3), batches(town, 1, 4)
    assert len(one) == 8
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, next_epoch, strict=True))


def test_a_fault_while_preparing_a_batch_comes_out_where_the_batch_is_due() -> None:
    def make(index: int) -> Any:
        if index == 3:
            raise LabelError("a value that is no class")
        return index

    with ThreadPoolExecutor(2) as pool:
        feed: Any = prefetch(make, 10, pool)
        assert [next(feed) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(LabelError, match="no class"):
            next(feed)


def test_batches_are_in_order_whatever_the_threads() -> None:
    make: Any = int
    with ThreadPoolExecutor(3) as pool:
        numbers: Any = prefetch(make, 25, pool)
        assert list(numbers) == list(range(25))
