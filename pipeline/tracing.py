"""Components of a block of class values, and their outlines along pixel edges.

A component is a set of 4-connected pixels of one value. Its outline is rings of integer vertices
`(x, y) = (col, row)` of pixel corners, walked with the component on the right-hand side (y grows
downwards), so a shell has positive and a hole negative shoelace area. Where a component touches
itself at a corner,

    X .        the ring turns left, around the empty pixel. Two empty pixels that meet in such a
    . X        corner are parted by the component, so they belong to different rings: no ring touches
               itself. Rings may touch each other in points, which is a valid polygon.

All loops over pixels are compiled by numba and run without the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., object])

BAD = -2
"""In a border line: a pixel that belongs to no component."""


def compiled(function: Function) -> Function:
    """Compile with numba, without the GIL; keep the machine code where a cache can be written."""
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # numba found no writable place, e.g. a read-only installation without a home
        return cast(Function, numba.njit(nogil=True)(function))


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
class Components:
    """A table of components, one row each."""

    value: NDArray[np.uint8]
    """Class value."""
    count: NDArray[np.int64]
    """Pixels."""
    total: NDArray[np.int64]
    """Sum of the pixels' levels."""
    peak: NDArray[np.int64]
    """Greatest level of a pixel."""
    first: NDArray[np.int64]
    """The first pixel, row by row, as one number: `(row << 32) + col`."""

    def __len__(self) -> int:
        return len(self.value)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Components:
        """The rows of an index or a selection."""
        return Components(
            value=self.value[rows],
            count=self.count[rows],
            total=self.total[rows],
            peak=self.peak[rows],
            first=self.first[rows],
        )

    def merged(self, number: NDArray[np.int64], n: int) -> Components:
        """A table of `n` rows: row `k` sums up the rows `i` with `number[i] == k`, at least one."""
        value = np.zeros(n, np.uint8)
        count, total, peak = (np.zeros(n, np.int64) for _ in range(3))
        first = np.full(n, np.iinfo(np.int64).max)
        value[number] = self.value
        np.add.at(count, number, self.count)
        np.add.at(total, number, self.total)
        np.maximum.at(peak, number, self.peak)
        np.minimum.at(first, number, self.first)
        return Components(value=value, count=count, total=total, peak=peak, first=first)

    @classmethod
    def stack(cls, tables: Sequence[Components]) -> Components:
        """The rows of all tables, one table after the other; at least one table."""
        return cls(
            value=np.concatenate([t.value for t in tables]),
            count=np.concatenate([t.count for t in tables]),
            total=np.concatenate([t.total for t in tables]),
            peak=np.concatenate([t.peak for t in tables]),
            first=np.concatenate([t.first for t in tables]),
        )


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


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A block's pixels with the number of their component."""

    padded: NDArray[np.int32]
    """`(height + 2, width + 2)`: 1 + the component's row in `table`, 0 = no component; a border of zeros."""
    table: Components
    """The components, in the order of their first pixel."""

    @property
    def inside(self) -> NDArray[np.int32]:
        """`(height, width)`: the block without the border of zeros."""
        return self.padded[1:-1, 1:-1]

    def line(self, side: str) -> NDArray[np.int64]:
        """Rows of `table` along one side of the block (`top`, `bottom`, `left`, `right`); `BAD` = none."""
        inside = self.inside
        ends = {"top": inside[0], "bottom": inside[-1], "left": inside[:, 0], "right": inside[:, -1]}
        line = ends[side].astype(np.int64) - 1
        return np.where(line < 0, BAD, line)


def label(
    mask: NDArray[np.uint8], level: NDArray[np.uint16], *, origin: tuple[int, int] = (0, 0), with_none: bool = False
) -> Labels:
    """Number the 4-connected components of equal value, and measure them.

    Args:
        mask: `(height, width)` class values; 0 = none, 255 = nodata.
        level: `(height, width)` levels that are summed per component.
        origin: `(row, col)` of the block in the scene, added to the first pixels.
        with_none: True to make components of the pixels of value 0, too.
    """
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), np.int32)
    parent = np.empty(height * width + 1, np.int32)
    used = _label_pass(np.ascontiguousarray(mask), with_none, padded, parent)
    n = _renumber(parent, used)
    count, total, peak = (np.zeros(n, np.int64) for _ in range(3))
    first = np.empty(n, np.int64)
    _measure_pass(padded, parent, np.ascontiguousarray(level), count, total, peak, first)
    value = mask[first >> 32, first & 0xFFFFFFFF]
    first += (origin[0] << 32) + origin[1]
    table = Components(value=value, count=count, total=total, peak=peak, first=first)
    return Labels(padded=padded, table=table)


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


def corner_pairs(labels: Labels) -> NDArray[np.int64]:
    """`(pairs, 2)` components of equal value, not 0, that meet in a corner; without repetition."""
    inside, value = labels.inside, np.concatenate((np.zeros(1, np.uint8), labels.table.value))
    pairs = [np.empty((0, 2), np.int64)]
    for a, b in ((inside[:-1, :-1], inside[1:, 1:]), (inside[:-1, 1:], inside[1:, :-1])):
        meet = (a != b) & (a > 0) & (b > 0)
        found = np.stack([a[meet], b[meet]], axis=1).astype(np.int64)
        found = found[(value[found[:, 0]] == value[found[:, 1]]) & (value[found[:, 0]] != 0)]
        pairs.append(found - 1)
    return unique_rows(np.concatenate(pairs))


def unite(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Union-find: the least member of each one's set, when the members of each pair are in one set.

    >>> unite(5, np.array([[1, 3], [3, 4]])).tolist()
    [0, 1, 2, 1, 1]
    """
    parent = np.arange(n, dtype=np.int64)
    _unite_pairs(parent, np.ascontiguousarray(pairs, dtype=np.int64))
    return parent


def unique_rows(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """`(n, 2)` pairs of numbers from -2 to 2^31, sorted, each once."""
    keys = np.unique(((pairs[:, 0] + 2) << 32) | (pairs[:, 1] + 2))
    return np.stack([(keys >> 32) - 2, (keys & 0xFFFFFFFF) - 2], axis=1)


@compiled
def _root(parent: NDArray[np.signedinteger], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@compiled
def _merge(parent: NDArray[np.signedinteger], i: int, j: int) -> int:
    i, j = _root(parent, i), _root(parent, j)
    if i > j:
        i, j = j, i
    parent[j] = i
    return i


@compiled
def _unite_pairs(parent: NDArray[np.int64], pairs: NDArray[np.int64]) -> None:
    for k in range(len(pairs)):
        _merge(parent, pairs[k, 0], pairs[k, 1])
    for i in range(len(parent)):
        parent[i] = parent[parent[i]]


@compiled
def _label_pass(mask: NDArray[np.uint8], with_none: bool, labels: NDArray[np.int32], parent: NDArray[np.int32]) -> int:
    """Provisional labels from the pixels above and to the left; returns how many were used."""
    used = 0
    for r in range(mask.shape[0]):
        for c in range(mask.shape[1]):
            v = mask[r, c]
            if v == 255 or (v == 0 and not with_none):
                continue
            up = labels[r, c + 1] if r > 0 and mask[r - 1, c] == v else 0
            left = labels[r + 1, c] if c > 0 and mask[r, c - 1] == v else 0
            if up == 0 and left == 0:
                used += 1
                parent[used] = used
                labels[r + 1, c + 1] = used
            elif up == 0:
                labels[r + 1, c + 1] = left
            else:
                if left != 0 and left != up:
                    _merge(parent, up, left)
                labels[r + 1, c + 1] = up
    return used


@compiled
def _renumber(parent: NDArray[np.int32], used: int) -> int:
    """Replace the union-find forest by final labels 1..n; a parent is never above its child."""
    parent[0] = 0
    n = 0
    for i in range(1, used + 1):
        if parent[i] == i:
            n += 1
            parent[i] = -n
        else:
            parent[i] = parent[parent[i]]
    for i in range(1, used + 1):
        parent[i] = -parent[i]
    return n


@compiled
def _measure_pass(
    labels: NDArray[np.int32],
    final: NDArray[np.int32],
    level: NDArray[np.uint16],
    count: NDArray[np.int64],
    total: NDArray[np.int64],
    peak: NDArray[np.int64],
    first: NDArray[np.int64],
) -> None:
    """Write final labels and fill the table's columns."""
    for r in range(level.shape[0]):
        for c in range(level.shape[1]):
            k = final[labels[r + 1, c + 1]]
            labels[r + 1, c + 1] = k
            if k == 0:
                continue
            p = np.int64(level[r, c])
            if count[k - 1] == 0:
                first[k - 1] = (r << 32) + c
            count[k - 1] += 1
            total[k - 1] += p
            peak[k - 1] = max(peak[k - 1], p)


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
