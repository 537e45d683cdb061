"""Topology-preserving simplification of the borders of a block (Douglas-Peucker): neighbours keep sharing them.

Rings are cut into arcs at the vertices where three or more borders meet, and at the seams. An arc is
simplified once, for the rings on both of its sides, by Douglas and Peucker's splitting (1973), with
one more condition: a chord replaces a piece of an arc only if

    the region between the two, its edges included, holds no other vertex of any border.

Then no two chords cross: of two that did, one would end inside the other's region, by the parity of
their crossings (de Berg, van Kreveld and Schirra 1998, Topologically Correct Subdivision
Simplification). Both ends of arcs stay, every ring keeps at least three vertices, and no two arcs
become one line. So valid polygons stay valid, holes stay in their shells, and neighbours stay
gap-free, without a repair step.

A chord lies in the convex hull of what it replaces, hence within its block: blocks are simplified
independently. Seam vertices stay, so the result depends on where the seams are.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.mosaic import NO_CLASS, NODATA
from pipeline.polygons.tracing.components import compiled
from pipeline.polygons.tracing.outlines import Rings, Seams
from pipeline.polygons.tracing.records import Arcs, ChordRule, RingArrays, VertexMap

FREE = -1
"""In the map of vertices: no vertex here."""
FIXED = -2
"""In the map of vertices: a vertex that stays."""


def simplify(
    rings: Rings,
    mask: NDArray[np.uint8],
    seams: Seams,
    tolerance: tuple[float, float],
    pinned: NDArray[np.int64] | None = None,
) -> Rings:
    """The rings with fewer vertices, all of them among the old ones.

    Args:
        rings: of the block, on its own pixel plane, traced with junctions.
        mask: `(height, width)` class values of the block; 0 = none, 255 = nodata.
        seams: its borders that are seams.
        tolerance: largest shift of a border along x, and along y, in pixels; above 0.
        pinned: `(k,)` pixels, as in `Components.first`, whose top-left corners stay if they are vertices.
    """
    height, width = mask.shape
    places = VertexMap(np.full((height + 1, width + 1), FREE, np.int32), np.empty((height + 1, width + 1), np.int32))
    fixed = rings.joinable | _is_junction(rings.xy, np.pad(np.where(mask == NODATA, NO_CLASS, mask), 1))
    if pinned is not None and len(pinned):
        fixed |= np.isin((rings.xy[:, 1].astype(np.int64) << 32) + rings.xy[:, 0], pinned)
    spans, edges = _cut(rings.arrays, fixed, places)
    arcs = Arcs(spans, _must_keep(rings, spans, edges, width + 1))
    rule = ChordRule(seams.positions(height, width), np.array([1 / tolerance[0], 1 / tolerance[1]]))
    kept = fixed.copy()
    on_grid = np.zeros((height + 1, width + 1), np.bool_)
    _simplify_arcs(rings.arrays, arcs, places, rule, on_grid)
    kept |= on_grid[rings.xy[:, 1], rings.xy[:, 0]]
    running = np.concatenate(([0], np.cumsum(kept)))
    return Rings(xy=rings.xy[kept], joinable=rings.joinable[kept], start=running[rings.start], owner=rings.owner)


@compiled
def _is_junction(xy: NDArray[np.int32], shown: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """True where more than two borders of components of a class meet at a vertex; `shown` has a rim of zeros."""
    result = np.empty(len(xy), np.bool_)
    around = np.empty(4, np.uint8)
    for i in range(len(xy)):
        x, y = xy[i, 0], xy[i, 1]
        around[0], around[1] = shown[y, x], shown[y, x + 1]
        around[2], around[3] = shown[y + 1, x + 1], shown[y + 1, x]
        borders = 0
        for j in range(4):
            borders += around[j] != around[j - 1]
        result[i] = borders > 2
    return result


@compiled
def _cut(rings: RingArrays, fixed: NDArray[np.bool_], places: VertexMap) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut rings into arcs, each once though it bounds two components; map the vertices to them.

    Returns:
        `Arcs.spans` of the arcs that have vertices between their ends; `(edges, 2)`: vertices of the arcs that
        are single edges.
    """
    xy, start, place, position = rings.xy, rings.start, places.arc, places.position
    arcs, edges = np.empty((len(xy) + len(start), 3), np.int64), np.empty((len(xy), 2), np.int64)
    n = m = 0
    for i in range(len(xy)):
        if fixed[i]:
            place[xy[i, 1], xy[i, 0]] = FIXED

    for ring in range(len(start) - 1):
        begin, size = start[ring], start[ring + 1] - start[ring]
        # Begin at a fixed vertex, else at the least by (y, x): the same for the rings on both sides.
        head = 0
        for i in range(size):
            least, here = xy[begin + head], xy[begin + i]
            if fixed[begin + i]:
                head = i
                break
            if here[1] < least[1] or (here[1] == least[1] and here[0] < least[0]):
                head = i
        first = 0
        while first < size:
            length = 1
            while first + length < size and not fixed[begin + (head + first + length) % size]:
                length += 1
            at = begin + (head + first) % size
            inner = begin + (head + first + 1) % size
            if length == 1:
                edges[m, 0], edges[m, 1] = at, inner
                m += 1
            # An arc whose inner vertices are taken was cut already, from the ring on its other side.
            elif place[xy[inner, 1], xy[inner, 0]] == FREE:
                for k in range(0 if not fixed[at] else 1, length):
                    here = xy[begin + (head + first + k) % size]
                    place[here[1], here[0]], position[here[1], here[0]] = n, k
                arcs[n, 0], arcs[n, 1], arcs[n, 2] = ring, (head + first) % size, length + 1
                n += 1
            first += length
    return arcs[:n].copy(), edges[:m].copy()


def _must_keep(rings: Rings, arcs: NDArray[np.int64], edges: NDArray[np.int64], width: int) -> NDArray[np.bool_]:
    """True for arcs that share both ends with another arc: as single chords they would coincide."""
    start, point = rings.start, rings.xy[:, 1].astype(np.int64) * width + rings.xy[:, 0]
    size = np.diff(start)[arcs[:, 0]]
    tail = point[start[arcs[:, 0]] + (arcs[:, 1] + arcs[:, 2] - 1) % size]
    head = point[start[arcs[:, 0]] + arcs[:, 1]]
    # The ends of an arc or edge as one key, the same in both directions; equal keys are parallel arcs.
    least, greatest = np.minimum(head, tail), np.maximum(head, tail)
    edge_ends = np.unique(np.sort(point[edges], axis=1) @ np.array([1 << 32, 1]))
    ends = np.concatenate([(least << 32) + greatest, edge_ends])
    _, number, count = np.unique(ends, return_inverse=True, return_counts=True)
    shared: NDArray[np.bool_] = count[number[: len(arcs)]] > 1
    return shared


@compiled
def _simplify_arcs(rings: RingArrays, arcs: Arcs, places: VertexMap, rule: ChordRule, kept: NDArray[np.bool_]) -> None:
    """Mark the vertices that stay, arc by arc."""
    xy, start, spans, scale = rings.xy, rings.start, arcs.spans, rule.scale
    longest = 2
    for arc in range(len(spans)):
        longest = max(longest, spans[arc, 2])
    stack = np.empty((longest + 2, 3), np.int64)
    extent = np.empty((kept.shape[0], 2), np.int64)
    for arc in range(len(spans)):
        begin, size = start[spans[arc, 0]], start[spans[arc, 0] + 1] - start[spans[arc, 0]]
        n = spans[arc, 2]
        line = np.empty((n, 2), np.int64)
        for k in range(n):
            line[k] = xy[begin + (spans[arc, 1] + k) % size]
        top = 0
        kept[line[0, 1], line[0, 0]] = True
        if line[0, 0] == line[n - 1, 0] and line[0, 1] == line[n - 1, 1]:
            # A closed arc becomes two, from its first vertex to the farthest; each keeps one between.
            far, _ = _farthest(line, 0, n - 1, scale)
            kept[line[far, 1], line[far, 0]] = True
            stack[0, 0], stack[0, 1], stack[0, 2] = 0, far, 1
            stack[1, 0], stack[1, 1], stack[1, 2] = far, n - 1, 1
            top = 2
        else:
            stack[0, 0], stack[0, 1], stack[0, 2] = 0, n - 1, arcs.must_keep[arc]
            top = 1
        # Douglas and Peucker 1973, with a stack: split at the farthest vertex while the chord is not allowed.
        while top > 0:
            top -= 1
            i, j, must = stack[top, 0], stack[top, 1], stack[top, 2]
            if j - i < 2:
                continue
            far, distance = _farthest(line, i, j, scale)
            if (
                # `scale` makes the tolerance 1.
                distance > 1.0
                or must == 1
                or _along_seam(line[i], line[j], rule.seams)
                or _is_blocked(line, (i, j), arc, places, extent)
            ):
                kept[line[far, 1], line[far, 0]] = True
                stack[top, 0], stack[top, 1], stack[top, 2] = i, far, 0
                stack[top + 1, 0], stack[top + 1, 1], stack[top + 1, 2] = far, j, 0
                top += 2


@compiled
def _farthest(line: NDArray[np.int64], i: int, j: int, scale: NDArray[np.float64]) -> tuple[int, float]:
    """The vertex between `i` and `j` that is farthest from the chord, and its squared distance; the first of equals."""
    ax, ay = line[i, 0] * scale[0], line[i, 1] * scale[1]
    dx, dy = line[j, 0] * scale[0] - ax, line[j, 1] * scale[1] - ay
    length = dx * dx + dy * dy
    far, greatest = i + 1, -1.0
    for k in range(i + 1, j):
        px, py = line[k, 0] * scale[0] - ax, line[k, 1] * scale[1] - ay
        t = 0.0
        if length > 0:
            t = min(1.0, max(0.0, (px * dx + py * dy) / length))
        distance = (px - t * dx) ** 2 + (py - t * dy) ** 2
        if distance > greatest:
            far, greatest = k, distance
    return far, greatest


@compiled
def _along_seam(a: NDArray[np.int64], b: NDArray[np.int64], seams: NDArray[np.int64]) -> bool:
    """Whether a chord would lie on a seam, where it could meet what the neighbouring block has there."""
    same_x = a[0] == b[0] and (a[0] == seams[1] or a[0] == seams[3])
    return bool(same_x or (a[1] == b[1] and (a[1] == seams[0] or a[1] == seams[2])))


@compiled
def _is_blocked(
    line: NDArray[np.int64], span: tuple[int, int], arc: int, places: VertexMap, extent: NDArray[np.int64]
) -> bool:
    """Whether a vertex that is not of `line[i:j + 1]` lies between it and its chord, or on the chord."""
    (i, j), place, position = span, places.arc, places.position
    low, high = _row_extents(line, i, j, extent)
    for y in range(low, high + 1):
        for x in range(extent[y, 0], extent[y, 1] + 1):
            at = place[y, x]
            if at == FREE or (at == arc and i <= position[y, x] <= j):
                continue
            if (x == line[i, 0] and y == line[i, 1]) or (x == line[j, 0] and y == line[j, 1]):
                continue
            if _is_between(line, i, j, x, y):
                return True
    return False


@compiled
def _row_extents(line: NDArray[np.int64], i: int, j: int, extent: NDArray[np.int64]) -> tuple[int, int]:
    """Least and greatest x of `line[i:j + 1]` and its chord on each row of vertices; returns the range of rows."""
    low, high = line[i, 1], line[i, 1]
    for k in range(i, j + 1):
        low, high = min(low, line[k, 1]), max(high, line[k, 1])
    for y in range(low, high + 1):
        extent[y, 0], extent[y, 1] = 1 << 40, -1
    for k in range(i, j):
        a, b = line[k], line[k + 1]
        left, right = min(a[0], b[0]), max(a[0], b[0])
        for y in range(min(a[1], b[1]), max(a[1], b[1]) + 1):
            extent[y, 0], extent[y, 1] = min(extent[y, 0], left), max(extent[y, 1], right)
    a, b = line[i], line[j]
    for y in range(min(a[1], b[1]), max(a[1], b[1]) + 1):
        if a[1] == b[1]:
            left, right = min(a[0], b[0]), max(a[0], b[0])
        else:
            # The chord crosses the row between this vertex and the next.
            left = a[0] + (b[0] - a[0]) * (y - a[1]) // (b[1] - a[1])
            right = min(left + 1, max(a[0], b[0]))
        extent[y, 0], extent[y, 1] = min(extent[y, 0], left), max(extent[y, 1], right)
    return low, high


@compiled
def _is_between(line: NDArray[np.int64], i: int, j: int, x: int, y: int) -> bool:
    """Whether a point lies on the chord or an odd number of times inside `line[i:j + 1]` closed by it."""
    a, b = line[i], line[j]
    across = (b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0])
    if across == 0 and min(a[0], b[0]) <= x <= max(a[0], b[0]) and min(a[1], b[1]) <= y <= max(a[1], b[1]):
        return True

    # Ray casting to the right: first the chord, then the edges of the line, which run along the axes.
    inside = False
    if (a[1] > y) != (b[1] > y):
        inside = (across > 0) == (b[1] > a[1])
    for k in range(i, j):
        if (line[k, 1] > y) != (line[k + 1, 1] > y) and line[k, 0] > x:
            inside = not inside
    return inside
