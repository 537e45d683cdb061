"""Strips hold what their windows cover, mirrored past the scene; every storage block is read once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from conftest import MakeScene
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window
from support.strips import assembled

from pipeline.errors import DamagedSceneError
from pipeline.inference.tiling import chunks
from pipeline.inference.tiling import strips as batches
from pipeline.inference.tiling.strips import DecodedChunk, RawStrip, read_strips
from pipeline.inference.tiling.tiles import Tiling, plan_tiles
from pipeline.scene import AxisMapping
from pipeline.scene.describe import describe_scene
from pipeline.scene.reader import SceneReader


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([16, 32, None]),
    st.integers(0, 5),
    st.integers(1, 3),
)
def test_a_strip_is_the_mirrored_scene_under_its_windows(
    make_scene: MakeScene, height: int, width: int, block: int | None, margin: int, threads: int
) -> None:
    generator = np.random.default_rng(0)
    pixels = generator.integers(1, 255, (2, height, width), np.uint8)
    hole = generator.random((height, width)) < (0.3 if margin % 2 else 0)
    pixels[:, hole] = 0
    scene = describe_scene(make_scene(pixels, tiled=block, nodata=0))
    plan = plan_tiles((height, width), Tiling(tile_size=20 + 2 * margin, overlap=6 + 2 * margin, margin=margin))
    beyond = 20 + 2 * margin
    padded = np.pad(pixels, [(0, 0), (beyond, beyond), (beyond, beyond)], mode="reflect")
    data = np.pad(~hole, beyond, mode="reflect")
    for strip in read_strips(scene, plan, (range(plan.shape[0]), range(plan.shape[1])), threads=threads):
        top, left = plan.rows.starts[strip.row] - margin + beyond, strip.left + beyond
        rows, cols = strip.shape
        assert rows == plan.rows.tile
        found, valid = assembled(strip)
        np.testing.assert_array_equal(found, padded[:, top : top + rows, left : left + cols])
        np.testing.assert_array_equal(valid, data[top : top + rows, left : left + cols])


@given(st.lists(st.sampled_from(["full", "empty", "mixed"]), min_size=1, max_size=4), st.integers(0, 20), st.data())
def test_a_strip_knows_which_of_its_columns_hold_data(kinds: list[str], left: int, data: st.DataObject) -> None:
    """Whatever chunks it was decoded in; a chunk without a mask is all data."""
    right = data.draw(st.integers(left, 24))
    width, generator = 24 // len(kinds), np.random.default_rng(len(kinds))
    masks = {"full": None, "empty": np.zeros((5, width), bool), "mixed": generator.random((5, width)) < 0.1}
    decoded = tuple(
        DecodedChunk(top=0, left=k * width, pixels=np.zeros((3, 5, width), np.uint8), valid=masks[kind])
        for k, kind in enumerate(kinds)
    )
    strip = RawStrip(row=0, left=0, shape=(5, 24), chunks=decoded)
    valid = np.concatenate([np.ones((5, width), bool) if (m := masks[kind]) is None else m for kind in kinds], axis=1)
    if right > left:
        assert strip.any_valid(slice(left, right)) == valid[:, left:right].any()
    assert strip.count_valid(slice(1, 4), slice(left, right)) == valid[1:4, left:right].sum()


def spy_on_reads(monkeypatch: pytest.MonkeyPatch) -> list[Window]:
    """Record every window that is read."""
    seen: list[Window] = []
    read = SceneReader.read

    def spying(self: SceneReader, window: Window) -> Any:
        seen.append(window)
        return read(self, window)

    monkeypatch.setattr(SceneReader, "read", spying)
    return seen


@pytest.mark.parametrize(("block", "tile", "overlap"), [(64, 96, 40), (32, 96, 90), (None, 50, 10)])
def test_every_block_is_read_exactly_once(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch, block: int | None, tile: int, overlap: int
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 64)
    monkeypatch.setattr(chunks, "CHUNK_COLS", 128)
    scene = describe_scene(make_scene(bands=1, height=333, width=401, tiled=block))
    seen = spy_on_reads(monkeypatch)
    plan = plan_tiles((333, 401), Tiling(tile_size=tile, overlap=overlap))
    for _ in read_strips(scene, plan, (range(plan.shape[0]), range(plan.shape[1])), threads=2):
        pass
    times = np.zeros((333, 401), int)
    for window in seen:
        times[window.toslices()] += 1
        rows, cols = scene.files[0].block_shape
        assert window.row_off % rows == 0
        assert window.col_off % cols == 0
    assert (times == 1).all()


def test_read_ahead_is_bounded(make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 32)
    scene = describe_scene(make_scene(bands=1, height=32 * 40, width=40, tiled=32))
    seen = spy_on_reads(monkeypatch)
    plan = plan_tiles((32 * 40, 40), Tiling(tile_size=32, overlap=0))
    strips = read_strips(scene, plan, (range(40), range(plan.shape[1])), threads=1)
    next(strips)
    furthest = max(window.row_off for window in seen)
    strips.close()  # type: ignore[attr-defined]
    assert furthest <= 32 * (1 + batches.PREFETCH_ROW_BANDS)


def test_damage_is_raised_when_its_strip_is_due(make_scene: MakeScene) -> None:
    path = make_scene(bands=1, height=2048, width=512, tiled=512, compress="deflate")
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size - size // 8)
        file.write(b"\xff" * 4096)
    scene = describe_scene(path)
    plan = plan_tiles((2048, 512), Tiling(tile_size=512, overlap=0))
    strips = read_strips(scene, plan, (range(4), range(1)), threads=2)
    assert next(strips).row == 0
    with pytest.raises(DamagedSceneError, match=r"damaged at rows 1536\.\.2047"):
        list(strips)


@given(st.lists(st.integers(1, 300), min_size=1, max_size=3), st.integers(1, 600), st.integers(1, 2000))
def test_chunks_are_whole_blocks_of_all_files_where_that_is_bounded(
    blocks: list[int], target: int, largest: int
) -> None:
    axis = AxisMapping.over(5000, 5000)
    size = chunks._whole_blocks(target, largest, [(axis, block) for block in blocks])
    together = math.lcm(*blocks)
    step = together if together <= largest else max(blocks)
    assert size % step == 0
    assert target <= size < target + step
