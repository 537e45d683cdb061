"""True and found objects of a scene: which match, where each lies, and which lie on ground that counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.evaluation.metrics.matching import THRESHOLDS, match_polygons
from pipeline.grid import RasterGrid


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
    pairs = match_polygons(truth, found, least_iou=THRESHOLDS[0])
    return (
        PlacedObjects(place=_places(truth, grid), matched=_matched(len(truth), pairs.in_truth, pairs.iou)),
        PlacedObjects(place=_places(found, grid), matched=_matched(len(found), pairs.in_found, pairs.iou)),
    )


def _matched(count: int, index: NDArray[np.intp], iou: NDArray[np.float64]) -> NDArray[np.bool_]:
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
