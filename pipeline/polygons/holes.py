"""Hole filling: finds holes that hold only valid pixels of no class.

The pixels of no class are labelled like a class. Such a component is a whole hole of a polygon exactly
when it touches one component, and neither nodata nor the border of the scene; so nodata is never
filled, nor is a hole with an island of any class in it. A component on a seam, or one between pieces
that may still be united, is kept until that is known: the result does not depend on the block size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.grid import RasterGrid, measure_on_ground
from pipeline.polygons.shaping import pixels_to_map
from pipeline.polygons.tracing.components import NO_COMPONENT, Components, compiled, unique_rows
from pipeline.polygons.tracing.outlines import BlockOutlines, Rings

SLACK = 4
"""Components of no class that are this many times larger than the limit at the centre are not followed."""


@dataclass(frozen=True, kw_only=True)
class HoleFilter:
    """How large a hole may be to be filled."""

    grid: RasterGrid
    """Of the scene."""
    limit_m2: float
    """True area up to which holes are filled, above 0."""
    max_pixels: int
    """Components of more pixels are certainly larger."""

    @classmethod
    def of(cls, grid: RasterGrid, limit_m2: float) -> HoleFilter:
        """The rule for a scene; pixels shrink by less than `SLACK` from the centre to anywhere in it."""
        return cls(grid=grid, limit_m2=limit_m2, max_pixels=int(SLACK * limit_m2 / grid.resolution_m**2))

    def fits(self, table: Components) -> NDArray[np.bool_]:
        """True for components whose pixels, each as large as the first, are small enough."""
        if not len(table):
            return np.empty(0, np.bool_)
        row, col = table.first >> 32, table.first & 0xFFFFFFFF
        pixels = shapely.box(col, row, col + 1, row + 1)
        area_m2, _ = measure_on_ground(pixels_to_map(pixels, self.grid.transform), self.grid.crs)
        small: NDArray[np.bool_] = table.count * area_m2 <= self.limit_m2
        return small


def find_boundaries(traced: BlockOutlines, max_pixels: int) -> NDArray[np.int64]:
    """Find the neighbours of the components of no class.

    Args:
        traced: a block, with the pixels of no class.
        max_pixels: larger components are left out.

    Returns:
        `(k, 2)` pairs, each once: a component of no class, and one that it shares an edge with, or `NO_COMPONENT`
        for nodata and the border of the scene.
    """
    table, seams = traced.table, traced.seams
    followed = np.concatenate(([False], (table.value == 0) & (table.count <= max_pixels)))
    beyond = np.array([seams.top, seams.right, seams.bottom, seams.left])
    return unique_rows(_scan_boundaries(np.pad(traced.labels, 1), followed, beyond))


def fillable_holes(
    boundaries: NDArray[np.int64], is_none: NDArray[np.bool_], on_seam: NDArray[np.bool_], is_open: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Decide which components of no class are holes, and which cannot be decided yet.

    Args:
        boundaries: as from `find_boundaries`.
        is_none: `(n,)`: True for the components of no class that are followed.
        on_seam: `(n,)`: True for components that may go on beyond a seam.
        is_open: `(n,)`: True for components of classes that may still be united with others.

    Returns:
        `(holes, 2)`: a component of no class and the one whose hole it is; `(n,)`: True = not known yet.
    """
    real = boundaries[boundaries[:, 1] >= 0]

    # Next to nodata or the scene's border: never a hole.
    spoiled = np.zeros(len(is_none), np.bool_)
    spoiled[boundaries[boundaries[:, 1] < 0, 0]] = True

    # Next to a component that is complete: no other can become the only one around it.
    settled = np.zeros(len(is_none), np.bool_)
    settled[real[~is_open[real[:, 1]], 0]] = True

    # A hole has exactly one component around it.
    around = np.bincount(real[:, 0], minlength=len(is_none))
    is_hole = is_none & ~spoiled & ~on_seam & (around == 1)
    undecided = is_none & ~spoiled & ~is_hole & ~settled
    return real[is_hole[real[:, 0]]], undecided


def without_holes(rings: Rings, firsts: NDArray[np.int64]) -> Rings:
    """The rings without some holes.

    Args:
        rings: arranged, of whole components.
        firsts: `Components.first` of the components that the holes consist of: its corner begins the ring.
    """
    begins = (rings.xy[rings.start[:-1], 1].astype(np.int64) << 32) + rings.xy[rings.start[:-1], 0]
    is_shell = np.concatenate(([True], rings.owner[1:] != rings.owner[:-1]))[: len(rings)]
    return rings.keep(is_shell | ~np.isin(begins, firsts))


@compiled
def _scan_boundaries(
    labels: NDArray[np.int32], followed: NDArray[np.bool_], beyond: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Pairs of a followed component and a neighbour, with repetitions."""
    height, width = labels.shape[0] - 2, labels.shape[1] - 2
    pairs = np.empty((1024, 2), np.int64)
    n = 0
    for r in range(1, height + 1):
        for c in range(1, width + 1):
            k = labels[r, c]
            if not followed[k]:
                continue
            for side in range(4):
                other_r = r + (side == 2) - (side == 0)
                other_c = c + (side == 1) - (side == 3)
                other = labels[other_r, other_c]
                outside = other_r == 0 or other_r > height or other_c == 0 or other_c > width
                if other == k or (outside and beyond[side]):
                    continue
                if n == len(pairs):
                    pairs = np.concatenate((pairs, np.empty_like(pairs)))
                pairs[n, 0], pairs[n, 1] = k - 1, other - 1 if other > 0 else NO_COMPONENT
                n += 1
    return pairs[:n].copy()
