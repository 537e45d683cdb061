"""Matching of polygons between two overlapping scenes, and the choice of which to keep.

Polygons are compared by their parts in the overlap of the scenes' coverages. Two parts of one class match if their
common area is a large enough share of the smaller. Where scenes are adjacent without overlap, polygons match that
share a stretch of the common edge.

    both scenes cover it    the preferred scene's is kept, or that of the scene in which it lies farther from the edge
    one scene covers it     that scene's is kept
    neither covers it       both are kept and joined
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.grid import RasterGrid
from pipeline.merge.coverage import CoverageCache
from pipeline.merge.extent import PreparedExtent
from pipeline.merge.projection import from_pixel_plane, to_pixel_plane
from pipeline.merge.reading import Outlines, read_outlines
from pipeline.merge.scenes import MergedScene
from pipeline.merge.spec import MergeSpec

Geometries = NDArray[np.object_]
Pairs = NDArray[np.int64]

TOLERANCE_PX = 0.25
"""How far a covered polygon may extend beyond a coverage whose pixels are on another lattice."""
MIN_AREA_PX2 = 1e-6
"""Smaller parts are floating-point error."""
PAIRS_PER_BATCH = 8192
NOT_COVERED, NEAR_EDGE, INTERIOR = 0, 1, 2
"""How a scene covers a polygon: not fully; fully; fully and away from the edge of its data."""


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Matching polygons of two scenes, the preferred scene's first, by feature id."""

    kept: Pairs
    """`(n, 2)`: the preferred scene's polygon replaces the other's."""
    dropped: Pairs
    """`(n, 2)`: the other scene's polygon replaces the preferred scene's."""
    merged: Pairs
    """`(n, 2)`: polygons that continue in each other."""
    unmatched: NDArray[np.int64]
    """`(n,)`: polygons of the other scene that the preferred scene covers fully and does not show."""


@dataclass(frozen=True, kw_only=True)
class SceneOverlap:
    """One of two scenes, in the pixel coordinates of the preferred one."""

    outlines: Outlines
    """Its polygons that intersect the other's coverage."""
    coverage: PreparedExtent
    """Its valid pixels."""
    margin_px: float
    """Distance from the edge of its data within which it is less reliable; pixels of the preferred scene."""


def match_scenes(preferred: MergedScene, other: MergedScene, coverages: CoverageCache, spec: MergeSpec) -> Matches:
    """Match the polygons of two scenes; those of the preferred one are kept where both cover them.

    SceneError if a file is damaged, or the CRS of one does not reach the other.
    """
    # Geometry is compared in the preferred scene's pixel coordinates, so lengths are in its pixels.
    plane = preferred.grid
    area = coverages.get(preferred)
    other_area = _to_plane(other, coverages.get(other), plane)
    shapely.prepare(area)
    if not shapely.dwithin(area, other_area, TOLERANCE_PX):
        none = np.empty((0, 2), np.int64)
        return Matches(kept=none, dropped=none, merged=none, unmatched=none[:, 0])

    # Farther than the margin from the shared window, coverage does not affect a match.
    scale = other.grid.resolution_m / plane.resolution_m
    window = _shared_window(area, other_area)
    around = shapely.buffer(window, spec.margin_px * max(1.0, scale) + 1, join_style="mitre")
    area, other_area = shapely.intersection(area, around), shapely.intersection(other_area, around)
    near = PreparedExtent(area), PreparedExtent(other_area)
    first = _scene_overlap(preferred, plane, window, near, margin_px=spec.margin_px)
    second = _scene_overlap(other, plane, window, near[::-1], margin_px=spec.margin_px * scale)
    return match_overlaps(first, second, min_overlap=spec.min_overlap, known_classes={*preferred.classes.values()})


def match_overlaps(
    first: SceneOverlap, second: SceneOverlap, *, min_overlap: float, known_classes: set[str]
) -> Matches:
    """Match the polygons of two scenes in one pixel plane; the first is preferred, its model predicts `known_classes`.

    `min_overlap` is the least common area of two matching parts, as a share of the smaller.
    """
    pairs = np.unique(np.vstack([_matching_pairs(first, second, min_overlap), _adjacent_pairs(first, second)]), axis=0)

    # Coverage of each polygon by the other scene; a row of `pairs` is (first, second).
    in_second = _coverage_levels(first.outlines.geometry, second)[pairs[:, 0]]
    second_levels = _coverage_levels(second.outlines.geometry, first)
    in_first = second_levels[pairs[:, 1]]
    fids = np.column_stack([first.outlines.fid[pairs[:, 0]], second.outlines.fid[pairs[:, 1]]])
    merged = (in_first == NOT_COVERED) & (in_second == NOT_COVERED)

    # The first scene covers these polygons and its model predicts their class, but it has no match.
    unmatched = second_levels == INTERIOR
    unmatched[pairs[:, 1]] = False
    unmatched &= np.isin(second.outlines.class_name.astype(str), sorted(known_classes))
    return Matches(
        # A tie goes to the preferred scene.
        kept=fids[(in_first >= in_second) & ~merged],
        dropped=fids[in_first < in_second],
        merged=fids[merged],
        unmatched=second.outlines.fid[unmatched],
    )


def _to_plane(scene: MergedScene, coverage: shapely.Geometry, plane: RasterGrid) -> shapely.Geometry:
    in_crs = from_pixel_plane(np.array([coverage]), scene.grid.transform)
    return to_pixel_plane(in_crs, scene.grid.crs, plane)[0]


def _shared_window(area: shapely.Geometry, other_area: shapely.Geometry) -> shapely.Geometry:
    """The box that contains the overlap of both areas, or the gap between them, with a tolerance around it."""
    low, high = np.maximum(area.bounds, other_area.bounds)[:2], np.minimum(area.bounds, other_area.bounds)[2:]
    ends = np.minimum(low, high) - TOLERANCE_PX, np.maximum(low, high) + TOLERANCE_PX
    return shapely.box(*ends[0], *ends[1])


def _scene_overlap(
    scene: MergedScene,
    plane: RasterGrid,
    window: shapely.Geometry,
    coverages: tuple[PreparedExtent, PreparedExtent],
    *,
    margin_px: float,
) -> SceneOverlap:
    """The polygons of a scene that intersect the other's coverage; `coverages` are its own and the other's."""
    own, others = coverages
    corners = to_pixel_plane(from_pixel_plane(np.array([window]), plane.transform), plane.crs, scene.grid)
    found = read_outlines(scene, from_pixel_plane(corners, scene.grid.transform)[0].bounds)
    geometry = to_pixel_plane(found.geometry, scene.grid.crs, plane)
    kept = others.intersects(geometry)
    outlines = Outlines(fid=found.fid[kept], class_name=found.class_name[kept], geometry=geometry[kept])
    return SceneOverlap(outlines=outlines, coverage=own, margin_px=margin_px)


def _matching_pairs(first: SceneOverlap, second: SceneOverlap, min_overlap: float) -> Pairs:
    """Index pairs of polygons with matching parts in the overlap of both coverages."""
    parts, owner = _parts_on(first.outlines.geometry, second.coverage)
    others, other_owner = _parts_on(second.outlines.geometry, first.coverage)
    near, far = shapely.STRtree(others).query(parts, predicate="intersects")
    same_class = first.outlines.class_name[owner[near]] == second.outlines.class_name[other_owner[far]]
    near, far = near[same_class], far[same_class]

    # Relative to the smaller part, so that a small polygon matches the large one that contains it.
    common = _common_area(parts[near], others[far])
    smaller = np.minimum(shapely.area(parts)[near], shapely.area(others)[far])
    linked = (common > MIN_AREA_PX2) & (common >= min_overlap * smaller)
    return np.column_stack([owner[near[linked]], other_owner[far[linked]]]).astype(np.int64)


def _parts_on(geometry: Geometries, coverage: PreparedExtent) -> tuple[Geometries, NDArray[np.intp]]:
    """The parts of polygons inside a coverage, each with the index of its polygon."""
    parts, owner = coverage.clip(geometry)
    kept = shapely.area(parts) > MIN_AREA_PX2
    return parts[kept], owner[kept]


def _common_area(one: Geometries, other: Geometries) -> NDArray[np.float64]:
    """The common area of pairs of polygons; those with equal vertices, which are most, need no intersection."""
    area: NDArray[np.float64] = shapely.area(one)
    for first in range(0, len(one), PAIRS_PER_BATCH):
        batch = slice(first, first + PAIRS_PER_BATCH)
        differ = first + np.flatnonzero(~shapely.equals_exact(one[batch], other[batch], 0))
        area[differ] = shapely.area(shapely.intersection(one[differ], other[differ]))
    return area


def _adjacent_pairs(first: SceneOverlap, second: SceneOverlap) -> Pairs:
    """Index pairs of polygons that share a stretch of the edge between both coverages, and no area."""
    seam = _lines(
        shapely.intersection(shapely.boundary(first.coverage.geometry), shapely.boundary(second.coverage.geometry))
    )
    none = np.empty((0, 2), np.int64)
    if not shapely.length(seam):
        return none
    (lines, owner), (others, other_owner) = (_shared_lines(side.outlines.geometry, seam) for side in (first, second))
    near, far = shapely.STRtree(others).query(lines, predicate="intersects")
    if not len(near):
        return none
    shared = shapely.length(shapely.intersection(lines[near], others[far])) > MIN_AREA_PX2
    pairs: Pairs = np.column_stack([owner[near[shared]], other_owner[far[shared]]]).astype(np.int64)
    pairs = pairs[first.outlines.class_name[pairs[:, 0]] == second.outlines.class_name[pairs[:, 1]]]
    common = _common_area(first.outlines.geometry[pairs[:, 0]], second.outlines.geometry[pairs[:, 1]])
    apart: Pairs = pairs[common <= MIN_AREA_PX2]
    return apart


def _lines(geometry: shapely.Geometry) -> shapely.Geometry:
    """The lines in the intersection of two boundaries."""
    parts = shapely.get_parts(geometry)
    return shapely.line_merge(shapely.union_all(parts[shapely.get_dimensions(parts) == 1]))


def _shared_lines(geometry: Geometries, seam: shapely.Geometry) -> tuple[Geometries, NDArray[np.int64]]:
    """The parts of polygons' boundaries on a line, each with the index of its polygon."""
    shapely.prepare(seam)
    index = np.flatnonzero(shapely.intersects(seam, geometry))
    found = shapely.intersection(shapely.boundary(geometry[index]), seam)
    long = shapely.length(found) > MIN_AREA_PX2
    return found[long], index[long]


def _coverage_levels(geometry: Geometries, by: SceneOverlap) -> NDArray[np.int64]:
    """How a scene covers polygons: `NOT_COVERED`, `NEAR_EDGE` or `INTERIOR`."""
    # On one lattice the comparison is exact; off it, resampled edges differ by a fraction of a pixel.
    vertices = shapely.get_coordinates(by.coverage.geometry)
    on_lattice = np.array_equal(vertices, np.round(vertices))
    levels = np.full(len(geometry), NOT_COVERED)
    covered = (by.coverage if on_lattice else by.coverage.expanded(TOLERANCE_PX)).covers(geometry)
    levels[covered] = NEAR_EDGE
    levels[covered & by.coverage.shrunk(by.margin_px).covers(geometry)] = INTERIOR
    return levels
