"""Splits share no pixel, and windows keep to their part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelled import (
    SMALL,
    FakeSource,
    Town,
)
from rasterio.windows import Window

from pipeline.errors import SettingsError
from pipeline.training.samples import open_data
from pipeline.training.splits import Area, overlap, plan_blocks, split_data
from pipeline.training.windows import cover, draw_core


@given(side=st.integers(70, 200), size=st.integers(1, 60), seed=st.integers(0, 99))
def test_no_training_core_overlaps_a_held_out_block(side: int, size: int, seed: int) -> None:
    source = FakeSource(side)
    blocks = plan_blocks((side, side), 64)
    area = Area(source=source, held_out=tuple(blocks[:: max(2, len(blocks) // 2)]))
    rng = np.random.default_rng(seed)
    try:
        core = draw_core([area], size, rng, labelled_share=0.5)
    except SettingsError as error:
        assert "hardly fit between the held-out blocks of fake" in str(error)  # noqa: PT017
        return
    assert area.is_free(core.inside)
    assert overlap(core.inside, source.scene.grid.window)


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 50))
def test_validation_cores_count_each_pixel_exactly_once(height: int, width: int, size: int) -> None:
    block = Window(20, 10, width, height)
    counted = np.zeros((200, 200), int)
    for core in cover([(FakeSource(200), block)], size):
        rows = slice(core.row, min(core.row + size, block.row_off + block.height))
        cols = slice(core.col, min(core.col + size, block.col_off + block.width))
        counted[rows, cols] += 1
    assert (counted[10 : 10 + height, 20 : 20 + width] == 1).all()
    assert counted.sum() == height * width


def test_a_split_by_blocks_is_seeded_and_disjoint(town: Town) -> None:
    data = open_data([town.image], town.labels, SMALL)
    splits = [split_data(data, SMALL.split, seed=seed) for seed in (0, 0, 1)]
    blocks = [[w for _, w in split.validation] for split in splits]
    assert blocks[0] == blocks[1] != blocks[2]
    area = splits[0].training[0]
    assert list(area.held_out) == blocks[0]
    assert area.pixels == 96 * 96 - len(blocks[0]) * 32 * 32


def test_a_scene_of_one_block_cannot_be_split(town: Town) -> None:
    data = open_data([town.image], town.labels, SMALL)
    with pytest.raises(SettingsError, match=r"block_size: only 1 block\(s\) .* or name validation scenes"):
        split_data(data, replace(SMALL.split, block_size=96), seed=0)
