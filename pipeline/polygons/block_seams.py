"""Seam joining: pieces of components are united across blocks, one block row after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pipeline.polygons.blocks import BlockPieces, FinishedComponents, TracingRule, consecutive_numbers, renumber
from pipeline.polygons.holes import fillable_holes
from pipeline.polygons.tracing.components import NO_COMPONENT, Components, union_find, unique_rows
from pipeline.polygons.tracing.join import join_rings, remove_seam_edges
from pipeline.polygons.tracing.outlines import Rings

NO_PAIRS = np.empty((0, 2), np.int64)
NO_COMPONENTS = Components(
    value=np.empty(0, np.uint8),
    count=np.empty(0, np.int64),
    total=np.empty(0, np.int64),
    peak=np.empty(0, np.int64),
    first=np.empty(0, np.int64),
)
NO_RINGS = Rings(
    xy=np.empty((0, 2), np.int32),
    joinable=np.empty(0, np.bool_),
    start=np.zeros(1, np.int64),
    owner=np.empty(0, np.int64),
)


Line = NDArray[np.int64]


@dataclass
class SeamJoiner:
    """Joins the pieces of one classification; holds the open components, to which the next block row may add."""

    block_size: int
    """Side of a block, px."""
    rule: TracingRule
    """How components become features and which holes are filled."""
    table: Components = NO_COMPONENTS
    """The open components, and the possible holes that are undecided (value 0)."""
    rings: Rings = NO_RINGS
    """Outlines of the pieces of the open components."""
    links: NDArray[np.int64] = field(default_factory=lambda: NO_PAIRS)
    """`(k, 2)` open components that are one feature."""
    boundaries: NDArray[np.int64] = field(default_factory=lambda: NO_PAIRS)
    """`(k, 2)`: a possible hole and an open component next to it."""
    filled: NDArray[np.int64] = field(default_factory=lambda: NO_PAIRS)
    """`(k, 2)`: an open component, and `Components.first` of the component in a hole of it that is filled."""
    bottom: int = 0
    """The row of pixels where the next block row begins."""
    line: Line | None = None
    """The open component of each pixel along the seam below, `NO_COMPONENT` = none; None above the first row."""

    def add_row(self, blocks: Sequence[BlockPieces], *, is_last: bool) -> FinishedComponents:
        """Add the blocks of the next row, left to right; returns the components that this closes.

        Args:
            blocks: of the row, for one classification.
            is_last: True for the last row, which closes everything.
        """
        # Number the open components first, then the pieces of each block from `begin` on.
        begin = np.cumsum([len(self.table), *(len(block.table) for block in blocks)])[:-1]
        placed = list(zip(blocks, begin, strict=True))
        lines = [
            {s: np.where(line < 0, NO_COMPONENT, line + at) for s, line in block.lines.items()} for block, at in placed
        ]

        # Lines of pixels that face each other across a seam: inside the row, and with the row above.
        facing = [(a["right"], b["left"]) for a, b in pairwise(lines)]
        if self.line is not None:
            facing.append((self.line, np.concatenate([line["top"] for line in lines])))

        # Open components and new pieces in one numbering.
        table = Components.concatenate([self.table, *(block.table for block in blocks)])
        rings = Rings.concatenate([self.rings, *(block.rings.shifted(at) for block, at in placed)])
        links = [self.links, *(block.links + at for block, at in placed)]
        boundaries = [self.boundaries, *(block.boundaries + at for block, at in placed)]
        filled = np.concatenate([self.filled, *(block.filled + np.array([at, 0]) for block, at in placed)])

        # Unite the pieces that share an edge across a seam; `number` is the new row of each.
        _, number = np.unique(union_find(len(table), _contacts(facing, table.value)), return_inverse=True)
        if self.rule.connectivity == 8:
            links.append(_corner_contacts(facing, table.value))
        if self.rule.holes is not None:
            boundaries.append(_boundaries(facing, table.value))

        # Renumber everything that refers to pieces.
        self.table = table.merged(number, int(number.max(initial=-1)) + 1)
        self.bottom += self.block_size
        self.rings = remove_seam_edges(replace(rings, owner=number[rings.owner]), self.block_size, self.bottom)
        self.links = number[np.concatenate(links)]
        self.boundaries = unique_rows(renumber(np.concatenate(boundaries), number))
        self.filled = np.stack([number[filled[:, 0]], filled[:, 1]], axis=1)
        self.line = renumber(np.concatenate([line["bottom"] for line in lines]), number)
        return self._close(is_last)

    def _close(self, is_last: bool) -> FinishedComponents:
        """Remove and return the components whose feature does not touch the seam below."""
        n = len(self.table)
        # A component is open while any component of its feature may go on below.
        on_seam = np.zeros(n, np.bool_)
        if self.line is not None and not is_last:
            on_seam[self.line[self.line >= 0]] = True
        feature = union_find(n, self.links)
        is_class = self.table.value != 0
        is_open = is_class & np.isin(feature, feature[on_seam])
        is_done = is_class & ~is_open
        # Undecided holes are kept with the open components, and are never finished themselves.
        is_open |= self._fill_holes(on_seam, is_open)
        in_open = is_open[self.filled[:, 0]]
        finished = FinishedComponents(
            table=self.table.select(is_done),
            rings=join_rings(self.rings.renumbered(consecutive_numbers(is_done)), self.block_size).arranged(),
            feature=feature[is_done],
            filled=self.filled[~in_open, 1],
        )

        # Keep the open rows alone, in a new numbering.
        opened = consecutive_numbers(is_open)
        self.table, self.rings = self.table.select(is_open), self.rings.renumbered(opened)
        self.links = opened[self.links[is_open[self.links[:, 0]]]]
        self.boundaries = opened[self.boundaries[is_open[self.boundaries[:, 0]]]]
        self.filled = np.stack([opened[self.filled[in_open, 0]], self.filled[in_open, 1]], axis=1)
        self.line = renumber(self.line, opened) if self.line is not None else None
        return finished

    def _fill_holes(self, on_seam: NDArray[np.bool_], is_open: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Record the holes that are filled; returns the possible ones that stay undecided."""
        rule = self.rule.holes
        if rule is None:
            return np.zeros(len(self.table), np.bool_)
        is_followed = (self.table.value == 0) & (self.table.count <= rule.max_pixels)
        holes, undecided = fillable_holes(self.boundaries, is_followed, on_seam, is_open)
        holes = holes[rule.fits(self.table.select(holes[:, 0]))]
        found = np.stack([holes[:, 1], self.table.first[holes[:, 0]]], axis=1)
        self.filled = np.concatenate([self.filled, found])
        return undecided


def _contacts(facing: Sequence[tuple[Line, Line]], value: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pieces of equal value that share an edge across a seam; `facing` are the pixels on its two sides."""
    return _equal_pairs([np.stack(lines, axis=1) for lines in facing], value)


def _corner_contacts(facing: Sequence[tuple[Line, Line]], value: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pieces of equal value, not 0, that share a corner across a seam."""
    steps = [((slice(1, None), slice(None, -1))), ((slice(None, -1), slice(1, None)))]
    pairs = _equal_pairs([np.stack([a[i], b[j]], axis=1) for a, b in facing for i, j in steps], value)
    return np.compress(value[pairs[:, 0]] != 0, pairs, axis=0)


def _boundaries(facing: Sequence[tuple[Line, Line]], value: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pieces of value 0 and their neighbours across a seam: a piece of a class, or `NO_COMPONENT`."""
    found = [NO_PAIRS]
    for lines in facing:
        for a, b in (lines, lines[::-1]):
            pairs = np.stack([a, b], axis=1)[a >= 0]
            pairs = pairs[value[pairs[:, 0]] == 0]
            is_class = pairs[:, 1] < 0
            is_class[~is_class] = value[pairs[~is_class, 1]] != 0
            found.append(pairs[is_class])
    return np.concatenate(found)


def _equal_pairs(pairs: Sequence[NDArray[np.int64]], value: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The pairs of two pieces of equal value, each once."""
    both = np.concatenate([NO_PAIRS, *pairs])
    both = unique_rows(both[(both[:, 0] >= 0) & (both[:, 1] >= 0)])
    return np.compress(value[both[:, 0]] == value[both[:, 1]], both, axis=0)
