"""Outline vertices of a block, linked by a sweep over its pixel corners."""

from __future__ import annotations

import numpy as np

from pipeline.polygons.tracing.kernels import link_vertices
from pipeline.polygons.tracing.records import Bytes, Corners, Sums, VertexRule, allocate_row

INITIAL_CAPACITY = 1 << 14
"""Initial capacity in vertices, in addition to those of one row."""


def link_corners(mask: Bytes, seams: Sums, *, with_none: bool, junctions: bool) -> Corners:
    """The linked vertices of all components.

    Args:
        mask: `(height, width)` class values, contiguous; 0 = none, 255 = nodata.
        seams: rows or columns of the seams, see `Seams.positions`; along them every pixel corner is a vertex.
        with_none: True to make components of the pixels of value 0, too.
        junctions: True to make a vertex also where two neighbours of a straight side meet.
    """
    width = mask.shape[1]
    rule, buffers = VertexRule(with_none=with_none, junctions=junctions, seams=seams), allocate_row(width)
    corners = _allocate(INITIAL_CAPACITY + 4 * (width + 1))
    row = used = pairs = 0
    while row <= mask.shape[0]:
        if row:
            corners = _doubled(corners)
        row, used, pairs = link_vertices(mask, rule, buffers, corners, (row, used, pairs))
    return Corners(
        xy=corners.xy[:used],
        following=corners.following[:used],
        kind=corners.kind[:used],
        touching=corners.touching[:pairs],
    )


def _allocate(size: int) -> Corners:
    return Corners(
        xy=np.empty((size, 2), np.int32),
        following=np.empty(size, np.int32),
        kind=np.empty(size, np.uint8),
        touching=np.empty((size // 2, 2), np.int32),
    )


def _doubled(old: Corners) -> Corners:
    size = len(old.xy)
    new = _allocate(2 * size)
    new.xy[:size], new.following[:size], new.kind[:size] = old.xy, old.following, old.kind
    new.touching[: len(old.touching)] = old.touching
    return new
