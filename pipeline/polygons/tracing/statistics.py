"""Component statistics of a block, computed run by run in a sweep over its pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.polygons.tracing.components import NO_COMPONENT
from pipeline.polygons.tracing.kernels import measure_runs
from pipeline.polygons.tracing.records import Bytes, Numbers, Sums, Totals, VertexOwners, allocate_row


@dataclass(frozen=True, kw_only=True)
class ComponentStatistics:
    """Statistics of the components of a block."""

    count: Sums
    """`(n,)` pixels."""
    total: Sums
    """`(n,)`: sum of the pixels' levels."""
    peak: Sums
    """`(n,)`: greatest level of a pixel."""
    lines: tuple[Sums, Sums, Sums, Sums]
    """The component of each pixel along the top, right, bottom and left side of the block; `NO_COMPONENT` = none."""
    labels: Numbers
    """`(height, width)`: 1 + the component, 0 = none; empty when not painted."""


def measure_components(
    mask: Bytes,
    level: NDArray[np.unsignedinteger],
    vertices: VertexOwners,
    *,
    with_none: bool,
) -> ComponentStatistics:
    """Measure the components, and find the component that each hole is in.

    Args:
        mask: `(height, width)` class values, contiguous.
        level: `(height, width)` levels that are summed, contiguous.
        vertices: of the block; the owners of holes are filled in.
        with_none: as for `link_corners`; True also labels every pixel.
    """
    n, (height, width) = int(vertices.owner.max(initial=-1)) + 1, mask.shape
    sums = np.zeros((3, n), np.int64)
    top, right, bottom, left = (np.full(size, NO_COMPONENT, np.int64) for size in (width, height, width, height))
    labels = np.zeros((height, width) if with_none else (0, 0), np.int32)
    totals = Totals(sums=sums, sides=(top, right, bottom, left), labels=labels)
    measure_runs(mask, level, with_none, vertices, allocate_row(width), totals)
    return ComponentStatistics(count=sums[0], total=sums[1], peak=sums[2], lines=totals.sides, labels=labels)
