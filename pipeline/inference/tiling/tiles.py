"""Tile plan: a scene divided into overlapping tiles, by integer arithmetic only.

A plan is global: it depends on the scene's size and the tiling only, never on how the work
is split, so every split computes the same tiles. Along one axis of a scene:

    scene            |0 ............................................ length|
    tile window   |margin|<------------- output ------------->|margin|
    next tile                                 |margin|<------------- output ...
    cores            |<------------ core 0 ------------->|<--- core 1 ...

`margin` is what unpadded convolutions lose on each side (0 for padded networks); windows may reach
past the scene by it, and there the input is mirrored. Cores partition the scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from rasterio.windows import Window

from pipeline.errors import SettingsError
from pipeline.model import ModelCard


@dataclass(frozen=True, kw_only=True)
class TilingSpec:
    """How large tiles are and how far they overlap."""

    tile_size: int = 512
    """Side of a tile in pixels; must suit the network's stride."""
    overlap: int | None = None
    """Pixels shared by neighbouring tiles; None takes an eighth of the tile, or what `blend: exact` needs."""

    def __post_init__(self) -> None:
        if self.tile_size < 1:
            raise SettingsError(f"tile_size must be at least 1 px, not {self.tile_size}")
        if self.overlap is not None and not 0 <= self.overlap < self.tile_size:
            raise SettingsError(
                f"overlap must be at least 0 and smaller than tile_size ({self.tile_size} px), not {self.overlap}"
            )


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """A `TilingSpec` resolved for one network; `resolve_tiling` makes it."""

    tile_size: int
    """Side of a full tile's input window, px."""
    overlap: int
    """Pixels shared by the input windows of neighbours."""
    stride: int = 1
    """Tile sizes may differ from `tile_size` by multiples of this only."""
    margin: int = 0
    """Pixels the network's output loses on each side."""
    align: int = 1
    """Window offsets are multiples of this, counted from the first window."""
    fixed: bool = False
    """True: every window is `tile_size` wide and high, however small the scene."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The tiles along one axis: tile `k` yields scene pixels `starts[k] : starts[k] + output`."""

    length: int
    """Scene pixels along this axis."""
    tile: int
    """Side of a tile's input window, px."""
    margin: int
    """Pixels the output loses on each side."""
    starts: tuple[int, ...]
    """First output pixel of each tile, strictly ascending from 0."""

    @property
    def output(self) -> int:
        """Side of a tile's output, px; the last output may reach past `length`."""
        return self.tile - 2 * self.margin

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """Core `k` is `cuts[k] : cuts[k + 1]`; cuts lie in the middle of each overlap."""
        middles = ((a + self.output + b) // 2 for a, b in pairwise(self.starts))
        return (0, *middles, self.length)

    def reach(self, *, core_only: bool) -> list[tuple[int, int]]:
        """`(start, stop)` of what each tile decides: its core with `core_only`, else its whole output."""
        if core_only:
            return [*pairwise(self.cuts)]
        return [(start, min(start + self.output, self.length)) for start in self.starts]


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The unit of inference."""

    row: int
    """Index of the tile's strip."""
    col: int
    """Index within the strip."""
    window: Window
    """Input pixels; may reach past the scene, where pixels are mirrored."""
    core: Window
    """Scene pixels this tile owns: every pixel lies in exactly one core."""


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """All tiles of a scene, as the product of two axes."""

    rows: Axis
    cols: Axis

    @property
    def shape(self) -> tuple[int, int]:
        """`(strips, tiles per strip)`."""
        return len(self.rows.starts), len(self.cols.starts)

    def tile(self, row: int, col: int) -> Tile:
        """The tile at an index of the plan."""
        (top, bottom), (left, right) = self.rows.cuts[row : row + 2], self.cols.cuts[col : col + 2]
        return Tile(
            row=row,
            col=col,
            window=Window(
                self.cols.starts[col] - self.cols.margin,
                self.rows.starts[row] - self.rows.margin,
                self.cols.tile,
                self.rows.tile,
            ),
            core=Window(left, top, right - left, bottom - top),
        )

    def __iter__(self) -> Iterator[Tile]:
        """Tiles in plan order: row by row, left to right."""
        return (self.tile(row, col) for row in range(self.shape[0]) for col in range(self.shape[1]))

    def __len__(self) -> int:
        return self.shape[0] * self.shape[1]


def resolve_tiling(spec: TilingSpec, card: ModelCard, *, exact: bool) -> Tiling:
    """Combine the settings with the needs of the network.

    Args:
        spec: the settings.
        card: stride, size offset, margin and receptive field of the network.
        exact: align windows with the stride and overlap by at least the receptive field.

    Raises:
        SettingsError: a tile size the network cannot take, or an overlap too small for it.
    """
    size, margin = spec.tile_size, card.margin
    if card.tile_size not in (None, size):
        raise SettingsError(
            f"tiling.tile_size must be {card.tile_size} px, the only size this network takes, not {size}; "
            f"set tiling.tile_size={card.tile_size}"
        )
    if (size - card.size_offset) % card.stride or size <= 2 * margin:
        raise SettingsError(_unfit_tile_size(size, card))

    # Exact blending needs the halo on both sides, and windows at multiples of the stride.
    needed = 2 * margin
    align = 1
    if exact:
        align = card.stride
        needed += 2 * _round_up(_halo(card), align)

    # By default an eighth of a tile's output, or the least allowed, enlarged until the step is a multiple of `align`.
    overlap = spec.overlap
    if overlap is None:
        wanted = max(needed, 2 * margin + (size - 2 * margin) // 8)
        overlap = size - (size - wanted) // align * align
    if overlap >= size:
        raise SettingsError(
            f"tiling.tile_size must exceed the {needed} px of overlap this network needs, not {size}; try {4 * needed}"
        )
    if overlap < needed:
        raise SettingsError(
            f"tiling.overlap must be at least {needed} px for this network and blend, not {overlap}; "
            "leave it out to have it chosen"
        )
    if (size - overlap) % align:
        raise SettingsError(
            f"tiling.tile_size - tiling.overlap must be a multiple of the network's stride {align} "
            f"with blend: exact, not {size} - {overlap}"
        )
    fixed = card.tile_size is not None
    return Tiling(tile_size=size, overlap=overlap, stride=card.stride, margin=margin, align=align, fixed=fixed)


def plan_tiles(shape: tuple[int, int], tiling: Tiling) -> TilePlan:
    """Plan the tiles of a scene of `shape` `(height, width)`.

    Cores partition the scene; every output covers its core; all windows have one size, which is
    `tile_size`, or smaller by multiples of the stride when the scene itself is smaller and no size is fixed.

    >>> plan = plan_tiles((100, 250), Tiling(tile_size=128, overlap=28))
    >>> plan.shape, plan.cols.starts, plan.cols.cuts
    ((1, 3), (0, 100, 122), (0, 114, 175, 250))
    """
    return TilePlan(rows=_plan_axis(shape[0], tiling), cols=_plan_axis(shape[1], tiling))


def _plan_axis(length: int, tiling: Tiling) -> Axis:
    # A scene smaller than one output gets smaller tiles, by whole strides.
    full = tiling.tile_size - 2 * tiling.margin
    spare = 0 if tiling.fixed else max(0, full - length) // tiling.stride * tiling.stride
    output = full - spare
    step = tiling.tile_size - tiling.overlap
    # The last tile ends at the scene's end, or past it by less than `align`, so that all have one size.
    last = _round_up(max(0, length - output), tiling.align)
    starts = (*range(0, last, step), last)
    return Axis(length=length, tile=tiling.tile_size - spare, margin=tiling.margin, starts=starts)


def _halo(card: ModelCard) -> int:
    if card.receptive_field is None:
        raise SettingsError(
            "blend: exact needs a network with a bounded receptive field, and this one has none "
            "(group normalisation, squeeze-excitation and image pooling look at the whole tile); use blend: hann"
        )
    if card.margin:
        return 0
    return card.receptive_field // 2 if card.aligned_halo is None else card.aligned_halo


def _unfit_tile_size(size: int, card: ModelCard) -> str:
    minimum = 2 * card.margin + 1
    below = size - (size - card.size_offset) % card.stride
    fits = [s for s in (below, below + card.stride) if s >= minimum] or [
        minimum + (card.size_offset - minimum) % card.stride
    ]
    rule = f"a multiple of {card.stride}" + (f" plus {card.size_offset}" if card.size_offset else "")
    return (
        f"tiling.tile_size must be {rule} px and over {2 * card.margin} px for this network, not {size}; "
        f"use {' or '.join(map(str, fits))}"
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
