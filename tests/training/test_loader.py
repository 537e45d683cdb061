"""Batches depend on seed, epoch and number alone, and no augmentation makes a held-out pixel count."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from rasterio.windows import Window
from support.labelled import SMALL, FakeSource, Town, area_of

from pipeline.config import build_settings
from pipeline.errors import LabelError
from pipeline.model.card import Normalization
from pipeline.training.data.blocks import overlap
from pipeline.training.data.loader import PREFETCH_BATCHES, Batch, BatchLoader, output_planes, prefetch
from pipeline.training.data.splits import Area
from pipeline.training.data.windows import TrainingWindow, tile_windows
from pipeline.training.settings.augment import AugmentSpec
from pipeline.training.settings.spec import TrainSpec

STANDARD = Normalization.standard([80.0] * 3, [40.0] * 3)
WARPS = ("rotation", "scaling", "elastic")
ALWAYS: dict[str, Any] = {"flips": 1.0, "turns": 1.0}
EVERYTHING: AugmentSpec = build_settings(
    AugmentSpec,
    ALWAYS | {name: {"probability": 0.7} for name in (*WARPS, "band_gain", "gamma", "blur", "noise", "cutout")},
    place="test",
)
WARPED: AugmentSpec = build_settings(
    AugmentSpec,
    ALWAYS
    | {name: {"probability": 1.0} for name in WARPS}
    | {name: {"probability": 0.0} for name in ("contrast", "brightness")},
    place="test",
)


def spec_of(*, threads: int = 1, augment: AugmentSpec = EVERYTHING) -> TrainSpec:
    return replace(SMALL, samples=replace(SMALL.samples, threads=threads), augment=augment)


def batches(spec: TrainSpec, area: Area, epoch: int, start: int = 0, **feed_options: Any) -> list[NDArray[np.float32]]:
    with BatchLoader(spec, STANDARD, margin=0, **feed_options) as loader:
        made = loader.training([area], epoch, start=start)
        return [torch.cat([b.pixels, b.target, b.weight_mask], dim=1).cpu().numpy() for b in made]


def ramps(side: int, *held_out: Window) -> Area:
    """A scene whose two bands tell their own row and column, from 1."""
    source = FakeSource(side, share=0.3)
    source.whole.pixels[:] = np.indices((side, side)) + 1
    return Area(source=source, held_out=held_out)


@pytest.mark.parametrize("augment", [AugmentSpec(), EVERYTHING])
def test_the_windows_of_an_epoch_depend_on_its_seed_and_number_alone(town: Town, augment: AugmentSpec) -> None:
    area = area_of(town)
    one, many, next_epoch = (
        batches(spec_of(threads=threads, augment=augment), area, epoch) for threads, epoch in ((1, 3), (4, 3), (1, 4))
    )
    assert len(one) == 8
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, next_epoch, strict=True))


def test_an_epoch_can_begin_at_any_batch(town: Town) -> None:
    area = area_of(town)
    whole, rest = batches(spec_of(), area, 1), batches(spec_of(), area, 1, start=5)
    assert len(rest) == 3
    assert all(np.array_equal(a, b) for a, b in zip(whole[5:], rest, strict=True))


def test_windows_are_standardised_pixels_of_the_scene_when_nothing_is_changed() -> None:
    area = ramps(90)
    still = replace(WARPED, **{name: replace(getattr(WARPED, name), probability=0.0) for name in WARPS})
    spec = spec_of(augment=replace(still, flips=0.0, turns=0.0))
    with BatchLoader(spec, Normalization.standard([1.0] * 2, [0.5] * 2), margin=0) as loader:
        for batch in loader.training([area], 1):
            row, col = (batch.pixels / 2).movedim(1, 0).long()
            expected = torch.from_numpy(area.source.whole.target)[0][row, col]
            assert torch.equal(batch.target[:, 0], expected.float())
            assert batch.weight_mask.all()


@pytest.mark.parametrize("margin", [0, 4])
def test_no_warped_window_counts_a_held_out_pixel_and_every_other_labelled_one_counts(margin: int) -> None:
    held_out = (Window(0, 60, 70, 50), Window(120, 100, 60, 60))
    area = ramps(180, *held_out)
    area.source.whole.target[:, ::7] = 255
    free, truth = area.free_pixels(Window(0, 0, 180, 180)), area.source.whole.target[0]
    inner = slice(margin, 32 - margin)
    with BatchLoader(spec_of(augment=WARPED), Normalization(), margin=margin) as loader:
        places, weight_mask, target = [], [], []
        for batch in loader.training([area], 1):
            places.append((batch.pixels[..., inner, inner].movedim(1, -1).numpy() - 1).reshape(-1, 2))
            weight_mask.append(batch.weight_mask.numpy().ravel())
            target.append(batch.target.numpy().ravel())
    place, seen, found = np.concatenate(places), np.concatenate(weight_mask), np.concatenate(target)
    real = (place >= 0).all(axis=1)
    assert not seen[~real].any()
    place, seen, found = place[real], seen[real], found[real]
    row, col = place.round().astype(int).T
    plain = (abs(place % 1 - 0.5) > 1e-3).all(axis=1)  # between two pixels rounding may take either
    assert np.array_equal(seen[plain], (free & (truth != 255))[row, col][plain])
    assert np.array_equal(found[seen & plain], truth[row, col][seen & plain])
    assert free[row[seen], col[seen]].all()
    assert np.mean(~free[row, col]) > 0.005  # as context, so the test could have failed


@given(row=st.integers(-40, 100), col=st.integers(-40, 100), seed=st.integers(0, 20))
def test_a_core_counts_what_is_inside_and_in_no_block(row: int, col: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = tuple(Window(*rng.integers(0, 60, 2).tolist(), *rng.integers(1, 40, 2).tolist()) for _ in range(3))
    core = TrainingWindow(
        area=Area(source=FakeSource(80), held_out=blocks), row=row, col=col, inside=Window(10, 5, 60, 70)
    )
    window = Window(col, row, 45, 50)
    if overlap(window, core.inside):
        expected = np.zeros((300, 300), bool)
        expected[105:175, 110:170] = True
        for block in blocks:
            expected[block.row_off + 100 :, block.col_off + 100 :][: block.height, : block.width] = False
        assert np.array_equal(core.usable_pixels(window), expected[row + 100 : row + 150, col + 100 : col + 145])


def test_the_corners_of_a_rotated_window_are_real_pixels_where_the_scene_has_them() -> None:
    area = ramps(180, Window(0, 0, 180, 70), Window(0, 110, 180, 70), Window(0, 70, 70, 40), Window(110, 70, 70, 40))
    with BatchLoader(spec_of(augment=WARPED), Normalization(), margin=0) as loader:
        for batch in loader.training([area], 1):
            assert (batch.pixels > 0).all()


def test_held_out_windows_are_never_changed_and_each_pixel_counts_once() -> None:
    area = ramps(50)
    with BatchLoader(spec_of(), Normalization(), margin=0) as loader:
        rows = []
        for batch in loader.validation(tile_windows([(area.source, Window(7, 3, 40, 41))], loader.core_size)):
            row, col = (plane[batch.weight_mask[:, 0]] for plane in batch.pixels.movedim(1, 0))
            rows += list(zip(row.tolist(), col.tolist(), strict=True))
    assert sorted(rows) == [(row + 1, col + 1) for row in range(3, 44) for col in range(7, 47)]


@given(
    target=arrays.arrays(np.uint8, (2, 3, 4, 4), elements=st.sampled_from([0, 0, 1, 255])),
    valid=arrays.arrays(np.bool_, (2, 4, 4)),
)
def test_exclusive_classes_and_the_background_are_one_hot_and_the_first_class_wins(
    target: NDArray[np.uint8], valid: NDArray[np.bool_]
) -> None:
    planes, weight_mask = output_planes(torch.from_numpy(target), torch.from_numpy(valid), activation="softmax")
    assert planes.shape == weight_mask.shape == (2, 4, 4, 4)
    assert (planes.sum(dim=1) == 1).all()
    for at in np.ndindex(2, 4, 4):
        values = target[at[0], :, at[1], at[2]]
        first = 1 + int(np.argmax(values == 1)) if (values == 1).any() else 0
        assert planes[at[0], first, at[1], at[2]] == 1
        assert weight_mask[at[0], :, at[1], at[2]].tolist() == [valid[at] and 255 not in values] * 4


def test_independent_classes_count_where_each_is_labelled() -> None:
    target = torch.tensor([[[[1, 0, 255, 1]], [[1, 255, 0, 0]]]], dtype=torch.uint8)
    valid = torch.tensor([[[True, True, True, False]]])
    planes, weight_mask = output_planes(target, valid, activation="sigmoid")
    assert weight_mask[0, :, 0].tolist() == [[True, True, False, False], [True, False, True, False]]
    assert planes[weight_mask].tolist() == [1, 0, 1, 0]


def test_a_softmax_batch_carries_the_background_first(town: Town) -> None:
    area = area_of(town)
    one, other = (batches(replace(spec_of(), activation=name), area, 1) for name in ("sigmoid", "softmax"))
    for sigmoid, softmax in zip(one, other, strict=True):
        target, weight_mask = softmax[:, 3:5], softmax[:, 5:] > 0
        assert np.array_equal(weight_mask[:, 0], weight_mask[:, 1])
        assert np.array_equal(target[:, 1], sigmoid[:, 3])
        assert np.array_equal(target[:, 0], 1 - target[:, 1])


def test_threads_of_the_feed_compute_alone_and_leave_others_as_they_were(town: Town) -> None:
    before, spec = torch.get_num_threads(), spec_of(threads=2)
    torch.set_num_threads(2)
    try:
        with BatchLoader(spec, STANDARD, margin=0) as loader:
            assert len(list(loader.training([area_of(town)], 1))) == 8
            assert loader._pool.submit(torch.get_num_threads).result() == 1
            assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_while_preparing_a_batch_is_raised_where_the_batch_is_due() -> None:
    def make(index: int) -> int:
        if index == 3:
            raise LabelError("a value that is no class")
        return index

    with ThreadPoolExecutor(2) as pool:
        loader = prefetch(make, range(10), pool)
        assert [next(loader) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(LabelError, match="no class"):
            next(loader)


@given(first=st.integers(0, 30), threads=st.integers(1, 4))
def test_batches_are_in_order_whatever_the_threads(first: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        assert list(prefetch(int, range(first, 25), pool)) == list(range(first, 25))


def test_few_batches_are_prepared_ahead_and_none_after_leaving() -> None:
    made: list[int] = []
    with ThreadPoolExecutor(1) as pool:
        loader = prefetch(made.append, range(100), pool)
        for taken in range(1, 11):
            next(loader)
            assert len(made) <= taken + PREFETCH_BATCHES
        del loader
    assert len(made) <= 10 + PREFETCH_BATCHES


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_makes_the_same_batches_but_for_noise(town: Town) -> None:
    spec = spec_of(augment=replace(EVERYTHING, noise=replace(EVERYTHING.noise, probability=0.0)))
    cpu, cuda = (batches(spec, area_of(town), 1, device=torch.device(name)) for name in ("cpu", "cuda"))
    for one, other in zip(cpu, cuda, strict=True):
        assert np.mean(one[:, 3:] != other[:, 3:]) < 1e-3  # ties of rounding
        assert np.mean(abs(one[:, :3] - other[:, :3]) > 1e-3) < 1e-3


def test_batches_lie_where_they_are_wanted_with_channels_last(town: Town) -> None:
    with BatchLoader(spec_of(), STANDARD, margin=0, device=torch.device("cpu")) as loader:
        batch = next(loader.training([area_of(town)], 1))
    assert {getattr(batch, field.name).device.type for field in fields(Batch)} == {"cpu"}
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.pixels.shape == (4, 3, 32, 32)
    assert batch.target.dtype == torch.float32
    assert batch.weight_mask.dtype == torch.bool
