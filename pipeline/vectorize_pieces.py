"""One block of the mask -> whole components, and pieces that touch a seam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.decide import Decision
from pipeline.labelling import BAD, Components, Labels, corner_pairs, label, unite
from pipeline.tracing import Rings, Seams, trace
from pipeline.tracing_arcs import simplify
from pipeline.vectorize_holes import HoleRule, find_fences, judge


@dataclass(frozen=True, kw_only=True)
class TracingRule:
    """What a block needs to know of the settings."""

    connectivity: int = 4
    """4 or 8."""
    tolerance: tuple[float, float] | None = None
    """Most that a border may move along x and along y, px; None = pixel edges."""
    holes: HoleRule | None = None
    """Which holes are filled; None = none."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """Whole components, ready to become polygons."""

    table: Components
    """The components."""
    rings: Rings
    """Their outlines, in any order."""
    feature: NDArray[np.int64]
    """`(n,)`: components with the same number are one feature; always different ones when 4-connected."""
    filled: NDArray[np.int64]
    """`Components.first` of what lies in the holes that are filled."""


@dataclass(frozen=True, kw_only=True)
class BlockPieces:
    """What one block gives: components that are whole, and pieces."""

    whole: Finished
    """Components whose feature touches no seam."""
    table: Components
    """Pieces of components, and what may become a filled hole in one (value 0)."""
    rings: Rings
    """Outlines of the pieces, with every pixel corner along seams."""
    links: NDArray[np.int64]
    """`(k, 2)` pieces that meet in a corner and are one feature; empty when 4-connected."""
    fences: NDArray[np.int64]
    """`(k, 2)`: a piece of no class, and a piece next to it."""
    filled: NDArray[np.int64]
    """`(k, 2)`: a piece, and `Components.first` of what lies in a hole of it that is filled."""
    lines: dict[str, NDArray[np.int64]]
    """`top`, `bottom`, `left`, `right` -> the piece of each pixel along that side of the block, `BAD` = none."""


def trace_block(decision: Decision, seams: Seams, origin: tuple[int, int], rule: TracingRule) -> BlockPieces:
    """Components and outlines of one block of the mask.

    Args:
        decision: the block's classes.
        seams: its borders that are seams.
        origin: `(row, col)` of the block in the scene.
        rule: how.
    """
    labels = label(decision.mask, decision.level, origin=origin, with_none=rule.holes is not None)
    table, n = labels.table, len(labels.table)
    lines = {side: labels.line(side) for side in ("top", "bottom", "left", "right")}
    on_seam = np.zeros(n, np.bool_)
    for side, line in lines.items():
        if getattr(seams, side):
            on_seam[line[line >= 0]] = True
    links = corner_pairs(labels) if rule.connectivity == 8 else np.empty((0, 2), np.int64)
    feature = unite(n, links)
    is_class = table.value != 0
    is_piece = is_class & np.isin(feature, feature[on_seam])
    fences, holes = np.empty((0, 2), np.int64), np.empty((0, 2), np.int64)
    if rule.holes is not None:
        fences = find_fences(labels, seams, rule.holes.most_pixels)
        is_followed = ~is_class & (table.count <= rule.holes.most_pixels)
        holes, undecided = judge(fences, is_followed, on_seam, is_piece)
        holes = holes[rule.holes.fits(table.take(holes[:, 0]))]
        is_piece |= undecided
        fences = fences[is_piece[fences[:, 0]]]
    rings = _outline(labels, seams, origin, rule)
    is_whole = is_class & ~is_piece
    pieces = numbered(is_piece)
    in_piece = is_piece[holes[:, 1]]
    content = table.first[holes[:, 0]]
    return BlockPieces(
        whole=Finished(
            table=table.take(is_whole),
            rings=rings.select(numbered(is_whole)),
            feature=feature[is_whole],
            filled=content[~in_piece],
        ),
        table=table.take(is_piece),
        rings=rings.select(pieces),
        links=pieces[links[is_piece[links[:, 0]]]],
        fences=pieces[fences],
        filled=np.stack([pieces[holes[in_piece, 1]], content[in_piece]], axis=1),
        lines={side: renamed(line, pieces) for side, line in lines.items()},
    )


def _outline(labels: Labels, seams: Seams, origin: tuple[int, int], rule: TracingRule) -> Rings:
    """The block's rings on the scene's pixel plane, simplified or not."""
    if rule.tolerance is None:
        return trace(labels, seams).moved(origin)
    corners = None
    if rule.holes is not None:
        table = labels.table
        followed = (table.value == 0) & (table.count <= rule.holes.most_pixels)
        corners = table.first[followed] - ((origin[0] << 32) + origin[1])
    rings = trace(labels, seams, junctions=True)
    return simplify(rings, labels, seams, rule.tolerance, corners).moved(origin)


def numbered(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """0, 1, 2 ... for the chosen ones, -1 for the others."""
    return np.where(chosen, np.cumsum(chosen) - 1, -1)


def renamed(line: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
    """The new number of each component in a list, where `BAD` stays and what has none becomes `BAD`."""
    result = np.full_like(line, BAD)
    known = line >= 0
    new = number[line[known]]
    result[known] = np.where(new < 0, BAD, new)
    return result
