"""Rings of linked corners: numbering, shells and holes, and their vertices in order.

A ring whose first vertex by `(y, x)` is left eastwards is the shell of a component, and any other ring is a hole: so
rings give the components, without a label for every pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.polygons.tracing.components import compiled
from pipeline.polygons.tracing.kernels import ON_SEAM
from pipeline.polygons.tracing.records import Corners, Flags, Numbers

MEETS = 4
"""Of a vertex: another component of the same value touches it."""
UNKNOWN = -1
"""The ring of a vertex that has not been visited."""


@dataclass(frozen=True, kw_only=True)
class RingIndex:
    """The rings that linked corners make, sorted by their first vertex by `(y, x)`."""

    ring: Numbers
    """`(vertices,)`: the ring of each vertex."""
    first: Numbers
    """`(rings,)`: the first vertex of each ring."""
    size: Numbers
    """`(rings,)`: vertices of each ring."""
    is_shell: NDArray[np.bool_]
    """`(rings,)`: True for shells, False for holes."""


def close_rings(corners: Corners) -> RingIndex:
    """Number the rings; where a component touches itself, the links are changed so that its outline turns left."""
    n = len(corners.following)
    ring, first, size = np.full(n, UNKNOWN, np.int32), np.empty(n // 4 + 1, np.int32), np.empty(n // 4 + 1, np.int32)
    found = _close_rings(corners, ring, first, size)
    first, size = first[:found], size[:found]
    is_shell = corners.xy[first, 1] == corners.xy[corners.following[first], 1]
    return RingIndex(ring=ring, first=first, size=size, is_shell=is_shell)


def gather(
    corners: Corners, index: RingIndex, order: NDArray[np.intp], origin: tuple[int, int]
) -> tuple[Numbers, NDArray[np.bool_]]:
    """The vertices of the rings `order`, ring after ring, and which of them are loose.

    Args:
        corners: of a block.
        index: of the same.
        order: numbers of rings.
        origin: `(row, col)` of the block, added to the vertices.
    """
    first, size = index.first[order], index.size[order]
    n = int(size.sum())
    xy, joinable = np.empty((n, 2), np.int32), np.empty(n, np.bool_)
    _gather(corners, (first, size), origin, xy, joinable)
    return xy, joinable


@compiled
def _close_rings(corners: Corners, ring: Numbers, first: Numbers, size: Numbers) -> int:
    """Number the rings, and those that touch themselves anew once they turn left; returns how many there are.

    Two empty pixels that meet in such a corner are parted by the component, but the ring that turns right passes both:
    two equal pixels that meet there are of one component exactly if one ring comes by both.
    """
    following, kind, touching = corners.following, corners.kind, corners.touching
    found = _number_rings(following, ring, first, size)
    changed = False
    for k in range(len(touching)):
        u, v = touching[k, 0], touching[k, 1]
        if ring[u] == ring[v]:
            following[u], following[v] = following[v], following[u]
            changed = True
        else:
            kind[u] |= MEETS
            kind[v] |= MEETS
    # Exchanged links split rings, so all are numbered again.
    if changed:
        for v in range(len(ring)):
            ring[v] = UNKNOWN
        found = _number_rings(following, ring, first, size)
    return found


@compiled
def _number_rings(following: Numbers, ring: Numbers, first: Numbers, size: Numbers) -> int:
    """Walk every ring once."""
    found = 0
    for begin in range(len(ring)):
        if ring[begin] != UNKNOWN:
            continue
        at, steps = begin, 0
        while ring[at] == UNKNOWN:
            ring[at] = found
            at = following[at]
            steps += 1
        first[found], size[found] = begin, steps
        found += 1
    return found


@compiled
def _gather(
    corners: Corners, rings: tuple[Numbers, Numbers], origin: tuple[int, int], out: Numbers, joinable: Flags
) -> None:
    """Write the vertices of rings, given by first vertex and size, one ring after the other."""
    (first, size), (top, left) = rings, origin
    xy, following, kind = corners.xy, corners.following, corners.kind
    at = 0
    for k in range(len(first)):
        v = first[k]
        for _ in range(size[k]):
            out[at, 0], out[at, 1] = xy[v, 0] + left, xy[v, 1] + top
            joinable[at] = (kind[v] & (ON_SEAM | MEETS)) != 0
            v = following[v]
            at += 1
