"""The plan is arithmetic: cores partition, outputs cover cores, windows have one size."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from support.tilings import shapes, tilings

from pipeline.errors import SettingsError
from pipeline.inference.tiling.tiles import Tiling, TilingSpec, plan_tiles, resolve_tiling
from pipeline.model.card import ModelCard

CARD = ModelCard(bands=("red",), classes=("roof",))
UNET = ModelCard(bands=("red",), classes=("roof",), stride=16, receptive_field=188)
PAPER = ModelCard(bands=("red",), classes=("roof",), stride=16, size_offset=12, margin=92, receptive_field=185)


@given(shapes, tilings())
def test_cores_partition_the_grid(shape: tuple[int, int], tiling: Tiling) -> None:
    owners = np.zeros(shape, int)
    for tile in plan_tiles(shape, tiling):
        owners[tile.core.toslices()] += 1
    assert (owners == 1).all()


@given(shapes, tilings())
def test_every_output_covers_its_core_and_all_windows_have_one_size(shape: tuple[int, int], tiling: Tiling) -> None:
    plan = plan_tiles(shape, tiling)
    for tile in plan:
        w, c, m = tile.window, tile.core, tiling.margin
        assert w.row_off + m <= c.row_off
        assert c.row_off + c.height <= w.row_off + w.height - m
        assert w.col_off + m <= c.col_off
        assert c.col_off + c.width <= w.col_off + w.width - m
        assert (w.height, w.width) == (plan.rows.tile, plan.cols.tile)


@given(shapes, tilings())
def test_windows_are_sized_and_aligned_for_the_network(shape: tuple[int, int], tiling: Tiling) -> None:
    plan = plan_tiles(shape, tiling)
    for axis in (plan.rows, plan.cols):
        assert (tiling.tile_size - axis.tile) % tiling.stride == 0
        assert all(start % tiling.align == 0 for start in axis.starts)
        assert list(axis.starts) == sorted(set(axis.starts))
        overshoot = axis.starts[-1] + axis.output - axis.length
        if tiling.fixed:
            assert axis.tile == tiling.tile_size
        else:
            assert 0 <= overshoot < max(tiling.stride, tiling.align)


@pytest.mark.parametrize(
    ("length", "starts"),
    [
        (1, (0,)),  # a scene of one pixel
        (128, (0,)),  # exactly one tile
        (129, (0, 1)),  # one pixel more: the last tile is pulled back inside
        (228, (0, 100)),  # an exact multiple
        (229, (0, 100, 101)),
    ],
)
def test_the_last_tile_ends_with_the_scene(length: int, starts: tuple[int, ...]) -> None:
    assert plan_tiles((length, 1), Tiling(tile_size=128, overlap=28)).rows.starts == starts


def test_a_network_of_one_size_gets_tiles_of_that_size_alone() -> None:
    card = ModelCard(bands=("red",), classes=("roof",), stride=4, tile_size=64)
    tiling = resolve_tiling(TilingSpec(tile_size=64), card, exact=False)
    plan = plan_tiles((5, 70), tiling)
    assert [(tile.window.height, tile.window.width) for tile in plan] == [(64, 64)] * 2
    with pytest.raises(SettingsError, match=r"must be 64 px, the only size .*, not 512; set tiling\.tile_size=64"):
        resolve_tiling(TilingSpec(), card, exact=False)


def test_overlap_defaults_to_an_eighth_of_the_tile() -> None:
    assert resolve_tiling(TilingSpec(tile_size=512), CARD, exact=False).overlap == 64


def test_exact_overlaps_by_twice_the_receptive_radius_rounded_up_to_the_stride() -> None:
    tiling = resolve_tiling(TilingSpec(tile_size=512), UNET, exact=True)
    assert (tiling.overlap, tiling.align) == (192, 16)


def test_unpadded_networks_overlap_by_what_their_output_loses() -> None:
    tiling = resolve_tiling(TilingSpec(tile_size=572), PAPER, exact=False)
    assert tiling.margin == 92
    assert tiling.overlap == 184 + 388 // 8


def test_exact_blending_overlaps_by_what_decides_aligned_cores() -> None:
    wide = resolve_tiling(TilingSpec(), replace(UNET, receptive_field=215), exact=True)
    narrow = resolve_tiling(TilingSpec(), replace(UNET, receptive_field=215, aligned_halo=94), exact=True)
    assert (wide.overlap, narrow.overlap) == (224, 192)


@pytest.mark.parametrize(
    ("spec", "card", "exact", "words"),
    [
        (TilingSpec(tile_size=500), UNET, False, ["tiling.tile_size", "multiple of 16", "500", "496 or 512"]),
        (TilingSpec(tile_size=512), PAPER, False, ["16 plus 12", "508 or 524"]),
        (TilingSpec(tile_size=512, overlap=64), UNET, True, ["tiling.overlap", "at least 192", "64"]),
        (TilingSpec(tile_size=512, overlap=200), UNET, True, ["multiple of the network's stride 16", "512 - 200"]),
        (TilingSpec(tile_size=192), UNET, True, ["tiling.tile_size", "192 px of overlap"]),
        (TilingSpec(tile_size=64), ModelCard(bands=("r",), classes=("c",), receptive_field=None), True, ["group"]),
    ],
)
def test_an_unfit_tiling_is_refused_with_the_rule(
    spec: TilingSpec, card: ModelCard, exact: bool, words: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve_tiling(spec, card, exact=exact)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(("tile_size", "overlap"), [(0, None), (64, 64), (64, -1), (64, 100)])
def test_settings_outside_their_range_are_refused(tile_size: int, overlap: int | None) -> None:
    with pytest.raises(SettingsError):
        TilingSpec(tile_size=tile_size, overlap=overlap)


@given(shapes, tilings())
def test_cores_meet_in_the_middle_of_the_overlap_the_lower_of_two(shape: tuple[int, int], tiling: Tiling) -> None:
    for axis in (plan := plan_tiles(shape, tiling)).rows, plan.cols:
        for cut, before, after in zip(axis.cuts[1:-1], axis.starts, axis.starts[1:], strict=False):
            assert 2 * cut <= before + axis.output + after <= 2 * cut + 1


@given(shapes, tilings())
def test_what_tiles_decide_lies_in_the_scene_and_covers_it(shape: tuple[int, int], tiling: Tiling) -> None:
    for axis in (plan := plan_tiles(shape, tiling)).rows, plan.cols:
        reach = axis.reach(core_only=False)
        assert all(0 <= start < stop <= axis.length for start, stop in reach)
        assert {pixel for start, stop in reach for pixel in range(start, stop)} == set(range(axis.length))


def test_an_overlap_is_refused_below_what_the_network_needs_and_accepted_from_there() -> None:
    card = ModelCard(bands=("red",), classes=("roof",), margin=10, receptive_field=21)
    assert resolve_tiling(TilingSpec(tile_size=100, overlap=20), card, exact=False).overlap == 20
    with pytest.raises(SettingsError, match="at least 20 px for this network and blend, not 19"):
        resolve_tiling(TilingSpec(tile_size=100, overlap=19), card, exact=False)
