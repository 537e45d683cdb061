"""Pieces of one component, traced block by block, joined into its whole outline.

On both sides of a seam, pieces have the same edges of one pixel, walked in opposite directions. Where
both sides are the same component the two edges cancel:

    ring of the left piece  ↓ | ↑  ring of the right piece        both vanish

and the open ends that remain are tied together where they meet. Coordinates are integers, so nothing
is snapped and the result does not depend on how the component was cut.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.labelling import compiled
from pipeline.tracing import Rings


def cancel_seams(rings: Rings, block_size: int, open_row: int) -> Rings:
    """The rings without the edges along seams that cancel, so that open components do not carry them along.

    Args:
        rings: of pieces, as for `join_rings`.
        block_size: of the blocks.
        open_row: the seam to which nothing has been joined yet; vertices along it stay.
    """
    affected = _cancelled(rings, _steps(rings), block_size)
    ring_of_vertex = np.repeat(np.arange(len(rings)), rings.sizes)
    joining = np.bincount(ring_of_vertex[affected], minlength=len(rings)) > 0
    if not joining.any():
        return rings
    return Rings.stack([rings.keep(~joining), join_rings(rings.keep(joining), block_size, open_row)])


def join_rings(rings: Rings, block_size: int, open_row: int = -1) -> Rings:
    """The whole rings of components from the rings of their pieces, in no particular order.

    Vertices in the middle of straight edges along an axis are dropped.

    Args:
        rings: of all pieces, with vertices at every pixel corner on seams; `owner` is the component.
        block_size: seams are the lines where `x` or `y` is a multiple of this.
        open_row: vertices with this `y` are kept, straight or not.
    """
    following = _following(rings.start)
    step = _steps(rings)
    cancelled = _cancelled(rings, step, block_size)
    following = _tied(rings, step, following, cancelled)
    straight = np.any((step == 0) & (step[following] == 0), axis=1) & (rings.xy[following, 1] != open_row)
    index, start, first = _collect(following, cancelled, ~straight)
    vertex, owner = following[index], np.repeat(rings.owner, rings.sizes)
    return Rings(xy=rings.xy[vertex], loose=rings.loose[vertex], start=start, owner=owner[first])


def _following(start: NDArray[np.int64]) -> NDArray[np.int64]:
    """The next vertex of each vertex in its own ring."""
    following = np.arange(1, start[-1] + 1)
    following[start[1:] - 1] = start[:-1]
    return following


def _steps(rings: Rings) -> NDArray[np.int32]:
    """`(vertices, 2)`: from each vertex to the next of its ring; edge `i` begins at vertex `i`."""
    steps: NDArray[np.int32] = rings.xy[_following(rings.start)] - rings.xy
    return steps


def _cancelled(rings: Rings, step: NDArray[np.int32], block_size: int) -> NDArray[np.bool_]:
    """The edges along seams that have a twin in the same component."""
    xy, owner = rings.xy, np.repeat(rings.owner, rings.sizes)
    along = (step == 0) & (xy % np.int32(block_size) == 0)
    edges = np.flatnonzero(along.any(axis=1))
    middle = 2 * xy[edges] + step[edges]
    order = np.lexsort((middle[:, 0], middle[:, 1], owner[edges]))
    edges, middle = edges[order], middle[order]
    twin = np.all(middle[1:] == middle[:-1], axis=1) & (owner[edges[1:]] == owner[edges[:-1]])
    cancelled = np.zeros(len(xy), np.bool_)
    cancelled[edges[1:][twin]] = True
    cancelled[edges[:-1][twin]] = True
    return cancelled


def _tied(
    rings: Rings, step: NDArray[np.int32], following: NDArray[np.int64], cancelled: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The edge that follows each edge in the whole outline; arbitrary for cancelled edges.

    At a vertex one edge of a component arrives and one leaves, or two and two where it touches itself;
    then each turns left (see `pipeline.tracing`).
    """
    xy, owner = rings.xy, np.repeat(rings.owner, rings.sizes)
    arriving = np.flatnonzero(~cancelled & rings.loose[following])
    leaving = np.flatnonzero(~cancelled & rings.loose)
    arriving = arriving[_vertex_order(xy[following[arriving]], owner[arriving])]
    leaving = leaving[_vertex_order(xy[leaving], owner[leaving])]
    place, whose = xy[leaving], owner[leaving]
    first = np.flatnonzero((place[1:] == place[:-1]).all(axis=1) & (whose[1:] == whose[:-1]))
    crossed = _turn(step[arriving[first]], step[leaving[first + 1]]) < _turn(
        step[arriving[first]], step[leaving[first]]
    )
    swap = first[crossed]
    leaving[swap], leaving[swap + 1] = leaving[swap + 1], leaving[swap]
    tied = following.copy()
    tied[arriving] = leaving
    return tied


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
    following: NDArray[np.int64], cancelled: NDArray[np.bool_], corner: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Walk the remaining edges.

    Returns:
        Edges that end in a corner, ring after ring; the offsets of the rings; an edge of each ring.
    """
    n = len(following)
    done = cancelled.copy()
    index = np.empty(n, np.int64)
    start, first = np.zeros(n // 3 + 2, np.int64), np.empty(n // 3 + 2, np.int64)
    used = rings = 0
    for edge in range(n):
        if done[edge]:
            continue
        first[rings] = edge
        at = edge
        while not done[at]:
            done[at] = True
            if corner[at]:
                index[used] = at
                used += 1
            at = following[at]
        rings += 1
        start[rings] = used
    return index[:used].copy(), start[: rings + 1].copy(), first[:rings].copy()
