"""Outline joining: pieces of a component, traced block by block, become its whole outline.

On both sides of a seam, pieces have the same edges of one pixel, walked in opposite directions. Where
both sides are the same component the two edges cancel:

    ring of the left piece  ↓ | ↑  ring of the right piece        both vanish

and the remaining open ends are linked where they meet. Coordinates are integers, so nothing
is snapped and the result does not depend on how the component was cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.polygons.tracing.components import compiled
from pipeline.polygons.tracing.outlines import Rings
from pipeline.polygons.tracing.records import RingArrays


@dataclass(frozen=True, kw_only=True)
class JoinableVertices:
    """The joinable vertices of rings; joining reads no others."""

    vertex: NDArray[np.int64]
    """`(n,)` indices of vertices; the edge that leaves a vertex has its index."""
    before: NDArray[np.int64]
    """`(n,)`: the vertex before each in its ring, so the edge that arrives."""
    after: NDArray[np.int64]
    """`(n,)`: the vertex after each in its ring."""
    ring: NDArray[np.int64]
    """`(n,)`: the ring of each."""
    owner: NDArray[np.int64]
    """`(n,)`: the component of each."""

    @classmethod
    def of(cls, rings: Rings) -> JoinableVertices:
        """The joinable vertices, in order."""
        vertex = np.flatnonzero(rings.joinable)
        ring = np.searchsorted(rings.start, vertex, side="right") - 1
        begin, end = rings.start[ring], rings.start[ring + 1]
        return cls(
            vertex=vertex,
            before=np.where(vertex == begin, end, vertex) - 1,
            after=np.where(vertex + 1 == end, begin, vertex + 1),
            ring=ring,
            owner=rings.owner[ring],
        )


def remove_seam_edges(rings: Rings, block_size: int, open_row: int) -> Rings:
    """The rings without the edges along seams that cancel, so that open components stay small.

    Args:
        rings: of pieces, as for `join_rings`.
        block_size: of the blocks.
        open_row: the seam below, not joined yet; vertices along it stay.
    """
    ends = JoinableVertices.of(rings)
    joining = np.zeros(len(rings), np.bool_)
    joining[ends.ring[_cancelled(rings, ends, block_size)]] = True
    if not joining.any():
        return rings
    return Rings.concatenate([rings.keep(~joining), join_rings(rings.keep(joining), block_size, open_row)])


def join_rings(rings: Rings, block_size: int, open_row: int = -1) -> Rings:
    """The whole rings of components from the rings of their pieces, in no particular order.

    Vertices in the middle of straight edges along an axis are dropped.

    Args:
        rings: of all pieces, with vertices at every pixel corner on seams; `owner` is the component.
        block_size: seams are the lines where `x` or `y` is a multiple of this.
        open_row: vertices with this `y` are kept, straight or not.
    """
    ends = JoinableVertices.of(rings)
    following = _following(rings.start)
    done = np.zeros(len(rings.xy), np.bool_)
    cancelled = _cancelled(rings, ends, block_size)
    done[ends.vertex[cancelled]] = True
    _link_ends(rings, ends, cancelled, done, following)
    n = len(rings.xy) - int(cancelled.sum())
    xy, joinable = np.empty((n, 2), np.int32), np.empty(n, np.bool_)
    start, first = np.empty(n // 3 + 2, np.int64), np.empty(n // 3 + 2, np.int64)
    found = _collect(rings.arrays, following, done, open_row, RingArrays(xy, joinable, start), first)
    owner = rings.owner[np.searchsorted(rings.start, first[:found], side="right") - 1]
    used = int(start[found])
    return Rings(xy=xy[:used], joinable=joinable[:used], start=start[: found + 1], owner=owner)


def _following(start: NDArray[np.int64]) -> NDArray[np.int32]:
    """The next vertex of each vertex in its own ring."""
    following = np.arange(1, start[-1] + 1, dtype=np.int32)
    following[start[1:] - 1] = start[:-1]
    return following


def _cancelled(rings: Rings, ends: JoinableVertices, block_size: int) -> NDArray[np.bool_]:
    """`(joinable vertices,)`: True where an edge along a seam leaves that has a twin in the same component."""
    xy = rings.xy[ends.vertex]
    step = rings.xy[ends.after] - xy
    along = ((step == 0) & (xy % np.int32(block_size) == 0)).any(axis=1) & rings.joinable[ends.after]
    edges = np.flatnonzero(along)
    # Twice the middle of an edge, a whole number; edges on seams are one pixel long, so twins share it.
    middle = 2 * xy[edges] + step[edges]
    order = np.lexsort((middle[:, 0], middle[:, 1], ends.owner[edges]))
    edges, middle = edges[order], middle[order]
    twin = np.all(middle[1:] == middle[:-1], axis=1) & (ends.owner[edges[1:]] == ends.owner[edges[:-1]])
    cancelled = np.zeros(len(ends.vertex), np.bool_)
    cancelled[edges[1:][twin]] = True
    cancelled[edges[:-1][twin]] = True
    return cancelled


def _link_ends(
    rings: Rings,
    ends: JoinableVertices,
    cancelled: NDArray[np.bool_],
    is_gone: NDArray[np.bool_],
    following: NDArray[np.int32],
) -> None:
    """Make `following` lead from each edge that arrives at a loose vertex to the one that follows in the whole outline.

    At a vertex one edge of a component arrives and one leaves, or two and two where it touches itself;
    then each turns left (see `pipeline.polygons.tracing.kernels`).
    """
    # Sorted by vertex and owner, the k-th arriving edge leads to the k-th leaving one.
    arrives = np.flatnonzero(~is_gone[ends.before])
    leaves = np.flatnonzero(~cancelled)
    xy = rings.xy[ends.vertex]
    arrives, leaves = (chosen[_vertex_order(xy[chosen], ends.owner[chosen])] for chosen in (arrives, leaves))
    arriving, leaving = ends.before[arrives], ends.vertex[leaves]
    place, whose = xy[leaves], ends.owner[leaves]

    # Where a component touches itself, exchange the two that leave unless each arriving edge turns left.
    twice = np.flatnonzero((place[1:] == place[:-1]).all(axis=1) & (whose[1:] == whose[:-1]))
    came = xy[arrives[twice]] - rings.xy[arriving[twice]]
    one, other = (rings.xy[ends.after[leaves[twice + k]]] - place[twice + k] for k in (0, 1))
    swap = twice[_turn(came, other) < _turn(came, one)]
    leaving[swap], leaving[swap + 1] = leaving[swap + 1], leaving[swap]
    following[arriving] = leaving


def _vertex_order(xy: NDArray[np.int32], owner: NDArray[np.int64]) -> NDArray[np.intp]:
    return np.lexsort((xy[:, 0], xy[:, 1], owner))


def _turn(arriving: NDArray[np.int32], leaving: NDArray[np.int32]) -> NDArray[np.float64]:
    """The turn from one direction into another in radians; positive to the right, since y grows downwards."""
    arriving, leaving = arriving.astype(np.float64), leaving.astype(np.float64)
    across = arriving[:, 0] * leaving[:, 1] - arriving[:, 1] * leaving[:, 0]
    along = (arriving * leaving).sum(axis=1)
    turn: NDArray[np.float64] = np.arctan2(across, along)
    return turn


@compiled
def _collect(
    rings: RingArrays,
    following: NDArray[np.int32],
    done: NDArray[np.bool_],
    open_row: int,
    out: RingArrays,
    first: NDArray[np.int64],
) -> int:
    """Walk the edges that are not done, and write the ends of those that end in a corner; returns the number of rings.

    `first[k]` is one of the edges of ring `k`.
    """
    old_xy, old_joinable = rings.xy, rings.joinable
    xy, joinable, start = out.xy, out.joinable, out.start
    used = found = 0
    start[0] = 0
    for edge in range(len(following)):
        if done[edge]:
            continue
        first[found] = edge
        at = edge
        while not done[at]:
            done[at] = True
            to = following[at]
            x, y = old_xy[to, 0], old_xy[to, 1]
            beyond = following[to]
            # A vertex in the middle of a straight edge is dropped, except along the seam that is still open.
            in_row = old_xy[at, 1] == y and old_xy[beyond, 1] == y
            in_column = old_xy[at, 0] == x and old_xy[beyond, 0] == x
            if not (in_row or in_column) or y == open_row:
                xy[used, 0], xy[used, 1], joinable[used] = x, y, old_joinable[to]
                used += 1
            at = to
        found += 1
        start[found] = used
    return found
