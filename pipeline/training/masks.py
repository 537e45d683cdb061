"""Mask rasters as labels: a class per pixel value, on the scene's own grid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import LabelError, SceneError
from pipeline.grid import RasterGrid
from pipeline.scene import ReadingSpec, Scene, SceneReader, describe_scene
from pipeline.training.labels import UNLABELLED


class MaskLabels:
    """A mask raster on the scene's own grid; resampled scenes take the mask value under each pixel's centre."""

    def __init__(self, mask: Scene, grid: RasterGrid, *, classes: int) -> None:
        self.grid = grid
        self.classes = classes
        self._mask = mask
        self._reader = SceneReader(mask)

    def burn(self, window: Window) -> NDArray[np.uint8]:
        """The target of a window; raises LabelError for a value that is no class."""
        rows = self._under(window.row_off, window.height, axis=0)
        cols = self._under(window.col_off, window.width, axis=1)
        source = Window(cols[0], rows[0], cols[-1] - cols[0] + 1, rows[-1] - rows[0] + 1)
        pixels, valid = self._reader.read(source)
        inner = np.ix_(rows - rows[0], cols - cols[0])
        values, known = pixels[0][inner], valid[inner] & (pixels[0][inner] != UNLABELLED)
        self._check(values[known])
        target = np.stack([(values == k).astype(np.uint8) for k in range(1, self.classes + 1)])
        target[:, ~known] = UNLABELLED
        return target

    def touches(self, window: Window) -> bool:
        """Whether some pixel of the window is of a class."""
        return bool((self.burn(window) == 1).any())

    def close(self) -> None:
        """Close the mask's handles."""
        self._reader.close()

    def _under(self, start: int, count: int, *, axis: int) -> NDArray[np.int64]:
        """Mask rows (or columns) under the centres of grid rows (or columns)."""
        ratio = self._mask.grid.shape[axis] / self.grid.shape[axis]
        centres = (np.arange(start, start + count) + 0.5) * ratio
        under: NDArray[np.int64] = np.floor(centres).astype(np.int64)
        return under

    def _check(self, values: NDArray[np.generic]) -> None:
        strange = np.setdiff1d(values, np.arange(self.classes + 1))
        if strange.size:
            raise LabelError(
                f"{self._mask.location}: a mask holds 0 (none), 1 to {self.classes} (the classes in order) and 255 or "
                f"nodata (unlabelled), but this one has {strange[:5].tolist()}; set classes or recode the mask"
            )


def open_mask_labels(path: Path, scene: Scene, native: RasterGrid, *, classes: int) -> MaskLabels:
    """A mask raster that lies on a scene pixel by pixel.

    Args:
        path: a one-band GeoTIFF.
        scene: the scene as it is read, perhaps resampled.
        native: the grid of the scene's file.
        classes: number of classes.

    Raises:
        LabelError: when the mask has another size, CRS or place.
    """
    try:
        mask = describe_scene(path)
        if mask.nodata[0] == 0:  # such masks mean "none" by 0, not "unlabelled"
            mask = describe_scene(path, ReadingSpec(ignore_nodata=True))
    except SceneError as error:
        raise LabelError(f"the mask of the scene {scene.id} cannot be used: {error}") from error
    if mask.grid.shape != native.shape:
        raise LabelError(
            f"{path}: a mask must have the size of its scene {scene.location}, {native.height} x {native.width} px, "
            f"not {mask.grid.height} x {mask.grid.width}; cut or warp it to the scene's grid"
        )
    if mask.grid.crs != native.crs:
        raise LabelError(f"{path}: its CRS {mask.grid.crs} is not that of its scene {scene.location}, {native.crs}")
    pixel = abs(native.transform.determinant) ** 0.5
    if not mask.grid.transform.almost_equals(native.transform, precision=0.01 * pixel):
        raise LabelError(
            f"{path}: its transform {tuple(mask.grid.transform)[:6]} is not that of its scene {scene.location}, "
            f"{tuple(native.transform)[:6]}; warp it to the scene's grid"
        )
    if len(mask.bands) != 1:
        raise LabelError(f"{path}: a mask has one band, not {len(mask.bands)}")
    return MaskLabels(mask, scene.grid, classes=classes)
