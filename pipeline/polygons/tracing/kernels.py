"""Compiled kernels of tracing: one sweep links the corners of outlines into rings, another measures runs.

Sides of pixels are walked with the pixel on the right: its top eastwards, its right side southwards, its bottom
westwards, its left side northwards. From corner to corner an outline is straight, so one link leads from a vertex to
the next:

    a | b      Four pixels meet at a place `(x, y)`. Up to four outlines arrive there, one along each pixel;
    --+--      each turns left, goes straight on or turns right, depending on the pixels beyond its two sides. Links
    c | d      to the left and upwards lead to vertices that earlier places left in slots.

Where nothing changes eight pixels are skipped at a time, so time follows the number of vertices and runs. Where equal
pixels meet only in a corner, both outlines turn right, as for different components;
`pipeline.polygons.tracing.rings` finds those of one component. Kernels that call each other must be in one file:
numba's cache checks no other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.polygons.tracing.components import compiled
from pipeline.polygons.tracing.records import (
    Bytes,
    Corners,
    Numbers,
    RowBuffers,
    Sums,
    Totals,
    VertexOwners,
    VertexRule,
)

OUTSIDE = 255
"""Code of a pixel of no component: nodata, beyond the block, and of no class unless those are wanted."""
ON_SEAM = 1
"""Of a vertex: it lies on a seam."""
LEFT_SIDE = 2
"""Of a vertex: the outline arrives along the left side of a pixel, from below."""
ONES = np.uint64(0x0101010101010101)
"""Eight bytes of 1."""


@compiled
def _encode_row(mask: Bytes, row: int, with_none: bool, codes: Bytes) -> None:
    """Fill `codes[1:-1]` with a row of the mask, `OUTSIDE` for what makes no component or if there is no such row."""
    codes[0] = codes[-1] = OUTSIDE
    beyond = row < 0 or row >= mask.shape[0]
    for i in range(mask.shape[1]):
        value = np.uint8(OUTSIDE) if beyond else mask[row, i]
        codes[i + 1] = np.uint8(OUTSIDE) if value == 0 and not with_none else value


@compiled
def _first_byte(word: np.uint64) -> int:
    """Which byte of a word of bytes 0 and 1 is the first that is 1; the word is not 0."""
    # 1 in each byte below the lowest byte that is 1; the product adds them up in the top byte.
    below = (word - np.uint64(1)) & ~word & ONES
    return int(np.int64((below * ONES) >> np.uint64(56)))


@compiled
def _mark_places(above: Bytes, below: Bytes, everywhere: bool, marks: Bytes) -> None:
    """`marks[x]` = 1 where a border along the row of places meets one across it, or everywhere."""
    for x in range(len(above) - 1):
        a, b, c, d = above[x], above[x + 1], below[x], below[x + 1]
        marks[x] = np.uint8(((((a ^ b) | (c ^ d)) != 0) & (((a ^ c) | (b ^ d)) != 0)) | everywhere)


@compiled
def _parts(one: int, other: int) -> bool:
    """Whether two neighbours differ and one of them is of a class."""
    return one != other and (one % OUTSIDE != 0 or other % OUTSIDE != 0)


@compiled
def link_vertices(
    mask: Bytes, rule: VertexRule, buffers: RowBuffers, corners: Corners, state: tuple[int, int, int]
) -> tuple[int, int, int]:
    """Sweep rows of places while `corners` has capacity; returns next row and numbers of vertices and pairs."""
    height, width = mask.shape
    above, below, seams = buffers.codes[0], buffers.codes[1], rule.seams
    y, n, pairs = state
    _encode_row(mask, y - 1, rule.with_none, above)
    while y <= height and n + 4 * (width + 1) <= len(corners.following):
        _encode_row(mask, y, rule.with_none, below)
        _mark_places(above, below, y == seams[0] or y == seams[2], buffers.marks)
        buffers.marks[0] |= seams[3] == 0
        buffers.marks[width] |= seams[1] == width
        n, pairs = _link_vertex_row((above, below), rule, buffers, corners, (y, n, pairs))
        above, below = below, above
        y += 1
    return y, n, pairs


@compiled
def _link_vertex_row(
    codes: tuple[Bytes, Bytes], rule: VertexRule, buffers: RowBuffers, corners: Corners, state: tuple[int, int, int]
) -> tuple[int, int]:
    """Make and link the vertices of one row of places, after the vertices and pairs of earlier rows.

    A slot holds the vertex at the near end of a side that is open: along this row `east` and `west`, in each column
    `south` and `north`. A side that ends here, or begins with the vertex in its slot, is linked. In one piece, and with
    arrays in names of their own: with a call at each place it takes almost three times as long.
    """
    (above, below), (y, n, pairs) = codes, state
    following, south, north, seams = corners.following, buffers.slots[0], buffers.slots[1], rule.seams
    xy, kind, touching, junctions, words = corners.xy, corners.kind, corners.touching, rule.junctions, buffers.words
    east = west = np.int32(0)
    for k in range(len(words)):
        word = words[k]
        while word != 0:
            x = 8 * k + _first_byte(word)
            word &= word - np.uint64(1)
            # The four pixels around the place: a and b above, c and d below; n counts the vertices made.
            a, b, c, d, first = above[x], above[x + 1], below[x], below[x + 1], n
            # southwards along a, eastwards along c, westwards along b, northwards along d: right, left, straight on
            if a != b and a != OUTSIDE and (c != a or d == c or x == seams[1] or (junctions and _parts(b, d))):
                following[south[x]] = n
                if c != a:
                    following[n] = west
                elif d == c:
                    east = np.int32(n)
                else:
                    south[x] = n
                n += 1
            if c != a and c != OUTSIDE and (d != c or b == d or y == seams[0] or (junctions and _parts(a, b))):
                following[east] = n
                if d != c:
                    south[x] = n
                elif b == d:
                    following[n] = north[x]
                else:
                    east = np.int32(n)
                n += 1
            if b != d and b != OUTSIDE and (a != b or c == a or y == seams[2] or (junctions and _parts(d, c))):
                if a != b:
                    following[n] = north[x]
                elif c == a:
                    south[x] = n
                else:
                    following[n] = west
                west = np.int32(n)
                n += 1
            lefts = n
            if d != c and d != OUTSIDE and (b != d or a == b or x == seams[3] or (junctions and _parts(c, a))):
                if b != d:
                    east = np.int32(n)
                elif a == b:
                    following[n] = west
                else:
                    following[n] = north[x]
                north[x] = n
                n += 1
            # Vertices of the place, and pairs of equal pixels that touch only by their corners here.
            on_seam = y == seams[0] or y == seams[2] or x == seams[1] or x == seams[3]
            for i in range(first, n):
                xy[i, 0], xy[i, 1] = x, y
                kind[i] = LEFT_SIDE * (i >= lefts) + ON_SEAM * on_seam
            if a == d and a != b and a != c and a != OUTSIDE:
                touching[pairs, 0], touching[pairs, 1] = first, n - 1
                pairs += 1
            if b == c and b != a and b != d and b != OUTSIDE:
                first += a != OUTSIDE
                touching[pairs, 0], touching[pairs, 1] = first, first + 1
                pairs += 1
    return n, pairs


@compiled
def measure_runs(
    mask: Bytes,
    level: NDArray[np.unsignedinteger],
    with_none: bool,
    vertices: VertexOwners,
    buffers: RowBuffers,
    totals: Totals,
) -> None:
    """Sweep rows of pixels.

    A run begins at a left side of its component and may end at a hole. Slots hold the ring of the side that is open in
    each column, and a hole that begins there.

    Args:
        mask: of the block.
        level: the same shape, what is summed.
        with_none: as in the rule of the vertices.
        vertices: of the block; the owners of holes are filled in.
        buffers: for a row.
        totals: filled in.
    """
    height, width = mask.shape
    corners, ring, owner = vertices
    left, hole, codes, marks, words = buffers.slots[0], buffers.slots[1], buffers.codes[0], buffers.marks, buffers.words
    xy, kind, sums, sides, labels = corners.xy, corners.kind, totals.sums, totals.sides, totals.labels
    v, rings = 0, -1
    for y in range(height):
        # Left sides that begin in this row, and rings of holes whose first vertex lies in it.
        while v < len(ring) and xy[v, 1] == y:
            if kind[v] & LEFT_SIDE:
                left[xy[v, 0]] = ring[v]
            elif ring[v] > rings and owner[ring[v]] < 0:
                hole[xy[v, 0]] = ring[v]
            rings = max(rings, ring[v])
            v += 1
        # A run ends where two neighbouring codes differ.
        _encode_row(mask, y, with_none, codes)
        for i in range(width + 1):
            marks[i] = np.uint8(codes[i] != codes[i + 1])
        begin = k = width  # no run is open
        for i in range(len(words)):
            word = words[i]
            while word != 0:
                x = 8 * i + _first_byte(word)
                word &= word - np.uint64(1)
                if codes[x] != OUTSIDE:
                    _add_run(level, (y, begin, x), k, sums)
                    # Only runs on the block's border are noted, or all where labels are asked for.
                    if begin == 0 or x == width or y == 0 or y == height - 1 or len(labels):
                        _note_run((y, begin, x), k, sides, labels)
                    if hole[x] >= 0:
                        owner[hole[x]] = k
                        hole[x] = -1
                if codes[x + 1] != OUTSIDE:
                    begin, k = x, owner[left[x]]


@compiled
def _add_run(level: NDArray[np.unsignedinteger], run: tuple[int, int, int], k: int, sums: Sums) -> None:
    """Add the pixels `begin:end` of the row `y` to component `k`."""
    y, begin, end = run
    total = peak = np.int64(0)
    for x in range(begin, end):
        total += level[y, x]
    for x in range(begin, end):  # on its own: two loops that the compiler makes into vector instructions
        peak = max(peak, np.int64(level[y, x]))
    sums[0, k] += end - begin
    sums[1, k] += total
    sums[2, k] = max(sums[2, k], peak)


@compiled
def _note_run(run: tuple[int, int, int], k: int, sides: tuple[Sums, Sums, Sums, Sums], labels: Numbers) -> None:
    """Write component `k` to the pixels `begin:end` of the row `y`, in the sides of the block and the labels."""
    (y, begin, end), (top, right, bottom, left) = run, sides
    if begin == 0:
        left[y] = k
    if end == len(top):
        right[y] = k
    if y == 0:
        for x in range(begin, end):
            top[x] = k
    if y == len(left) - 1:
        for x in range(begin, end):
            bottom[x] = k
    if len(labels):
        for x in range(begin, end):
            labels[y, x] = k + 1
