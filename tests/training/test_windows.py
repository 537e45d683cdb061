"""Splits share no pixel and give each part its classes; windows stay in their part and reach the rarest class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window
from support.labelled import SMALL, FakeSource, Town

from pipeline.errors import LabelError, SettingsError
from pipeline.training.data.blocks import clip, free_starts, overlap, plan_blocks
from pipeline.training.data.class_index import ClassIndex
from pipeline.training.data.samples import LabelledData, open_data, presence
from pipeline.training.data.splits import Area, Split, check_validation, split_data
from pipeline.training.data.stratify import stratified_split
from pipeline.training.data.windows import TrainingWindow, WindowSampler, tile_windows
from pipeline.training.settings.data import SamplesSpec, SplitSpec

SIDES = st.integers(1, 40)


def some_blocks(shape: tuple[int, int], size: int, seed: int) -> list[Window]:
    rng = np.random.default_rng(seed)
    return [block for block in plan_blocks(shape, size) if rng.random() < 0.3]


@given(height=SIDES, width=SIDES, size=st.integers(1, 20), block=st.integers(3, 12), seed=st.integers(0, 99))
def test_free_starts_are_all_squares_that_overlap_no_held_out_block(
    height: int, width: int, size: int, block: int, seed: int
) -> None:
    held_out = some_blocks((height, width), block, seed)
    rows, cols = (range(n - size + 1) if n >= size else [-((size - n) // 2)] for n in (height, width))
    squares = [Window(col, row, size, size) for row in rows for col in cols]
    expected = {(w.row_off, w.col_off) for w in squares if not any(overlap(w, b) for b in held_out)}
    reached = np.zeros((height, width), bool)
    for row, col in expected:
        reached[max(row, 0) : row + size, max(col, 0) : col + size] = True

    starts = free_starts((height, width), held_out, size)
    assert starts.count == len(expected)
    part = Window(width // 3, height // 4, width - width // 3, height - height // 4)
    assert np.array_equal(starts.reach(part), reached[part.toslices()])
    rng = np.random.default_rng(seed)
    if expected:
        assert starts.draw(rng) in expected
        at = np.argwhere(reached)[rng.integers(reached.sum())]
        row, col = starts.draw(rng, (int(at[0]), int(at[1])))
        assert (row, col) in expected
        assert row <= at[0] < row + size
        assert col <= at[1] < col + size


def test_each_free_square_is_as_likely() -> None:
    starts = free_starts((12, 9), [Window(3, 4, 3, 4)], 3)
    rng = np.random.default_rng(0)
    _, often = np.unique([starts.draw(rng) for _ in range(200 * starts.count)], axis=0, return_counts=True)
    assert len(often) == starts.count
    assert ((often - 200) ** 2 / 200).sum() < 2 * starts.count  # chi-squared, far beyond its 99.9th percentile


@given(
    units=st.integers(1, 60),
    classes=st.integers(1, 4),
    often=st.floats(0.02, 1),
    test_share=st.sampled_from([0, 0.1, 0.3]),
    seed=st.integers(0, 99),
)
def test_every_part_is_dealt_an_object_when_there_are_enough(
    units: int, classes: int, often: float, test_share: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    found = rng.random((units, classes)) < often
    part = stratified_split(found, [0.1, test_share], rng)
    parts = range(3 if test_share else 2)
    assert set(part) <= set(parts)
    if found.any(axis=1).sum() >= len(parts):
        assert all(found[part == k].any() for k in parts)


def test_a_deal_keeps_the_shares_of_units_and_of_each_class() -> None:
    rng = np.random.default_rng(0)
    found = rng.random((400, 3)) < (0.5, 0.2, 0.05)
    part = stratified_split(found, [0.1, 0.2], rng)
    assert np.bincount(part) / 400 == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    for column in found.T:
        assert np.bincount(part[column]) / column.sum() == pytest.approx([0.7, 0.1, 0.2], abs=0.06)


def pixels_of(split: Split, side: int) -> list[np.ndarray]:
    """How often each pixel of the only scene is in each part."""
    counts = [np.zeros((side, side), int) for _ in range(3)]
    counts[0] += split.training[0].free_pixels(Window(0, 0, side, side))
    for count, part in zip(counts[1:], (split.validation, split.test), strict=True):
        for _, block in part:
            count[block.toslices()] += 1
    return counts


@given(
    side=st.integers(40, 130),
    block=st.integers(8, 30),
    test_share=st.sampled_from([0.0, 0.1, 0.25]),
    seed=st.integers(0, 50),
)
def test_a_split_by_blocks_is_seeded_and_each_pixel_is_in_exactly_one_part(
    side: int, block: int, test_share: float, seed: int
) -> None:
    source = FakeSource(side, share=0.1)
    data = LabelledData(sources=(source,))
    spec = SplitSpec(block_size=block, test_share=test_share)
    try:
        split = split_data(data, spec, seed=seed, core_size=8)
    except SettingsError as error:
        assert "block_size" in str(error)  # noqa: PT017
        return
    assert split == split_data(data, spec, seed=seed, core_size=8)
    assert (sum(pixels_of(split, side)) == 1).all()
    assert bool(split.test) == bool(test_share)
    for part in filter(None, (split.validation, split.test)):
        assert any(presence(*block).any() for block in part)
    assert split.training[0].starts(8).count > 0


def test_another_seed_holds_out_other_blocks_and_the_record_counts_them(town: Town) -> None:
    data = open_data([town.image], town.labels, SMALL)
    splits = [split_data(data, SplitSpec(block_size=16), seed=seed, core_size=16) for seed in (0, 1)]
    assert splits[0].validation != splits[1].validation
    share = {"scenes": ["town"], "share": pytest.approx(4 / 36, abs=1e-4)}
    record = splits[0].as_record()
    assert record["validation"] == record["test"] == share
    assert record["kind"] == "blocks"
    assert record["blocks"] == {"validation": 4, "test": 4}


@pytest.mark.parametrize(
    ("spec", "core", "message"),
    [
        (
            SplitSpec(block_size=96),
            16,
            r"needs 3 blocks .* validation and test, but of 1 block.*block_size=48, or name",
        ),
        (SplitSpec(block_size=96, test_share=0), 16, r"needs 2 blocks .* for training, validation, but .* or name"),
        (SplitSpec(block_size=32), 90, "no training window, which covers 90 px, fits .* a smaller samples.tile_size"),
        (SplitSpec(kind="scenes"), 16, "needs 3 scenes with objects.*1 of 1 have some; set split.kind=blocks, or name"),
    ],
    ids=["one-block", "one-block-no-test", "no-fit", "one-scene"],
)
def test_a_scene_that_cannot_be_split_names_the_keys_to_set(
    town: Town, spec: SplitSpec, core: int, message: str
) -> None:
    data = open_data([town.image], town.labels, SMALL)
    with pytest.raises(SettingsError, match=message):
        split_data(data, spec, seed=0, core_size=core)


def fakes(count: int, empty: int = 0) -> LabelledData:
    return LabelledData(
        sources=tuple(FakeSource(40, seed=k, share=0 if k < empty else 0.1, name=f"s{k}") for k in range(count))
    )


def test_ten_scenes_are_split_as_wholes_with_objects_in_each_part() -> None:
    for seed in range(5):
        split = split_data(fakes(20, empty=10), SplitSpec(), seed=seed, core_size=8)
        assert split.kind == "scenes"
        assert [len(part) for part in (split.training, split.validation, split.test)] == [16, 2, 2]
        assert len({source.scene.id for source, _ in (*split.validation, *split.test)}) == 4
        assert any(presence(*part).any() for part in split.test)
        check_validation(split)
    assert split_data(fakes(9), SplitSpec(block_size=10), seed=0, core_size=8).kind == "blocks"


def test_named_scenes_are_held_out_and_nothing_else_is_drawn_next_to_named_validation() -> None:
    split = split_data(replace(fakes(12), validation=("s3",)), SplitSpec(), seed=0, core_size=8)
    assert [source.scene.id for source, _ in split.validation] == ["s3"]
    assert split.test == ()
    assert len(split.training) == 11
    both = split_data(replace(fakes(12), test=("s3", "s4")), SplitSpec(), seed=0, core_size=8)
    assert [source.scene.id for source, _ in both.test] == ["s3", "s4"]
    assert len(both.validation) == 1
    with pytest.raises(SettingsError, match="all 1 scenes are held out, none remains"):
        split_data(replace(fakes(1), validation=("s0",)), SplitSpec(), seed=0, core_size=8)


def test_validation_without_an_object_is_refused() -> None:
    split = split_data(replace(fakes(3, empty=1), validation=("s0",)), SplitSpec(), seed=0, core_size=8)
    with pytest.raises(LabelError, match=r"no labelled object lies in the validation part \(s0\)"):
        check_validation(split)


def square(core: TrainingWindow, size: int) -> Window:
    """The part of the scene that a core covers."""
    return clip(Window(core.col, core.row, size, size), core.source.scene.grid.window)


@given(side=st.integers(70, 200), size=st.integers(1, 60), seed=st.integers(0, 99))
def test_no_training_core_overlaps_a_held_out_block(side: int, size: int, seed: int) -> None:
    source = FakeSource(side)
    area = Area(source=source, held_out=tuple(some_blocks((side, side), 64, seed)))
    rng = np.random.default_rng(seed)
    try:
        drawer = WindowSampler([area], SamplesSpec(), size)
    except SettingsError as error:
        assert "holds a labelled pixel outside the held-out blocks" in str(error)  # noqa: PT017
        return
    for _ in range(20):
        core = drawer.draw(rng)
        assert not any(overlap(square(core, size), block) for block in area.held_out)
        assert overlap(square(core, size), source.scene.grid.window)


def test_a_class_of_few_pixels_is_sampled_as_often_as_the_others() -> None:
    source = FakeSource(400, classes=2, share=0.3)
    source.whole.target[1] = 0
    source.whole.target[1, 333, 77] = 1
    drawer = WindowSampler([Area(source=source)], SamplesSpec(labelled_share=1.0), 8)
    rng = np.random.default_rng(0)
    holds = np.mean([source.target(square(drawer.draw(rng), 8))[1].any() for _ in range(300)])
    assert 0.4 < holds < 0.6


@given(share=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 20))
def test_labelled_share_decides_how_many_windows_hold_an_object(share: float, seed: int) -> None:
    source = FakeSource(300, share=0)
    source.whole.target[0, 100:110, 200:210] = 1
    drawer = WindowSampler([Area(source=source)], SamplesSpec(labelled_share=share), 8)
    rng = np.random.default_rng(seed)
    holds = np.mean([source.target(square(drawer.draw(rng), 8)).any() for _ in range(200)])
    assert holds == pytest.approx(share, abs=0.12)


def test_pixels_of_a_class_that_windows_reach_are_equally_likely() -> None:
    source = FakeSource(150, share=0.002)
    area = Area(source=source, held_out=(Window(64, 64, 30, 50),))
    index = ClassIndex(area, 1)
    expected = np.argwhere((source.whole.target[0] == 1) & area.free_pixels(Window(0, 0, 150, 150)))
    rng = np.random.default_rng(0)
    found, often = np.unique([index.draw_start(rng, 0) for _ in range(100 * len(expected))], axis=0, return_counts=True)
    assert np.array_equal(found, expected)
    assert ((often - 100) ** 2 / 100).sum() < 2 * len(expected)


def test_windows_hold_labelled_land_also_where_it_is_rare() -> None:
    source = FakeSource(300, share=0)
    source.whole.target[:] = 255
    source.whole.target[0, 100:110, 200:210] = 0
    drawer = WindowSampler([Area(source=source)], SamplesSpec(), 8)
    rng = np.random.default_rng(0)
    assert all((source.target(square(drawer.draw(rng), 8)) == 0).any() for _ in range(50))


def test_scenes_are_balanced_by_area_or_each_as_often() -> None:
    areas = [Area(source=FakeSource(side, share=0.5, name=str(side))) for side in (30, 90)]
    rng = np.random.default_rng(0)
    for balance, expected in (("area", 0.9), ("scenes", 0.5)):
        drawer = WindowSampler(areas, SamplesSpec(balance=balance), 8)  # type: ignore[arg-type]
        large = np.mean([drawer.draw(rng).source is areas[1].source for _ in range(400)])
        assert large == pytest.approx(expected, abs=0.08)


def test_a_window_depends_on_its_generator_alone() -> None:
    drawer = WindowSampler([Area(source=FakeSource(100))], SamplesSpec(), 16)
    first = [drawer.draw(np.random.default_rng(k)) for k in range(10)]
    assert first[::-1] == [drawer.draw(np.random.default_rng(k)) for k in reversed(range(10))]


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 50))
def test_validation_cores_count_each_pixel_exactly_once(height: int, width: int, size: int) -> None:
    block = Window(20, 10, width, height)
    usable = np.zeros((200, 200), int)
    for core in tile_windows([(FakeSource(200), block)], size):
        rows = slice(core.row, min(core.row + size, block.row_off + block.height))
        cols = slice(core.col, min(core.col + size, block.col_off + block.width))
        usable[rows, cols] += 1
    assert (usable[10 : 10 + height, 20 : 20 + width] == 1).all()
    assert usable.sum() == height * width
