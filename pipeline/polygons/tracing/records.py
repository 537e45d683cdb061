"""Arrays that compiled kernels take and fill in, grouped in named tuples, which numba supports."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int32]
Sums = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Corners(NamedTuple):
    """Vertices of all outlines of a block, sorted by `(y, x)`, and the links between them."""

    xy: Numbers
    """`(n, 2)`: column and row."""
    following: Numbers
    """`(n,)`: the next vertex of the ring."""
    kind: Bytes
    """`(n,)`: sums of `ON_SEAM` and `LEFT_SIDE`."""
    touching: Numbers
    """`(k, 2)`: vertices of two equal pixels that meet in a corner and share no side with a third; both turn right."""


class VertexOwners(NamedTuple):
    """The vertices of a block, and the rings and components that they belong to."""

    corners: Corners
    """The vertices."""
    ring: Numbers
    """`(vertices,)`: the ring of each vertex; rings are numbered by their first vertex."""
    owner: Numbers
    """`(rings,)`: the component that each ring bounds, -1 for holes until `measure_runs` fills them in."""


class VertexRule(NamedTuple):
    """Which pixels are outlined, and where vertices are made in addition to corners."""

    with_none: bool
    """True to make components of the pixels of value 0, too."""
    junctions: bool
    """True to make a vertex also where two neighbours of a straight side meet."""
    seams: Sums
    """Rows or columns of the seams, see `Seams.positions`; along them every pixel corner is a vertex."""


class RowBuffers(NamedTuple):
    """Working memory for one row of a block."""

    codes: Bytes
    """`(2, width + 2)`: two rows of pixels, with the pixels to their left and right."""
    marks: Bytes
    """`(>= width + 1,)`: 1 at places where the pixels around change."""
    words: NDArray[np.uint64]
    """The same memory, eight marks at a time."""
    slots: Numbers
    """`(2, width + 1)`: the open sides in each column."""


class Totals(NamedTuple):
    """Statistics of the components of a block, filled in by `measure_runs`."""

    sums: Sums
    """`(3, components)`: pixels, sum of their levels, greatest level."""
    sides: tuple[Sums, Sums, Sums, Sums]
    """The component of each pixel along the top, right, bottom and left side of the block."""
    labels: Numbers
    """`(height, width)`: 1 + the component, 0 = none; empty when not painted."""


class RingArrays(NamedTuple):
    """Rings of vertices: ring `k` is `xy[start[k]:start[k + 1]]`, not closed."""

    xy: Numbers
    """`(vertices, 2)`: column and row of pixel corners."""
    joinable: Flags
    """`(vertices,)`: True where another piece of the component may be joined."""
    start: Sums
    """`(rings + 1,)` offsets into `xy`."""


class Arcs(NamedTuple):
    """Arcs of the borders of a block, which are simplified one by one."""

    spans: Sums
    """`(n, 3)`: ring, first vertex within the ring, number of vertices with both ends."""
    must_keep: Flags
    """`(n,)`: True for arcs that share both ends with another arc: as single chords they would coincide."""


class VertexMap(NamedTuple):
    """Map of the pixel corners of a block to the vertices of arcs."""

    arc: Numbers
    """`(height + 1, width + 1)`: the arc of the vertex at a corner, `FREE` = no vertex, `FIXED` = one that stays."""
    position: Numbers
    """The same shape: the position of the vertex within its arc."""


class ChordRule(NamedTuple):
    """Which chords may replace a part of an arc."""

    seams: Sums
    """Rows or columns of the seams, see `Seams.positions`; no chord may lie along one."""
    scale: NDArray[np.float64]
    """`(2,)`: 1 / tolerance along x and along y, per pixel."""


def allocate_row(width: int) -> RowBuffers:
    """Buffers for the rows of a block, with empty slots."""
    marks = np.zeros((width + 8) // 8 * 8, np.uint8)
    return RowBuffers(
        codes=np.empty((2, width + 2), np.uint8),
        marks=marks,
        words=marks.view(np.uint64),
        slots=np.full((2, width + 1), -1, np.int32),
    )
