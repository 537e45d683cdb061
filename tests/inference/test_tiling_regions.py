"""Regions partition the scene, and share its tiles as evenly as any cut could."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tilings import shapes, tilings

from pipeline.inference.tiling.regions import Region, _block_sides, group_adjacent, plan_regions, split_region
from pipeline.inference.tiling.tiles import Axis, Tiling, plan_tiles


@given(shapes, tilings(), st.integers(1, 7), st.integers(1, 7))
def test_region_cores_partition_the_grid(shape: tuple[int, int], tiling: Tiling, rows: int, cols: int) -> None:
    owners = np.zeros(shape, int)
    regions = plan_regions(plan_tiles(shape, tiling), rows=rows, cols=cols)
    for region in regions:
        owners[region.core.toslices()] += 1
    assert (owners == 1).all()
    assert [region.index for region in regions] == list(range(len(regions)))


def needed(axis: Axis, start: int, stop: int, *, core_only: bool) -> int:
    """Tiles that some pixels need, counted one by one."""
    return sum(first < stop and last > start for first, last in axis.reach(core_only=core_only))


def parts_within(axis: Axis, max_tiles: int, *, core_only: bool) -> int:
    """The fewest parts of an axis none of which needs more than so many tiles: each is as long as it may be."""
    start, parts = 0, 0
    while start < axis.length:
        lengths = range(1, axis.length - start + 1)
        longest = max(
            (n for n in lengths if needed(axis, start, start + n, core_only=core_only) <= max_tiles), default=0
        )
        if not longest:
            return axis.length + 1
        start, parts = start + longest, parts + 1
    return parts


@given(st.integers(1, 300), st.integers(2, 40), st.data(), st.integers(1, 9), st.booleans())
def test_no_cut_has_a_less_busy_region(
    length: int, size: int, data: st.DataObject, count: int, core_only: bool
) -> None:
    """As long as only neighbours overlap; the last tile, pulled back into the scene, may cost one tile more."""
    tiling = Tiling(tile_size=size, overlap=data.draw(st.integers(0, size // 2)))
    plan = plan_tiles((length, 1), tiling)
    regions = plan_regions(plan, rows=count, core_only=core_only)
    ends = [(region.core.row_off, region.core.row_off + region.core.height) for region in regions]
    busiest = max(needed(plan.rows, *each, core_only=core_only) for each in ends)
    best = next(
        max_tiles
        for max_tiles in range(1, length + 2)
        if parts_within(plan.rows, max_tiles, core_only=core_only) <= len(regions)
    )
    assert busiest == best


@pytest.mark.parametrize(
    ("rows", "core_only", "needs"), [(2, False, (13, 13)), (4, False, (7,) * 4), (2, True, (13, 13))]
)
def test_a_sentinel_2_scene_is_shared_evenly_at_whole_blocks(
    rows: int, core_only: bool, needs: tuple[int, ...]
) -> None:
    plan = plan_tiles((10_980, 10_980), Tiling(tile_size=512, overlap=64))
    cores = [region.core for region in plan_regions(plan, rows=rows, core_only=core_only)]
    assert tuple(needed(plan.rows, c.row_off, c.row_off + c.height, core_only=core_only) for c in cores) == needs
    assert all(core.row_off % 512 == 0 for core in cores)


@given(shapes, tilings(), st.integers(1, 30))
def test_halves_of_regions_partition_them_down_to_single_tiles(
    shape: tuple[int, int], tiling: Tiling, widest: int
) -> None:
    plan = plan_tiles(shape, tiling)
    waiting = list(plan_regions(plan, max_columns=widest))
    owners = np.zeros(shape, int)
    while waiting:
        region = waiting.pop()
        halves = split_region(plan, region)
        if halves == (region,):
            owners[region.core.toslices()] += 1
        else:
            assert all(0 < half.core.width < region.core.width for half in halves)
            waiting += halves
    assert (owners == 1).all()


def test_a_region_is_about_as_wide_as_its_memory_allows() -> None:
    plan = plan_tiles((100, 3000), Tiling(tile_size=128, overlap=28))
    assert [region.core.width for region in plan_regions(plan)] == [3000]
    widths = [region.core.width for region in plan_regions(plan, max_columns=700)]
    assert sum(widths) == 3000
    assert max(widths) <= 700 + 512, "regions begin at whole blocks"


def test_more_regions_than_tiles_become_one_per_tile() -> None:
    regions = plan_regions(plan_tiles((300, 10), Tiling(tile_size=128, overlap=28)), rows=99)
    assert len(regions) == 3
    assert all(isinstance(region, Region) for region in regions)


@given(shapes, tilings(), st.integers(1, 90))
def test_there_are_as_few_columns_of_regions_as_memory_allows(
    shape: tuple[int, int], tiling: Tiling, widest: int
) -> None:
    plan = plan_tiles(shape, tiling)
    columns = {region.core.col_off for region in plan_regions(plan, max_columns=widest)}
    assert len(columns) == min(math.ceil(shape[1] / widest), plan.shape[1])


@given(shapes, tilings(), st.integers(1, 7), st.integers(1, 3), st.randoms(use_true_random=False))
def test_a_stack_is_regions_that_touch(
    shape: tuple[int, int], tiling: Tiling, rows: int, cols: int, random: st.DataObject
) -> None:
    """Any regions may be missing, done by an earlier run: a gap parts two stacks, and nothing else does."""
    regions = plan_regions(plan_tiles(shape, tiling), rows=rows, cols=cols)
    missing = [region for region in regions if random.random() < 0.7]
    stacks = group_adjacent(missing)
    assert sorted(region.index for stack in stacks for region in stack) == [region.index for region in missing]
    cores = {(region.core.col_off, region.core.row_off) for region in missing}
    for stack in stacks:
        for above, below in pairwise(region.core for region in stack):
            assert (below.col_off, below.row_off) == (above.col_off, above.row_off + above.height)
        last = stack[-1].core
        assert (last.col_off, last.row_off + last.height) not in cores


def test_the_largest_block_that_fits_is_a_place_to_cut() -> None:
    assert [*_block_sides(1023)] == [512]
    assert [*_block_sides(1024)] == [512, 1024]
