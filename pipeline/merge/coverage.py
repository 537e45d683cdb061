"""The ground that a scene has seen: its valid pixels, as an area on its own pixel plane."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import shapely
from rasterio.features import shapes
from rasterio.windows import Window

from pipeline.merge.scenes import MergedScene
from pipeline.mosaic import MASK_NODATA, read_mask_blocks

SIDE = 2048
"""Pixels on each side of a block that is read at once."""
KEPT = 32
"""So many scenes' grounds stay in memory."""


class CoverageCache:
    """The grounds of scenes, read when asked for; the last ones are kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, shapely.Geometry] = OrderedDict()

    def of(self, scene: MergedScene) -> shapely.Geometry:
        """The ground of a scene on its pixel plane.

        Raises:
            SceneError: its mask is damaged.
        """
        if scene.id not in self._kept:
            self._kept[scene.id] = scene_coverage(scene)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(scene.id)
        return self._kept[scene.id]


def scene_coverage(scene: MergedScene) -> shapely.Geometry:
    """The union of a scene's valid pixels, `x = col, y = row`; empty where there are none."""
    if scene.is_full:
        return shapely.box(0, 0, scene.grid.width, scene.grid.height)
    return shapely.union_all([*_pieces(scene)])


def _pieces(scene: MergedScene) -> Iterator[shapely.Geometry]:
    for window, values in read_mask_blocks(scene.mask, SIDE):
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
