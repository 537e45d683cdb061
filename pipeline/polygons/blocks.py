"""Block tracing: from one block of the mask to whole components, and pieces that touch a seam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.mosaic import Classification
from pipeline.polygons.holes import HoleFilter, fillable_holes, find_boundaries
from pipeline.polygons.tracing.components import NO_COMPONENT, Components, union_find
from pipeline.polygons.tracing.outlines import BlockOutlines, Rings, Seams, trace_outlines
from pipeline.polygons.tracing.simplify import simplify


@dataclass(frozen=True, kw_only=True)
class TracingRule:
    """Settings of tracing, resolved for one scene."""

    connectivity: int = 4
    """4 or 8."""
    tolerance: tuple[float, float] | None = None
    """Largest shift of a border along x and along y, px; None = pixel edges."""
    holes: HoleFilter | None = None
    """Which holes are filled; None = none."""


@dataclass(frozen=True, kw_only=True)
class FinishedComponents:
    """Whole components, ready to become polygons."""

    table: Components
    """The components."""
    rings: Rings
    """Their outlines, arranged."""
    feature: NDArray[np.int64]
    """`(n,)`: components with the same number are one feature; always different ones when 4-connected."""
    filled: NDArray[np.int64]
    """`Components.first` of the components in the holes that are filled."""


@dataclass(frozen=True, kw_only=True)
class BlockPieces:
    """Whole components and pieces of components of one block."""

    whole: FinishedComponents
    """Components whose feature touches no seam."""
    table: Components
    """Pieces of components, and of possible filled holes in them (value 0)."""
    rings: Rings
    """Outlines of the pieces, with every pixel corner along seams."""
    links: NDArray[np.int64]
    """`(k, 2)` pieces that meet in a corner and are one feature; empty when 4-connected."""
    boundaries: NDArray[np.int64]
    """`(k, 2)`: a piece of no class, and a piece next to it."""
    filled: NDArray[np.int64]
    """`(k, 2)`: a piece, and `Components.first` of the component in a hole of it that is filled."""
    lines: dict[str, NDArray[np.int64]]
    """`top`, `bottom`, `left`, `right` -> the piece of each pixel along that side of the block, or `NO_COMPONENT`."""


def trace_block(
    classification: Classification, seams: Seams, origin: tuple[int, int], rule: TracingRule
) -> BlockPieces:
    """Components and outlines of one block of the mask.

    Args:
        classification: the block's classes.
        seams: its borders that are seams.
        origin: `(row, col)` of the block in the scene.
        rule: settings.
    """
    traced = trace_outlines(
        classification,
        seams,
        origin=origin,
        with_none=rule.holes is not None,
        junctions=rule.tolerance is not None,
    )
    # Components whose feature touches a seam are pieces: the next blocks may add to them.
    table, n = traced.table, len(traced.table)
    on_seam = np.zeros(n, np.bool_)
    for side, line in traced.lines.items():
        if getattr(seams, side):
            on_seam[line[line >= 0]] = True
    links = traced.contacts if rule.connectivity == 8 else np.empty((0, 2), np.int64)
    feature = union_find(n, links)
    is_class = table.value != 0
    is_piece = is_class & np.isin(feature, feature[on_seam])

    # Undecided holes are kept with the pieces.
    boundaries, holes = np.empty((0, 2), np.int64), np.empty((0, 2), np.int64)
    if rule.holes is not None:
        boundaries = find_boundaries(traced, rule.holes.max_pixels)
        is_followed = ~is_class & (table.count <= rule.holes.max_pixels)
        holes, undecided = fillable_holes(boundaries, is_followed, on_seam, is_piece)
        holes = holes[rule.holes.fits(table.select(holes[:, 0]))]
        is_piece |= undecided
        boundaries = boundaries[is_piece[boundaries[:, 0]]]

    # Split the table into whole components and pieces, each in a numbering of its own.
    is_whole = is_class & ~is_piece
    pieces = consecutive_numbers(is_piece)
    numbers = consecutive_numbers(is_whole), np.where(is_class, pieces, -1)
    outlines = _outlines(traced, classification.mask, rule, *numbers)

    # A filled hole belongs to the component around it, whole or piece.
    in_piece = is_piece[holes[:, 1]]
    content = table.first[holes[:, 0]]
    return BlockPieces(
        whole=FinishedComponents(
            table=table.select(is_whole),
            rings=outlines[0],
            feature=feature[is_whole],
            filled=content[~in_piece],
        ),
        table=table.select(is_piece),
        rings=outlines[1],
        links=pieces[links[is_piece[links[:, 0]]]],
        boundaries=pieces[boundaries],
        filled=np.stack([pieces[holes[in_piece, 1]], content[in_piece]], axis=1),
        lines={side: renumber(line, pieces) for side, line in traced.lines.items()},
    )


def _outlines(
    traced: BlockOutlines,
    mask: NDArray[np.uint8],
    rule: TracingRule,
    whole: NDArray[np.int64],
    pieces: NDArray[np.int64],
) -> tuple[Rings, Rings]:
    """The rings of whole components and of pieces, numbered as given, on the scene's pixel plane, simplified or not."""
    if rule.tolerance is None:
        return traced.rings(whole, traced.origin), traced.rings(pieces, traced.origin)
    corners = None
    table = traced.table
    if rule.holes is not None:
        followed = (table.value == 0) & (table.count <= rule.holes.max_pixels)
        corners = table.first[followed] - ((traced.origin[0] << 32) + traced.origin[1])
    rings = traced.rings_in_scan_order(np.where(table.value != 0, np.arange(len(table)), -1))
    rings = simplify(rings, mask, traced.seams, rule.tolerance, corners).moved(traced.origin)
    return rings.renumbered(whole).arranged(), rings.renumbered(pieces)


def consecutive_numbers(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """0, 1, 2 ... where `chosen`, -1 elsewhere."""
    return np.where(chosen, np.cumsum(chosen) - 1, -1)


def renumber(line: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
    """The new number of each component in a list; `NO_COMPONENT` where it has none."""
    result = np.full_like(line, NO_COMPONENT)
    known = line >= 0
    new = number[line[known]]
    result[known] = np.where(new < 0, NO_COMPONENT, new)
    return result
