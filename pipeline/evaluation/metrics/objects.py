"""Objects of a scene, in reference and prediction: their matches and the pixel under each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.evaluation.metrics.matching import THRESHOLDS, match_polygons
from pipeline.grid import RasterGrid


@dataclass(frozen=True, kw_only=True)
class PlacedObjects:
    """Objects of one class and scene, of the reference or of the prediction."""

    pixel: NDArray[np.int64]
    """`(objects, 2)`: row and column of the pixel under a point of the object near its centre."""
    matched: NDArray[np.bool_]
    """`(objects, thresholds)`: True = it has a partner at an IoU above each of `THRESHOLDS`."""

    def select(self, index: NDArray[np.bool_] | NDArray[np.intp]) -> PlacedObjects:
        """The objects of a mask or of indices."""
        return PlacedObjects(pixel=self.pixel[index], matched=self.matched[index])

    def by_block(self, side: int) -> dict[tuple[int, int], PlacedObjects]:
        """The objects of each block of `side` x `side` pixels, by the block's first row and column."""
        blocks, member = np.unique(self.pixel // side * side, axis=0, return_inverse=True)
        order = np.argsort(member, kind="stable")
        ends = np.cumsum(np.bincount(member, minlength=len(blocks)))
        parts = np.split(order, ends[:-1]) if len(blocks) else []
        return {(int(row), int(col)): self.select(part) for (row, col), part in zip(blocks, parts, strict=True)}


def place_objects(
    reference: NDArray[np.object_], predicted: NDArray[np.object_], grid: RasterGrid
) -> tuple[PlacedObjects, PlacedObjects]:
    """Match the objects of one class, in the grid's CRS and clipped to it, and locate each on the prediction's grid."""
    pairs = match_polygons(reference, predicted, min_iou=THRESHOLDS[0])
    return (
        _placed(reference, grid, pairs.reference_index, pairs.iou),
        _placed(predicted, grid, pairs.predicted_index, pairs.iou),
    )


def _placed(
    polygons: NDArray[np.object_], grid: RasterGrid, paired: NDArray[np.intp], iou: NDArray[np.float64]
) -> PlacedObjects:
    matched = np.zeros((len(polygons), len(THRESHOLDS)), bool)
    matched[paired] = iou[:, None] > np.array(THRESHOLDS)
    return PlacedObjects(pixel=_pixels(polygons, grid), matched=matched)


def _pixels(polygons: NDArray[np.object_], grid: RasterGrid) -> NDArray[np.int64]:
    """The pixels under the objects' points on surface."""
    points = shapely.point_on_surface(polygons)
    col, row = ~grid.transform @ (shapely.get_x(points), shapely.get_y(points))
    pixels = np.stack([np.floor(row), np.floor(col)], axis=1).astype(np.int64)
    clipped: NDArray[np.int64] = np.clip(pixels, 0, (grid.height - 1, grid.width - 1))
    return clipped
