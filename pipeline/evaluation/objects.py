"""True and found objects of a scene: which match, where each lies, and which lie on ground that counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.grid import RasterGrid
from pipeline.scoring import THRESHOLDS


@dataclass(frozen=True, kw_only=True)
class PlacedObjects:
    """Objects of one class and scene, on one side of the comparison."""

    place: NDArray[np.int64]
    """`(objects, 2)`: row and column of the pixel under a point of the object near its centre."""
    matched: NDArray[np.bool_]
    """`(objects, bounds)`: whether it has a partner at an IoU above each of `THRESHOLDS`."""

    def those(self, kept: NDArray[np.bool_] | NDArray[np.intp]) -> PlacedObjects:
        """Some of them."""
        return PlacedObjects(place=self.place[kept], matched=self.matched[kept])

    def by_square(self, side: int) -> dict[tuple[int, int], PlacedObjects]:
        """Those in each square of so many pixels, by its first row and column."""
        squares, member = np.unique(self.place // side * side, axis=0, return_inverse=True)
        order = np.argsort(member, kind="stable")
        ends = np.cumsum(np.bincount(member, minlength=len(squares)))
        parts = np.split(order, ends[:-1]) if len(squares) else []
        return {(int(row), int(col)): self.those(part) for (row, col), part in zip(squares, parts, strict=True)}


def place_objects(
    truth: NDArray[np.object_], found: NDArray[np.object_], grid: RasterGrid
) -> tuple[PlacedObjects, PlacedObjects]:
    """Match objects of one class, and place them.

    Args:
        truth: polygons or multipolygons in the grid's CRS, clipped to it.
        found: the same.
        grid: of the result.
    """
    pairs = match_objects(truth, found)
    return (
        PlacedObjects(place=_places(truth, grid), matched=_matched(len(truth), pairs.in_truth, pairs.iou)),
        PlacedObjects(place=_places(found, grid), matched=_matched(len(found), pairs.in_found, pairs.iou)),
    )


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Matched objects; each object is in at most one pair."""

    in_truth: NDArray[np.int64]
    """`(pairs,)`: index of the true object."""
    in_found: NDArray[np.int64]
    """`(pairs,)`: index of the found one."""
    iou: NDArray[np.float64]
    """`(pairs,)`: their intersection over union, above the least of `THRESHOLDS`."""


def match_objects(truth: NDArray[np.object_], found: NDArray[np.object_]) -> Pairs:
    """Pairs in order of falling IoU, each object at most once, as in `pipeline.scoring.score_polygons`.

    The pairs for a higher bound are the first of these.
    """
    truth, found = _valid(truth), _valid(found)
    in_found, in_truth = shapely.STRtree(truth).query(found, predicate="intersects")
    shared = shapely.area(shapely.intersection(truth[in_truth], found[in_found]))
    iou = shared / (shapely.area(truth)[in_truth] + shapely.area(found)[in_found] - shared)
    order = np.lexsort((in_found, in_truth, -iou))
    order = order[iou[order] > THRESHOLDS[0]]
    kept, taken_truth, taken_found = [], set(), set()
    for pair in order.tolist():
        if in_truth[pair] not in taken_truth and in_found[pair] not in taken_found:
            taken_truth.add(in_truth[pair])
            taken_found.add(in_found[pair])
            kept.append(pair)
    return Pairs(in_truth=in_truth[kept], in_found=in_found[kept], iou=iou[kept])


def _valid(polygons: NDArray[np.object_]) -> NDArray[np.object_]:
    broken = ~shapely.is_valid(polygons)
    repaired = polygons.copy()
    repaired[broken] = shapely.make_valid(polygons[broken])
    return repaired


def _matched(count: int, index: NDArray[np.int64], iou: NDArray[np.float64]) -> NDArray[np.bool_]:
    matched = np.zeros((count, len(THRESHOLDS)), bool)
    matched[index] = iou[:, None] > np.array(THRESHOLDS)
    return matched


def _places(polygons: NDArray[np.object_], grid: RasterGrid) -> NDArray[np.int64]:
    """The pixels under the objects' points on surface."""
    points = shapely.point_on_surface(polygons)
    col, row = ~grid.transform @ (shapely.get_x(points), shapely.get_y(points))
    places = np.stack([np.floor(row), np.floor(col)], axis=1).astype(np.int64)
    clipped: NDArray[np.int64] = np.clip(places, 0, (grid.height - 1, grid.width - 1))
    return clipped
