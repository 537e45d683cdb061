"""Regions: a scene divided for workers, by integer arithmetic only.

A tile that two regions need is run by both. So regions begin where a tile begins: one row of tiles is then needed on
both sides, and none where every pixel comes from a single tile.

    tile k - 1   |<------------- output ------------->|
    tile k                                 |<------------- output ------------->|
    regions      ... region above --------|-------- region below, needs tile k - 1 too ...
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rasterio.windows import Window

from pipeline.inference.tiling.tiles import Axis, TilePlan
from pipeline.mosaic import BLOCK

MIN_PART_ROWS = 4 * BLOCK
"""Regions of a stack begin at multiples of this: blocks of the mosaic and of two overviews stay whole."""


@dataclass(frozen=True, kw_only=True)
class Region:
    """A rectangle of the scene given to one worker; the cores of regions partition the scene."""

    index: int
    """Position in plan order."""
    core: Window
    """Scene pixels this region delivers."""

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return int(self.core.width * self.core.height)


def plan_regions(
    plan: TilePlan, *, rows: int = 1, cols: int | None = None, max_columns: int | None = None, core_only: bool = False
) -> tuple[Region, ...]:
    """Divide the scene into about `rows x cols` regions of nearly equal numbers of tiles, including tiles run twice.

    More regions than tiles along an axis are reduced to one per tile. Regions that are large enough begin at
    whole storage blocks, so that joining them moves blocks as they are.

    Args:
        plan: the tiles.
        rows: regions from top to bottom.
        cols: regions from left to right; None takes as few as keep each about as wide as `max_columns` allows.
        max_columns: columns that memory allows; None = no limit.
        core_only: True if every pixel comes from the tile whose core it lies in.

    >>> from pipeline.inference.tiling.tiles import Tiling, plan_tiles
    >>> plan = plan_tiles((100, 250), Tiling(tile_size=128, overlap=28))
    >>> [r.core.col_off for r in plan_regions(plan, cols=2)], [r.core.col_off for r in plan_regions(plan, cols=3)]
    ([0, 122], [0, 100, 122])
    """
    cols = cols or _columns(plan, max_columns)
    return _regions(_cuts(plan.rows, rows, core_only=core_only), _cuts(plan.cols, cols, core_only=core_only))


def plan_parts(
    plan: TilePlan, *, pixels: int, max_columns: int | None = None, core_only: bool = False
) -> tuple[Region, ...]:
    """Divide the scene into regions of about `pixels`, which cost nothing extra when they run as one stack.

    They begin at whole storage blocks, also of the first overviews.

    Args:
        plan: the tiles.
        pixels: of a region at most, unless `MIN_PART_ROWS` rows have more.
        max_columns: columns that memory allows; None = no limit.
        core_only: see `plan_regions`.

    >>> from pipeline.inference.tiling.tiles import Tiling, plan_tiles
    >>> plan = plan_tiles((10_000, 10_000), Tiling(tile_size=512, overlap=64))
    >>> [part.core.height for part in plan_parts(plan, pixels=5 * 10**7)]
    [4096, 4096, 1808]
    """
    lefts = _cuts(plan.cols, _columns(plan, max_columns), core_only=core_only)
    # About `pixels` in the widest region, in whole multiples of `MIN_PART_ROWS`.
    height = MIN_PART_ROWS * max(1, pixels // (MIN_PART_ROWS * max(right - left for left, right in pairwise(lefts))))
    return _regions([*range(0, plan.rows.length, height), plan.rows.length], lefts)


def group_adjacent(regions: Sequence[Region]) -> list[list[Region]]:
    """Stacks of regions, one below the other without a gap, which run without a cut between them.

    >>> from pipeline.inference.tiling.tiles import Tiling, plan_tiles
    >>> plan = plan_tiles((100, 250), Tiling(tile_size=128, overlap=28))
    >>> [[region.index for region in stack] for stack in group_adjacent(plan_regions(plan, cols=2))]
    [[0], [1]]
    """
    found: list[list[Region]] = []
    for region in sorted(regions, key=lambda region: (region.core.col_off, region.core.row_off)):
        above = found[-1][-1].core if found else None
        columns = (region.core.col_off, region.core.width)
        if above and (above.col_off, above.width) == columns and above.row_off + above.height == region.core.row_off:
            found[-1].append(region)
        else:
            found.append([region])
    return found


def split_region(plan: TilePlan, region: Region) -> tuple[Region, ...]:
    """A region split into left and right; itself if it is one tile wide.

    >>> from pipeline.inference.tiling.tiles import Tiling, plan_tiles
    >>> plan = plan_tiles((100, 250), Tiling(tile_size=128, overlap=28))
    >>> [half.core.width for half in split_region(plan, plan_regions(plan)[0])]
    [100, 150]
    """
    core = region.core
    inside = [start for start in plan.cols.starts if core.col_off < start < core.col_off + core.width]
    if not inside:
        return (region,)
    edges = [core.col_off, inside[(len(inside) - 1) // 2], core.col_off + core.width]
    return tuple(
        Region(index=region.index, core=Window(left, core.row_off, right - left, core.height))
        for left, right in pairwise(_at_blocks(edges, _needs(plan.cols, core_only=False)))
    )


def _columns(plan: TilePlan, max_columns: int | None) -> int:
    """Number of regions from left to right."""
    return 1 if max_columns is None else -(-plan.cols.length // max_columns)


def _regions(tops: Sequence[int], lefts: Sequence[int]) -> tuple[Region, ...]:
    cores = [
        Window(left, top, right - left, bottom - top)
        for top, bottom in pairwise(tops)
        for left, right in pairwise(lefts)
    ]
    return tuple(Region(index=index, core=core) for index, core in enumerate(cores))


def _cuts(axis: Axis, count: int, *, core_only: bool) -> list[int]:
    """Starts of `count` parts of an axis, and its end.

    `shared` tiles are needed on both sides of a cut, so the first part gets `shared` more new tiles: every other part
    begins with those of the part before it.
    """
    places, tiles = (axis.cuts if core_only else axis.starts), len(axis.starts)
    count = max(1, min(count, tiles))
    # Measured in the middle of the axis: the last tile may overlap more than the others.
    middle = places[tiles // 2]
    shared = min(tiles - count, sum(start < middle < stop for start, stop in axis.reach(core_only=core_only)))
    inner = [places[(tiles - shared) * part // count + shared] for part in range(1, count)]
    return _at_blocks([0, *inner, axis.length], _needs(axis, core_only=core_only))


def _needs(axis: Axis, *, core_only: bool) -> Callable[[int, int], int]:
    """Counts the tiles that scene pixels `start : stop` need."""
    starts, stops = zip(*axis.reach(core_only=core_only), strict=True)
    # Starts and stops ascend: tiles that begin before `stop`, less those that end at or before `start`.
    return lambda start, stop: bisect_left(starts, stop) - bisect_right(stops, start)


def _at_blocks(cuts: list[int], needs: Callable[[int, int], int]) -> list[int]:
    """The cuts moved to whole blocks of at most a quarter of the smallest region, if there are any.

    Each moves to where the regions on its sides need the fewest tiles, and among these to the largest blocks: blocks
    of overviews cover more pixels, so more levels are copied block by block.

    >>> equal = lambda start, stop: 1
    >>> _at_blocks([0, 20_000, 40_000, 60_000], equal), _at_blocks([0, 2100, 4200], equal)
    ([0, 20480, 40960, 60000], [0, 2048, 4200])
    >>> _at_blocks([0, 900, 1800], equal)
    [0, 900, 1800]
    """
    sides = [*_block_sides(min(b - a for a, b in pairwise(cuts)) // 4)]
    moved = cuts[:1]
    for cut, below in pairwise(cuts[1:]):
        # The nearest block borders on both sides; for equal places the largest side wins, since sides ascend.
        blocks = {place: side for side in sides for place in (cut // side * side, -(-cut // side) * side)} or {cut: 1}
        busiest = {place: max(needs(moved[-1], place), needs(place, below)) for place in blocks}
        moved.append(min(blocks, key=lambda place: (busiest[place], -blocks[place], abs(place - cut))))
    return [*moved, cuts[-1]]


def _block_sides(largest: int) -> Iterator[int]:
    """Sides of the blocks of the mosaic and its overviews, in pixels of the scene, up to `largest`."""
    side = BLOCK
    while side <= largest:
        yield side
        side *= 2
