"""Outlines of the components of a block, along pixel edges.

An outline is rings of integer vertices
`(x, y) = (col, row)` of pixel corners, walked with the component on the right-hand side (y grows
downwards), so a shell has positive and a hole negative shoelace area. Where a component touches
itself at a corner,

    X .        the ring turns left, around the empty pixel. Two empty pixels that meet in such a
    . X        corner are parted by the component, so they belong to different rings: no ring touches
               itself. Rings may touch each other in points, which is a valid polygon.

All loops over pixels are compiled by numba and run without the GIL.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.labelling import Labels, compiled


@dataclass(frozen=True, kw_only=True)
class Seams:
    """Which borders of a block are seams with a neighbouring block, and not the border of the scene."""

    top: bool = False
    """True when a block lies above."""
    bottom: bool = False
    """True when a block lies below."""
    left: bool = False
    """True when a block lies to the left."""
    right: bool = False
    """True when a block lies to the right."""

    def positions(self, height: int, width: int) -> NDArray[np.int64]:
        """Rows or columns of the seams in a block, -1 = no seam: top, right, bottom, left, as a pixel is walked."""
        here = (self.top, self.right, self.bottom, self.left)
        return np.where(here, (0, width, height, 0), -1).astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class Rings:
    """Rings of many components: ring `k` is `xy[start[k]:start[k + 1]]`, not closed."""

    xy: NDArray[np.int32]
    """`(vertices, 2)`: column and row of pixel corners."""
    loose: NDArray[np.bool_]
    """`(vertices,)`: True where another piece of the component may touch: on seams, and at a corner of its value."""
    start: NDArray[np.int64]
    """`(rings + 1,)` offsets into `xy`."""
    owner: NDArray[np.int64]
    """`(rings,)`: the component that a ring bounds."""

    def __len__(self) -> int:
        return len(self.owner)

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Vertices of each ring."""
        sizes: NDArray[np.int64] = np.diff(self.start)
        return sizes

    def shifted(self, by: int) -> Rings:
        """The same rings with `by` added to the numbers of their components."""
        return replace(self, owner=self.owner + by)

    def moved(self, origin: tuple[int, int]) -> Rings:
        """The same rings on the pixel plane of the scene, in which their block begins at `origin = (row, col)`."""
        return replace(self, xy=self.xy + np.array(origin[::-1], np.int32))

    def select(self, new_owner: NDArray[np.int64]) -> Rings:
        """The rings whose component has a new number `new_owner[owner] >= 0`, with that number."""
        owner = new_owner[self.owner]
        return replace(self, owner=owner).keep(owner >= 0)

    def keep(self, kept: NDArray[np.bool_]) -> Rings:
        """The rings with `kept[k]`, in the same order."""
        start = np.concatenate(([0], np.cumsum(self.sizes[kept])))
        vertices = np.repeat(kept, self.sizes)
        return Rings(xy=self.xy[vertices], loose=self.loose[vertices], start=start, owner=self.owner[kept])

    @classmethod
    def stack(cls, parts: Sequence[Rings]) -> Rings:
        """The rings of all parts, one part after the other; at least one part."""
        sizes = np.concatenate([part.sizes for part in parts])
        return cls(
            xy=np.concatenate([part.xy for part in parts]),
            loose=np.concatenate([part.loose for part in parts]),
            start=np.concatenate(([0], np.cumsum(sizes))),
            owner=np.concatenate([part.owner for part in parts]),
        )

    def arranged(self) -> Rings:
        """In canonical form, which depends on the shapes alone.

        Each ring starts at its least vertex by `(y, x)`; rings are sorted by component, the shell
        before the holes, and holes by their first vertex.
        """
        area, first = _survey(self.xy, self.start)
        head = self.xy[first]
        order = np.lexsort((head[:, 0], head[:, 1], area < 0, self.owner))
        start = np.concatenate(([0], np.cumsum(self.sizes[order])))
        vertex = _rotated(self.start, first, order)
        return Rings(xy=self.xy[vertex], loose=self.loose[vertex], start=start, owner=self.owner[order])


def trace(labels: Labels, seams: Seams, *, junctions: bool = False) -> Rings:
    """The outlines of all components of value 1..254, on the block's pixel plane, in order of discovery.

    Only corners become vertices, except on seams, where every pixel corner does, so that pieces on both
    sides have the same edges there. The shell of a component comes before its holes.

    Args:
        labels: of the block.
        seams: the borders that are seams.
        junctions: True to make a vertex also where two neighbours of a straight edge meet.
    """
    value = np.concatenate((np.zeros(1, np.uint8), labels.table.value))
    positions = seams.positions(*labels.inside.shape)
    xy, loose, start, owner = _trace_pass(labels.padded, value, positions, junctions)
    return Rings(xy=xy, loose=loose, start=start, owner=owner)


@compiled
def _trace_pass(
    labels: NDArray[np.int32], value: NDArray[np.uint8], seams: NDArray[np.int64], junctions: bool
) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """Walk every ring once, starting at the first unvisited top side of a pixel, row by row."""
    width = labels.shape[1]
    flat = labels.ravel()
    visited = np.zeros(len(flat), np.bool_)
    xy, loose = np.empty((1024, 2), np.int32), np.empty(1024, np.bool_)
    start = np.zeros(256, np.int64)
    owner = np.empty(255, np.int64)
    used = rings = 0
    pixel = _next_top(flat, width, value, visited, width)
    while pixel >= 0:
        xy, loose, used = _walk(flat, width, value, seams, junctions, visited, pixel, xy, loose, used)
        if rings == len(owner):
            owner = np.concatenate((owner, np.empty_like(owner)))
            start = np.concatenate((start, np.empty_like(start)))
        owner[rings] = flat[pixel] - 1
        rings += 1
        start[rings] = used
        pixel = _next_top(flat, width, value, visited, pixel + 1)
    return xy[:used].copy(), loose[:used].copy(), start[: rings + 1].copy(), owner[:rings].copy()


@compiled
def _next_top(
    labels: NDArray[np.int32], width: int, value: NDArray[np.uint8], visited: NDArray[np.bool_], begin: int
) -> int:
    """The first pixel from `begin` on with a top side that no ring has visited; -1 = none."""
    for pixel in range(begin, len(labels) - width):
        k = labels[pixel]
        if k != 0 and labels[pixel - width] != k and not visited[pixel] and value[k] != 0:
            return pixel
    return -1


@compiled
def _walk(
    labels: NDArray[np.int32],
    width: int,
    value: NDArray[np.uint8],
    seams: NDArray[np.int64],
    junctions: bool,
    visited: NDArray[np.bool_],
    pixel: int,
    xy: NDArray[np.int32],
    loose: NDArray[np.bool_],
    used: int,
) -> tuple[NDArray[np.int32], NDArray[np.bool_], int]:
    """Append one ring, from the top-left corner of a pixel eastwards; returns the grown arrays.

    Sides are numbered as they are walked: 0 top (east), 1 right (south), 2 bottom (west), 3 left (north);
    `(x, y)` is the corner where the side ends.
    """
    step = np.array([1, width, -1, -width])
    k = labels[pixel]
    p, side = pixel, 0
    x, y = pixel % width, pixel // width - 1
    while True:
        if side == 0:
            visited[p] = True
        left = step[(side + 3) & 3]
        ahead, beside = p + step[side], p + step[side] + left
        on_seam = y == seams[0] or x == seams[1] or y == seams[2] or x == seams[3]
        keep, meets = True, False
        if labels[beside] == k:
            p, side = beside, (side + 3) & 3
        elif labels[ahead] == k:
            keep = (y if side & 1 == 0 else x) == seams[side]
            if junctions and labels[p + left] != labels[beside]:
                keep |= value[labels[p + left]] != 0 or value[labels[beside]] != 0
            p = ahead
        else:
            meets = value[labels[beside]] == value[k]
            side = (side + 1) & 3
        if keep:
            if used == len(xy):
                xy = np.concatenate((xy, np.empty_like(xy)))
                loose = np.concatenate((loose, np.empty_like(loose)))
            xy[used, 0], xy[used, 1], loose[used] = x, y, on_seam or meets
            used += 1
        if p == pixel and side == 0:
            return xy, loose, used
        x += (side == 0) - (side == 2)
        y += (side == 1) - (side == 3)


@compiled
def _survey(xy: NDArray[np.int32], start: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Twice the signed area of each ring, and the index of its least vertex by `(y, x)`."""
    n = len(start) - 1
    area, first = np.zeros(n, np.int64), start[:-1].copy()
    for k in range(n):
        before = start[k + 1] - 1
        for i in range(start[k], start[k + 1]):
            x, y = np.int64(xy[i, 0]), np.int64(xy[i, 1])
            area[k] += np.int64(xy[before, 0]) * y - x * np.int64(xy[before, 1])
            best = first[k]
            if y < xy[best, 1] or (y == xy[best, 1] and x < xy[best, 0]):
                first[k] = i
            before = i
    return area, first


@compiled
def _rotated(start: NDArray[np.int64], first: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The vertices of the rings in a new order, each ring begun at its vertex `first`."""
    vertex = np.empty(start[-1], np.int64)
    at = 0
    for k in order:
        for i in range(first[k], start[k + 1]):
            vertex[at] = i
            at += 1
        for i in range(start[k], first[k]):
            vertex[at] = i
            at += 1
    return vertex
