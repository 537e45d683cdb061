"""Tiles are the same whatever chunks a strip was decoded in, in every number format and memory order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.strips import raw_strip

from pipeline.inference.normalize import InputTransform
from pipeline.inference.tile_input import TileCutter
from pipeline.inference.transfer import DirectTransfer

CPU = torch.device("cpu")
FOLDS = [
    InputTransform(gain=(0.5, 2.0), bias=(1.0, -3.0), clip=(-20.0, 100.0)),
    InputTransform(gain=(1.0, 1.0), bias=(1.0, -3.0)),
    InputTransform(gain=(0.5, 2.0), bias=(0.0, 0.0)),
    InputTransform(gain=(1.0, 1.0), bias=(0.0, 0.0), clip=(5.0, 50.0)),
    InputTransform(gain=(1.0, 1.0), bias=(0.0, 0.0)),
]


@given(
    st.sets(st.integers(1, 29), max_size=4),
    st.integers(0, 22),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
    st.booleans(),
    st.sampled_from(FOLDS),
)
def test_a_tile_is_what_training_would_make_of_its_pixels(
    cuts: set[int], left: int, dtype: torch.dtype, layout: torch.memory_format, nodata: bool, fold: InputTransform
) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 99, (2, 6, 30), np.uint16)
    valid = generator.random((6, 30)) > 0.3 if nodata else np.ones((6, 30), bool)
    strip = DirectTransfer(CPU).to_device(raw_strip(pixels, valid if nodata else None, cuts=tuple(sorted(cuts))))
    tiles = TileCutter(fold, device=CPU, dtype=dtype, layout=layout).cut(strip, [left, 0], 8, size=3)
    expected = torch.from_numpy(fold.apply(pixels, valid)).to(dtype)
    assert tiles.dtype == dtype
    assert tiles.is_contiguous(memory_format=layout)
    assert torch.equal(tiles[0], expected[:, :, left : left + 8])
    assert torch.equal(tiles[1], expected[:, :, :8])
    assert torch.equal(tiles[2], tiles[1]), "places left over repeat the last tile"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixels_that_need_no_arithmetic_stay_as_they_are(dtype: torch.dtype) -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 4, 4)
    plain = InputTransform(gain=(1.0,), bias=(0.0,), clip=None)
    cutter = TileCutter(plain, device=CPU, dtype=dtype, layout=torch.channels_last)
    tile = cutter.cut(DirectTransfer(CPU).to_device(raw_strip(pixels)), [0], 4, size=1)[0]
    assert tile.float().numpy().tolist() == pixels.tolist()
