"""Batches in, probabilities out: full batches only, outputs checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ROOF, write_checkpoint
from numpy.typing import NDArray
from strips import raw_strip
from torch import Tensor

from pipeline.batches import RawStrip
from pipeline.card import ModelCard
from pipeline.engine import Engine, PlainReady, TileRow, resolve_batch_size
from pipeline.errors import ModelError
from pipeline.normalize import InputTransform
from pipeline.predictor import Ready, load_predictor
from pipeline.transfer import DirectTransfer

CPU = torch.device("cpu")
PLAIN = InputTransform(gain=(1.0,), bias=(0.0,), clip=None)


def run(
    predictor: Any,
    strip: RawStrip,
    lefts: Sequence[int],
    *,
    card: ModelCard = ROOF,
    transform: InputTransform = PLAIN,
    batch_size: int = 2,
) -> dict[int, Tensor]:
    side = strip.shape[0]
    ready = predictor if isinstance(predictor, Ready) else PlainReady(predictor, card)
    row = TileRow(lefts=tuple(lefts), height=side, width=side)
    engine = Engine([(ready, transform)], card, row, DirectTransfer(CPU), batch_size=batch_size)
    return {
        position: tile
        for predicted in engine.run([strip])
        for position, tile in zip(predicted.batch.positions, predicted.tiles, strict=True)
    }


# Batches


@pytest.mark.parametrize(
    ("tiles", "batch_size", "sizes"),
    [
        (5, 2, [2, 2, 2]),  # the last is padded
        (4, 2, [2, 2]),
        (1, 4, [4]),
    ],
)
def test_every_batch_is_full(tiles: int, batch_size: int, sizes: list[int]) -> None:
    seen: list[int] = []

    def predictor(batch: NDArray[Any]) -> NDArray[Any]:
        seen.append(len(batch))
        return batch

    pixels = np.random.default_rng(0).random((1, 4, 4 * tiles), np.float32)
    results = run(predictor, raw_strip(pixels), range(0, 4 * tiles, 4), batch_size=batch_size)
    assert seen == sizes
    assert [*results] == [*range(tiles)]
    for k, result in results.items():
        assert (result.numpy() == pixels[:, :, 4 * k : 4 * k + 4]).all()


def test_a_tile_gives_the_same_bits_whoever_shares_its_batch(tmp_path: Path) -> None:
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")
    tiles = torch.randn((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    together, turned = predictor(tiles), predictor(tiles.flip(0)).flip(0)
    assert torch.equal(together, turned)


def test_tiles_without_a_valid_pixel_are_not_run() -> None:
    pixels = np.ones((1, 4, 16), np.float32)
    valid = np.zeros((4, 16), bool)
    valid[2, 5] = True
    results = run(lambda batch: batch, raw_strip(pixels, valid), [0, 4, 8, 12])
    assert [*results] == [1]
    assert not run(lambda batch: 1 / 0, raw_strip(pixels, valid & False), [0, 4])


def test_left_of_a_strip_is_where_its_columns_begin() -> None:
    pixels = np.arange(8, dtype=np.float32)[None, None].repeat(4, axis=1) / 10
    strip = raw_strip(pixels, left=-2)
    assert run(lambda batch: batch, strip, [-2, 2])[1][0, 0, 0] == np.float32(0.4)


def test_input_is_scaled_then_clipped_and_zero_where_invalid() -> None:
    transform = InputTransform(gain=(0.01,), bias=(-0.5,), clip=(0.0, 1.0))
    pixels = np.array([[[0, 100], [120, 250]]], np.uint8)
    valid = np.array([[True, True], [False, True]])
    (result,) = run(lambda batch: batch, raw_strip(pixels, valid), [0], transform=transform).values()
    assert np.allclose(result[0], [[0, 0.5], [0, 1]])


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]
)
def test_every_real_pixel_type_reaches_the_network_with_its_values(dtype: str) -> None:
    pixels = np.array([[[0, 1], [100, 127]]], dtype)
    (result,) = run(lambda batch: batch / 127, raw_strip(pixels), [0]).values()
    assert np.allclose(result[0], pixels[0].astype(float) / 127)


@pytest.mark.parametrize(
    ("device", "side", "size"),
    [("cpu", 512, 1), ("cpu", 128, 16), ("cuda", 512, 16), ("cuda", 4096, 1), ("xpu", 512, 1)],
)
def test_batches_suit_the_device_and_the_tile(device: str, side: int, size: int) -> None:
    assert resolve_batch_size(torch.device(device), side * side) == size


def test_outputs_may_leave_the_range_by_rounding_only() -> None:
    strip = raw_strip(np.ones((1, 4, 4), np.float32))
    assert run(lambda batch: batch + 5e-5, strip, [0])
    with pytest.raises(ModelError, match="values from"):
        run(lambda batch: batch + 5e-4, strip, [0])
    with pytest.raises(ModelError, match="values from"):
        run(lambda batch: batch - 1.001, strip, [0])
    with pytest.raises(ModelError, match="NaN"):
        run(lambda batch: np.where(np.indices(batch.shape)[3] == 2, np.nan, batch), strip, [0])
    with pytest.raises(ModelError, match="to inf"):
        run(lambda batch: batch * np.inf, strip, [0])


def test_the_margin_of_unpadded_networks_is_expected_of_the_output() -> None:
    card = ModelCard(bands=("red",), classes=("roof",), margin=1)
    strip = raw_strip(np.ones((1, 6, 6), np.float32))
    assert run(lambda batch: batch[:, :, 1:-1, 1:-1], strip, [0], card=card)[0].shape == (1, 4, 4)
    with pytest.raises(ModelError, match="margin 1"):
        run(lambda batch: batch, strip, [0], card=card)
