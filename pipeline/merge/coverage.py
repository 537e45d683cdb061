"""Valid-data coverage of a scene: the polygon around its valid pixels, in pixel coordinates."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import shapely
from rasterio.features import shapes
from rasterio.windows import Window

from pipeline.merge.scenes import MergedScene
from pipeline.mosaic import MASK_NODATA, read_mask_blocks

BLOCK_PX = 2048
"""Side of the blocks in which a mask is read, pixels."""
CACHE_SIZE = 32


class CoverageCache:
    """Least-recently-used cache of scenes' coverages."""

    def __init__(self) -> None:
        self._cache: OrderedDict[str, shapely.Geometry] = OrderedDict()

    def get(self, scene: MergedScene) -> shapely.Geometry:
        """The coverage of a scene, `x = col, y = row`."""
        if scene.id not in self._cache:
            self._cache[scene.id] = scene_coverage(scene)
            if len(self._cache) > CACHE_SIZE:
                self._cache.popitem(last=False)
        self._cache.move_to_end(scene.id)
        return self._cache[scene.id]


def scene_coverage(scene: MergedScene) -> shapely.Geometry:
    """The union of a scene's valid pixels, `x = col, y = row`; empty if there are none."""
    if scene.is_full:
        return shapely.box(0, 0, scene.grid.width, scene.grid.height)
    return shapely.union_all([*_valid_areas(scene)])


def _valid_areas(scene: MergedScene) -> Iterator[shapely.Geometry]:
    for window, values in read_mask_blocks(scene.mask, BLOCK_PX):
        valid = values != MASK_NODATA
        if valid.all():
            yield _box(window)
        elif valid.any():
            for outline, _ in shapes(valid.astype(np.uint8), mask=valid, connectivity=4):
                rings = [np.add(ring, (window.col_off, window.row_off)) for ring in outline["coordinates"]]
                yield shapely.Polygon(rings[0], rings[1:])


def _box(window: Window) -> shapely.Geometry:
    left, top = window.col_off, window.row_off
    return shapely.box(left, top, left + window.width, top + window.height)
