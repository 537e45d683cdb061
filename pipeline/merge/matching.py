"""Two scenes that saw the same ground: which of their polygons are one thing, and which scene saw it better.

What both saw is compared: the parts of polygons on the ground that the scenes share. Two parts of one class are the
same where they have so much of the smaller in common. Where scenes only meet, polygons go on that share a stretch
of the line on which the data of both end.

    both saw it whole     the preferred scene's stands, or that of the scene in which it lies farther from the edge
    one saw it whole      that one stands
    neither saw it whole  both stand, and are joined
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.grid import RasterGrid
from pipeline.merge.coverage import CoverageCache
from pipeline.merge.extent import PreparedExtent
from pipeline.merge.projection import off_plane, onto_plane
from pipeline.merge.reading import Outlines, read_outlines
from pipeline.merge.scenes import MergedScene
from pipeline.merge.spec import MergeSpec

Geometries = NDArray[np.object_]
Pairs = NDArray[np.int64]

SLACK_PX = 0.25
"""A polygon lies on the ground when it leaves it by no more than this, where pixels are not on one lattice."""
MIN_AREA_PX2 = 1e-6
"""Smaller parts are the rounding of floats."""
AT_ONCE = 8192
"""So many pairs of polygons are intersected at once."""
UNSEEN, NEAR_EDGE, WELL = 0, 1, 2
"""How a scene saw the place of a polygon: not all of it; all of it; all of it and away from the end of its data."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """What two scenes say about each other's polygons; numbers are those of the polygons in their files."""

    beats: Pairs
    """`(n, 2)`: the preferred scene's polygon stands for the other's."""
    yields: Pairs
    """`(n, 2)`: the other's polygon, second, stands for the preferred scene's, first."""
    joins: Pairs
    """`(n, 2)`: polygons that go on in each other."""
    lone: NDArray[np.int64]
    """`(n,)`: polygons of the other scene where the preferred scene saw all and shows nothing like them."""


@dataclass(frozen=True, kw_only=True)
class SceneOverlap:
    """One of the two scenes, on the plane that they share."""

    outlines: Outlines
    """Its polygons that touch the other's ground; the geometry is on the plane."""
    ground: PreparedExtent
    """What it saw."""
    margin_px: float
    """How near to the end of its data it is less trusted; pixels of the plane."""


def match_scenes(preferred: MergedScene, other: MergedScene, grounds: CoverageCache, spec: MergeSpec) -> Links:
    """Compare two scenes.

    Args:
        preferred: whose word counts where both saw all.
        other: the other.
        grounds: what they saw.
        spec: the rule.

    Raises:
        SceneError: a file is damaged, or the CRS of one has no place for the other.
    """
    plane = preferred.grid
    mine = grounds.of(preferred)
    theirs = _moved_ground(other, grounds.of(other), plane)
    shapely.prepare(mine)
    if not shapely.dwithin(mine, theirs, SLACK_PX):
        return _links(np.empty((0, 2), np.int64))
    scale = other.grid.resolution_m / plane.resolution_m
    window = _shared_window(mine, theirs)
    around = shapely.buffer(window, spec.margin_px * max(1.0, scale) + 1, join_style="mitre")
    mine, theirs = shapely.intersection(mine, around), shapely.intersection(theirs, around)
    grounds_here = PreparedExtent(mine), PreparedExtent(theirs)
    first = _side(preferred, plane, window, grounds_here, margin_px=spec.margin_px)
    second = _side(other, plane, window, grounds_here[::-1], margin_px=spec.margin_px * scale)
    return link_sides(first, second, same=spec.same, silences={*preferred.classes.values()})


def link_sides(first: SceneOverlap, second: SceneOverlap, *, same: float, silences: set[str]) -> Links:
    """Compare two scenes on one plane, the first preferred.

    Args:
        first: the preferred scene.
        second: the other.
        same: so much of the smaller of two parts is common where they are the same.
        silences: names of classes that the model of the first looks for.
    """
    pairs = np.unique(np.vstack([_same_parts(first, second, same), _touching(first, second)]), axis=0)
    in_second = _seen(first.outlines.geometry, second)[pairs[:, 0]]
    second_seen = _seen(second.outlines.geometry, first)
    in_first = second_seen[pairs[:, 1]]
    fids = np.column_stack([first.outlines.fid[pairs[:, 0]], second.outlines.fid[pairs[:, 1]]])
    joined = (in_first == UNSEEN) & (in_second == UNSEEN)
    lone = second_seen == WELL
    lone[pairs[:, 1]] = False
    lone &= np.isin(second.outlines.class_name.astype(str), sorted(silences))
    return Links(
        beats=fids[(in_first >= in_second) & ~joined],
        yields=fids[in_first < in_second],
        joins=fids[joined],
        lone=second.outlines.fid[lone],
    )


def _links(none: Pairs) -> Links:
    return Links(beats=none, yields=none, joins=none, lone=none[:, 0])


def _moved_ground(scene: MergedScene, ground: shapely.Geometry, plane: RasterGrid) -> shapely.Geometry:
    on_earth = off_plane(np.array([ground]), scene.grid.transform)
    return onto_plane(on_earth, scene.grid.crs, plane)[0]


def _shared_window(mine: shapely.Geometry, theirs: shapely.Geometry) -> shapely.Geometry:
    """The box, on the plane, of what both may have seen, and a little more, for scenes that only meet."""
    low, high = np.maximum(mine.bounds, theirs.bounds)[:2], np.minimum(mine.bounds, theirs.bounds)[2:]
    ends = np.minimum(low, high) - SLACK_PX, np.maximum(low, high) + SLACK_PX
    return shapely.box(*ends[0], *ends[1])


def _side(
    scene: MergedScene,
    plane: RasterGrid,
    window: shapely.Geometry,
    grounds: tuple[PreparedExtent, PreparedExtent],
    *,
    margin_px: float,
) -> SceneOverlap:
    """The polygons of a scene on the plane, those that touch the other's ground; its own comes first."""
    own, others = grounds
    corners = onto_plane(off_plane(np.array([window]), plane.transform), plane.crs, scene.grid)
    found = read_outlines(scene, off_plane(corners, scene.grid.transform)[0].bounds)
    geometry = onto_plane(found.geometry, scene.grid.crs, plane)
    kept = others.meets(geometry)
    outlines = Outlines(fid=found.fid[kept], class_name=found.class_name[kept], geometry=geometry[kept])
    return SceneOverlap(outlines=outlines, ground=own, margin_px=margin_px)


def _same_parts(first: SceneOverlap, second: SceneOverlap, same: float) -> Pairs:
    """Pairs of polygons with parts that are the same on the ground that both saw."""
    parts, owner = _parts_on(first.outlines.geometry, second.ground)
    others, other_owner = _parts_on(second.outlines.geometry, first.ground)
    near, far = shapely.STRtree(others).query(parts, predicate="intersects")
    alike = first.outlines.class_name[owner[near]] == second.outlines.class_name[other_owner[far]]
    near, far = near[alike], far[alike]
    common = _common_area(parts[near], others[far])
    smaller = np.minimum(shapely.area(parts)[near], shapely.area(others)[far])
    linked = (common > MIN_AREA_PX2) & (common >= same * smaller)
    return np.column_stack([owner[near[linked]], other_owner[far[linked]]]).astype(np.int64)


def _parts_on(geometry: Geometries, ground: PreparedExtent) -> tuple[Geometries, NDArray[np.intp]]:
    """The parts of polygons that lie on a ground, each with the place of its polygon."""
    parts, owner = ground.clip(geometry)
    kept = shapely.area(parts) > MIN_AREA_PX2
    return parts[kept], owner[kept]


def _common_area(one: Geometries, other: Geometries) -> NDArray[np.float64]:
    """The area that pairs of polygons have in common; most are the same vertex by vertex, which is seen at once."""
    area: NDArray[np.float64] = shapely.area(one)
    for first in range(0, len(one), AT_ONCE):
        lot = slice(first, first + AT_ONCE)
        differ = first + np.flatnonzero(~shapely.equals_exact(one[lot], other[lot], 0))
        area[differ] = shapely.area(shapely.intersection(one[differ], other[differ]))
    return area


def _touching(first: SceneOverlap, second: SceneOverlap) -> Pairs:
    """Pairs of polygons that share a stretch of the line on which the data of both scenes end, and no area."""
    seam = _lines(
        shapely.intersection(shapely.boundary(first.ground.geometry), shapely.boundary(second.ground.geometry))
    )
    none = np.empty((0, 2), np.int64)
    if not shapely.length(seam):
        return none
    (stretches, owner), (others, other_owner) = (_stretches(side.outlines.geometry, seam) for side in (first, second))
    near, far = shapely.STRtree(others).query(stretches, predicate="intersects")
    if not len(near):
        return none
    shared = shapely.length(shapely.intersection(stretches[near], others[far])) > MIN_AREA_PX2
    pairs: Pairs = np.column_stack([owner[near[shared]], other_owner[far[shared]]]).astype(np.int64)
    pairs = pairs[first.outlines.class_name[pairs[:, 0]] == second.outlines.class_name[pairs[:, 1]]]
    common = _common_area(first.outlines.geometry[pairs[:, 0]], second.outlines.geometry[pairs[:, 1]])
    apart: Pairs = pairs[common <= MIN_AREA_PX2]
    return apart


def _lines(geometry: shapely.Geometry) -> shapely.Geometry:
    """The lines of what two boundaries have in common."""
    parts = shapely.get_parts(geometry)
    return shapely.line_merge(shapely.union_all(parts[shapely.get_dimensions(parts) == 1]))


def _stretches(geometry: Geometries, seam: shapely.Geometry) -> tuple[Geometries, NDArray[np.int64]]:
    """What polygons have of a line, each with the place of its polygon."""
    shapely.prepare(seam)
    place = np.flatnonzero(shapely.intersects(seam, geometry))
    found = shapely.intersection(shapely.boundary(geometry[place]), seam)
    long = shapely.length(found) > MIN_AREA_PX2
    return found[long], place[long]


def _seen(geometry: Geometries, by: SceneOverlap) -> NDArray[np.int64]:
    """How a scene saw the places of polygons."""
    vertices = shapely.get_coordinates(by.ground.geometry)
    on_lattice = np.array_equal(vertices, np.round(vertices))
    levels = np.full(len(geometry), UNSEEN)
    covered = (by.ground if on_lattice else by.ground.widened(SLACK_PX)).covers(geometry)
    levels[covered] = NEAR_EDGE
    levels[covered & by.ground.narrowed(by.margin_px).covers(geometry)] = WELL
    return levels
