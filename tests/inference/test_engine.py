"""Batches in, probabilities out: full batches only, outputs checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.models import ROOF, write_checkpoint
from support.strips import raw_strip
from torch import Tensor

from pipeline.errors import ModelError, TransientError
from pipeline.inference.batch_size import Batching, is_out_of_memory, min_batch_size, resolve_batch_size
from pipeline.inference.engine import Engine, Member, TileRow
from pipeline.inference.normalize import InputTransform
from pipeline.inference.output_checks import RangeCheck
from pipeline.inference.tiling.strips import RawStrip
from pipeline.inference.transfer import DirectTransfer
from pipeline.model.card import ModelCard
from pipeline.model.predictor.loading import load_predictor
from pipeline.model.predictor.protocol import PlainRunnable, Runnable

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
    ready = predictor if isinstance(predictor, Runnable) else PlainRunnable(predictor, card)
    return run_members([(ready, transform)], strip, lefts, card=card, batch_size=batch_size)


def run_members(
    members: Sequence[Member], strip: RawStrip, lefts: Sequence[int], *, card: ModelCard = ROOF, **settings: Any
) -> dict[int, Tensor]:
    side = strip.shape[0]
    row = TileRow(lefts=tuple(lefts), height=side, width=side)
    engine = Engine(members, card, row, DirectTransfer(CPU), Batching(**settings))
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


def test_a_tile_gives_the_same_bits_in_any_batch(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    ("device", "side", "requested", "max_size", "plain", "size"),
    [
        ("cuda", 512, 5, None, False, 5),
        ("cuda", 512, 5, 3, False, 3),  # no more than a strip has
        ("cpu", 64, 0, 9, False, 9),
        ("cpu", 512, 5, None, True, 5),  # a plain function gets what was asked for
        ("cpu", 64, 1, None, True, 1),
        ("cpu", 256, 5, None, False, 1),  # large tiles one at a time, whatever was asked for ...
        ("cpu", 64, 1, None, False, 2),  # ... and never less than two small ones
        ("cpu", 64, 1, 1, False, 1),  # but where a strip has one
    ],
)
def test_a_size_that_is_asked_for_is_taken_where_it_changes_no_result(
    device: str, side: int, requested: int, max_size: int | None, plain: bool, size: int
) -> None:
    assert (
        resolve_batch_size(torch.device(device), side**2, requested=requested, max_size=max_size, plain=plain) == size
    )


def test_batches_are_halved_no_further_than_results_allow() -> None:
    cuda = torch.device("cuda")
    assert min_batch_size(cuda, 16, plain=False, deterministic=False) == 1
    assert min_batch_size(cuda, 16, plain=False, deterministic=True) == 16
    assert min_batch_size(CPU, 16, plain=False, deterministic=False) == 2
    assert min_batch_size(CPU, 1, plain=False, deterministic=False) == 1
    assert min_batch_size(CPU, 16, plain=True, deterministic=False) == 1


def test_a_strip_without_a_valid_pixel_ends_all_the_same() -> None:
    empty = raw_strip(np.ones((1, 4, 8), np.float32), np.zeros((4, 8), bool))
    row = TileRow(lefts=(0, 4), height=4, width=4)
    members = [(PlainRunnable(lambda tiles: 1 / 0, ROOF), PLAIN)]
    engine = Engine(members, ROOF, row, DirectTransfer(CPU), Batching(batch_size=1))
    predicted = list(engine.run([empty, empty]))
    assert [(each.batch.ends_strip, each.tiles) for each in predicted] == [(True, ())] * 2


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_change_nothing(workers: int) -> None:
    pixels = np.random.default_rng(0).random((1, 4, 60), np.float32)
    members = [(PlainRunnable(torch.nn.Identity(), ROOF), PLAIN)]
    found = run_members(members, raw_strip(pixels, cuts=(13,)), range(0, 56, 4), batch_size=2, workers=workers)
    assert [*found] == [*range(14)]
    assert all((tile.numpy() == pixels[:, :, 4 * k : 4 * k + 4]).all() for k, tile in found.items())


# Memory


def refuses(max_tiles: int, error: Callable[[], BaseException], seen: list[int]) -> Any:
    """A predictor on a device with room for `most` tiles."""

    def predictor(batch: NDArray[Any]) -> NDArray[Any]:
        seen.append(len(batch))
        if len(batch) > max_tiles:
            raise error()
        return batch

    return predictor


OUT_OF_MEMORY: list[Callable[[], BaseException]] = [
    lambda: torch.OutOfMemoryError("CUDA out of memory"),
    lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: not enough memory"),
    MemoryError,
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_halved_until_they_fit_and_no_tile_is_lost(
    error: Callable[[], BaseException], workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    pixels, seen = np.random.default_rng(0).random((1, 4, 80), np.float32), list[int]()
    members = [(PlainRunnable(refuses(2, error, seen), ROOF), PLAIN)]
    found = run_members(members, raw_strip(pixels), range(0, 80, 4), batch_size=8, workers=workers)
    assert [*found] == [*range(20)]
    assert all((tile.numpy() == pixels[:, :, 4 * k : 4 * k + 4]).all() for k, tile in found.items())
    assert set(seen) == {8, 4, 2}
    assert [record.args[1:] for record in caplog.records if isinstance(record.args, tuple)] == [(8, 4), (4, 2)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 1}, "no memory for a single tile; set a smaller tiling.tile_size"),
        ({"batch_size": 9, "min_batch_size": 2}, "no memory for 2 tiles at once"),
        ({"batch_size": 8, "min_batch_size": 8}, "for 8 tiles at once, and fewer .* set inference.batch_size=4"),
    ],
)
def test_running_out_of_memory_names_the_setting(settings: dict[str, Any], words: str) -> None:
    members = [(PlainRunnable(refuses(0, MemoryError, []), ROOF), PLAIN)]
    with pytest.raises(TransientError, match=words):
        run_members(members, raw_strip(np.ones((1, 4, 40), np.float32)), range(0, 40, 4), **settings)


def test_other_faults_are_not_taken_for_want_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="wrong"):
        run(refuses(0, lambda: RuntimeError("wrong"), []), raw_strip(np.ones((1, 4, 8), np.float32)), [0, 4])


# Ensembles


def test_members_are_averaged_each_with_its_own_normalisation() -> None:
    pixels = np.random.default_rng(0).random((1, 4, 16), np.float32)
    transforms = [InputTransform(gain=(gain,), bias=(bias,), clip=None) for gain, bias in ((1, 0), (0.5, 0.25), (1, 0))]
    functions = [lambda tiles: tiles, lambda tiles: tiles**2, lambda tiles: 1 - tiles]
    members = [(PlainRunnable(f, ROOF), t) for f, t in zip(functions, transforms, strict=True)]
    found = run_members(members, raw_strip(pixels), [0, 4, 8], batch_size=2)
    expected = (pixels + (pixels / 2 + 0.25) ** 2 + (1 - pixels)) / 3
    for k, tile in found.items():
        np.testing.assert_allclose(tile.numpy(), expected[:, :, 4 * k : 4 * k + 4], rtol=1e-6)


def test_members_that_agree_are_not_changed_by_averaging() -> None:
    pixels = np.random.default_rng(0).random((1, 4, 4), np.float32)
    members = [(PlainRunnable(lambda tiles: tiles, ROOF), PLAIN)] * 7
    assert (run_members(members, raw_strip(pixels), [0], batch_size=1)[0].numpy() == pixels).all()


def test_input_that_members_share_is_cut_once() -> None:
    seen: list[int] = []

    def spy(tiles: Tensor) -> Tensor:
        seen.append(tiles.data_ptr())
        return tiles

    class RecordInferenceMode(torch.nn.Module):
        def forward(self, tiles: Tensor) -> Tensor:
            return spy(tiles)

    members = [(PlainRunnable(RecordInferenceMode(), ROOF), PLAIN)] * 3
    run_members(members, raw_strip(np.ones((1, 4, 4), np.float32)), [0], batch_size=1)
    assert len(seen) == 3
    assert len(set(seen)) == 1


# Outputs


def test_a_device_that_computes_behind_is_asked_for_its_extremes_once_a_strip() -> None:
    check = RangeCheck(torch.device("meta"))
    for low, high in ((0.5, 0.75), (0.25, 1.5), (0.5, 0.5)):
        check.add(torch.tensor([low, high]))
    assert check.take().tolist() == [0.25, 1.5]
    assert check.take().tolist() == [0.0, 1.0]
    check.add(torch.tensor([0.5, torch.nan]))
    assert check.take().isnan().all()


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
