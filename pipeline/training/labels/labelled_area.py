"""Labelled area: polygons of the land that was labelled; pixels outside are unlabelled in any label file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import LabelError
from pipeline.grid import RasterGrid, is_on_earth
from pipeline.scene import Scene
from pipeline.training.labels.polygon_labels import (
    UNLABELLED,
    Labels,
    burn_shapes,
    grid_outline,
    polygons_touching,
    read_polygons,
)


class LabelledArea:
    """A polygon file of the land that was labelled, in any CRS."""

    def __init__(self, path: str | Path) -> None:
        """Read and repair the polygons; LabelError when unreadable, without CRS, or without a polygon."""
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise LabelError(f"labelled_area: {path}: no such file; name a polygon file or leave the setting out")
        self._frame = read_polygons(self.path, ["looked at"]).frame
        if self._frame.empty:
            raise LabelError(
                f"labelled_area: {path} holds no polygon; draw the land that was labelled, or leave the setting out"
            )

    def polygons_touching(self, scene: Scene) -> NDArray[np.object_]:
        """The polygons that touch a scene, in the scene's CRS; empty when none does."""
        if not is_on_earth(scene.grid.crs):
            raise LabelError(
                f"labelled_area: {self.path} cannot be laid on {scene.location}, which is not georeferenced; "
                "give its CRS with reading.crs, or mark unlabelled pixels with the value 255 in its mask"
            )
        return polygons_touching(self._frame, scene.grid)[0]


class ClippedLabels:
    """Labels clipped to polygons; pixels outside are unlabelled."""

    def __init__(self, labels: Labels, area: NDArray[np.object_], grid: RasterGrid) -> None:
        self.grid = grid
        self._labels = labels
        self._area = area
        self._tree = shapely.STRtree(area)

    def burn(self, window: Window) -> NDArray[np.uint8]:
        """The target of a window, unlabelled where a pixel's centre lies outside the polygons."""
        part, target = self.grid.part(window), self._labels.burn(window)
        near = self._area[np.sort(self._tree.query(grid_outline(part)))]
        target[:, ~burn_shapes(near, part)] = UNLABELLED
        return target

    def close(self) -> None:
        """Close the clipped labels."""
        self._labels.close()
