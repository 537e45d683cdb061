"""Outlines of the components of a block, along pixel edges.

An outline is rings of integer vertices
`(x, y) = (col, row)` of pixel corners, walked with the component on the right-hand side (y grows
downwards), so a shell has positive and a hole negative shoelace area. Where a component touches
itself at a corner,

    X .        the ring turns left, around the empty pixel. Two empty pixels that meet in such a
    . X        corner are parted by the component, so they belong to different rings: no ring touches
               itself. Rings may touch each other in points, which is a valid polygon.

"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.mosaic import Classification
from pipeline.polygons.tracing.components import Components, compiled, unique_rows
from pipeline.polygons.tracing.corners import link_corners
from pipeline.polygons.tracing.records import Corners, RingArrays, VertexOwners
from pipeline.polygons.tracing.rings import RingIndex, close_rings, gather
from pipeline.polygons.tracing.statistics import measure_components


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
    joinable: NDArray[np.bool_]
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

    @property
    def arrays(self) -> RingArrays:
        """The vertices, as compiled kernels take them."""
        return RingArrays(self.xy, self.joinable, self.start)

    def shifted(self, by: int) -> Rings:
        """The same rings with `by` added to the numbers of their components."""
        return replace(self, owner=self.owner + by)

    def moved(self, origin: tuple[int, int]) -> Rings:
        """The same rings on the pixel plane of the scene, in which their block begins at `origin = (row, col)`."""
        return replace(self, xy=self.xy + np.array(origin[::-1], np.int32))

    def renumbered(self, new_owner: NDArray[np.int64]) -> Rings:
        """The rings whose component has a new number `new_owner[owner] >= 0`, with that number."""
        owner = new_owner[self.owner]
        return replace(self, owner=owner).keep(owner >= 0)

    def keep(self, kept: NDArray[np.bool_]) -> Rings:
        """The rings with `kept[k]`, in the same order."""
        return self if kept.all() else self._copied(np.flatnonzero(kept), self.start)

    @classmethod
    def concatenate(cls, parts: Sequence[Rings]) -> Rings:
        """The rings of all parts, one part after the other; at least one part."""
        parts = [part for part in parts if len(part)] or parts[:1]
        if len(parts) == 1:
            return parts[0]
        sizes = np.concatenate([part.sizes for part in parts])
        return cls(
            xy=np.concatenate([part.xy for part in parts]),
            joinable=np.concatenate([part.joinable for part in parts]),
            start=np.concatenate(([0], np.cumsum(sizes))),
            owner=np.concatenate([part.owner for part in parts]),
        )

    def arranged(self) -> Rings:
        """In canonical form, which depends on the shapes alone.

        Each ring starts at its least vertex by `(y, x)`; rings are sorted by component, the shell
        before the holes, and holes by their first vertex.
        """
        area, first = np.zeros(len(self), np.int64), np.empty(len(self), np.int64)
        _areas_and_first_vertices(self.xy, self.start, area, first)
        head = self.xy[first]
        return self._copied(np.lexsort((head[:, 0], head[:, 1], area < 0, self.owner)), first)

    def _copied(self, order: NDArray[np.intp], first: NDArray[np.int64]) -> Rings:
        """The rings `order`; ring `k` begins with the vertex `first[k]`."""
        start = np.concatenate(([0], np.cumsum(self.sizes[order])))
        xy, joinable = np.empty((int(start[-1]), 2), np.int32), np.empty(int(start[-1]), np.bool_)
        _copy(self.arrays, order, first, RingArrays(xy, joinable, start))
        return Rings(xy=xy, joinable=joinable, start=start, owner=self.owner[order])


@dataclass(frozen=True, kw_only=True)
class BlockOutlines:
    """The components of a block and their outlines."""

    table: Components
    """The components, in the order of their first pixel."""
    lines: dict[str, NDArray[np.int64]]
    """`top`, `right`, `bottom`, `left` -> the row of `table` of each pixel along that side; `NO_COMPONENT` = none."""
    contacts: NDArray[np.int64]
    """`(k, 2)` rows of `table` of equal value, not 0, that meet in a corner; without repetition."""
    labels: NDArray[np.int32]
    """`(height, width)`: 1 + the row of `table`, 0 = none; empty unless asked for."""
    corners: Corners
    """All vertices, on the block's pixel plane."""
    index: RingIndex
    """How they make rings."""
    owner: NDArray[np.int32]
    """`(rings,)`: the row of `table` that each ring bounds."""
    seams: Seams
    """The borders of the block that are seams."""
    origin: tuple[int, int]
    """`(row, col)` of the block in the scene."""

    def rings(self, number: NDArray[np.int64], origin: tuple[int, int] = (0, 0)) -> Rings:
        """The rings of the components with `number[row] >= 0`, with those numbers, arranged if those ascend.

        Args:
            number: `(n,)`: a new number for each row of `table`.
            origin: `(row, col)` that the block's first pixel has in the result.
        """
        owner = number[self.owner]
        order = np.argsort(owner, kind="stable")
        return self._gather_rings(order[np.searchsorted(owner[order], 0) :], number, origin)

    def rings_in_scan_order(self, number: NDArray[np.int64]) -> Rings:
        """The same, on the block's pixel plane, in the order of the first pixel whose top lies on each."""
        vertex = np.arange(len(self.corners.xy), dtype=np.int32)
        step = self.corners.xy[self.corners.following] - self.corners.xy
        # In reverse, so that the first vertex of each ring is assigned last and stays.
        eastwards = vertex[step[:, 0] > 0][::-1]
        met = np.empty(len(self.owner), np.int32)
        met[self.index.ring[eastwards]] = eastwards
        order = np.argsort(met)
        return self._gather_rings(order[number[self.owner[order]] >= 0], number, (0, 0))

    def _gather_rings(self, order: NDArray[np.intp], number: NDArray[np.int64], origin: tuple[int, int]) -> Rings:
        xy, joinable = gather(self.corners, self.index, order, origin)
        start = np.concatenate(([0], np.cumsum(self.index.size[order], dtype=np.int64)))
        return Rings(xy=xy, joinable=joinable, start=start, owner=number[self.owner[order]])


def trace_outlines(
    block: Classification,
    seams: Seams,
    *,
    origin: tuple[int, int] = (0, 0),
    with_none: bool = False,
    junctions: bool = False,
) -> BlockOutlines:
    """The 4-connected components of equal value of a block, measured and outlined.

    Only corners become vertices, except on seams, where every pixel corner does, so that pieces on both
    sides have the same edges there.

    Args:
        block: its classes, and the levels that are summed per component.
        seams: the borders that are seams.
        origin: `(row, col)` of the block in the scene, added to the first pixels.
        with_none: True to make components of the pixels of value 0, too, and to number all pixels.
        junctions: True to make a vertex also where two neighbours of a straight side meet.
    """
    mask, level = np.ascontiguousarray(block.mask), np.ascontiguousarray(block.level)

    corners = link_corners(mask, seams.positions(*mask.shape), with_none=with_none, junctions=junctions)
    index = close_rings(corners)
    owner = np.where(index.is_shell, np.cumsum(index.is_shell, dtype=np.int32) - 1, -1)
    runs = measure_components(mask, level, VertexOwners(corners, index.ring, owner), with_none=with_none)

    # A shell's first vertex is the upper left corner of its component's first pixel.
    col, row = corners.xy[index.first[index.is_shell]].astype(np.int64).T
    table = Components(
        value=mask[row, col],
        count=runs.count,
        total=runs.total,
        peak=runs.peak,
        first=((row + origin[0]) << 32) + col + origin[1],
    )
    pairs = np.sort(owner[index.ring[corners.touching]].astype(np.int64), axis=1)
    return BlockOutlines(
        table=table,
        lines=dict(zip(("top", "right", "bottom", "left"), runs.lines, strict=True)),
        contacts=unique_rows(pairs[(pairs[:, 0] != pairs[:, 1]) & (table.value[pairs[:, 0]] != 0)]),
        labels=runs.labels,
        corners=corners,
        index=index,
        owner=owner,
        seams=seams,
        origin=origin,
    )


def closed_rings(rings: Rings, chosen: NDArray[np.intp], start: NDArray[np.intp]) -> NDArray[np.float64]:
    """`(vertices, 2)`: the coordinates of some rings; ring `chosen[k]`, closed, begins at `start[k]`."""
    xy = np.empty((int(start[-1]), 2), np.float64)
    _close(rings.xy, rings.start, chosen, xy)
    return xy


@compiled
def _close(xy: NDArray[np.int32], start: NDArray[np.int64], chosen: NDArray[np.intp], out: NDArray[np.float64]) -> None:
    """Copy rings, each with its first vertex once more at its end."""
    at = 0
    for k in chosen:
        for i in range(start[k], start[k + 1]):
            out[at, 0], out[at, 1] = xy[i, 0], xy[i, 1]
            at += 1
        out[at, 0], out[at, 1] = xy[start[k], 0], xy[start[k], 1]
        at += 1


@compiled
def _areas_and_first_vertices(
    xy: NDArray[np.int32], start: NDArray[np.int64], area: NDArray[np.int64], first: NDArray[np.int64]
) -> None:
    """Fill in twice the signed area of each ring, and the index of its least vertex by `(y, x)`."""
    for k in range(len(first)):
        first[k] = start[k]
        before = start[k + 1] - 1
        for i in range(start[k], start[k + 1]):
            x, y = np.int64(xy[i, 0]), np.int64(xy[i, 1])
            # Shoelace formula; with y downwards, shells are positive.
            area[k] += np.int64(xy[before, 0]) * y - x * np.int64(xy[before, 1])
            best = first[k]
            if y < xy[best, 1] or (y == xy[best, 1] and x < xy[best, 0]):
                first[k] = i
            before = i


@compiled
def _copy(rings: RingArrays, order: NDArray[np.intp], first: NDArray[np.int64], out: RingArrays) -> None:
    """Write the rings `order` one after the other, each from its vertex `first` on."""
    xy, joinable, start, new_xy, new_joinable = rings.xy, rings.joinable, rings.start, out.xy, out.joinable
    at = 0
    for k in order:
        for begin, end in ((first[k], start[k + 1]), (start[k], first[k])):
            for i in range(begin, end):
                new_xy[at, 0], new_xy[at, 1], new_joinable[at] = xy[i, 0], xy[i, 1], joinable[i]
                at += 1
