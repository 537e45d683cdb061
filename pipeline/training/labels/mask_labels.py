"""Mask rasters as labels: the class of each scene pixel is that of the mask pixel under its centre.

    scene pixel -> (its transform) -> scene CRS -> mask CRS -> (inverse of the mask's transform) -> mask pixel

A mask without georeferencing must have the size of its scene's file, and is aligned with it pixel by pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from pyproj import Transformer
from rasterio.windows import Window

from pipeline.errors import LabelError, SceneError
from pipeline.grid import RasterGrid, is_on_earth
from pipeline.scene import Scene, SceneSource, describe_scene
from pipeline.training.images import open_reader, reading_for
from pipeline.training.labels.class_map import (
    UNLABELLED_CLASS,
    Meanings,
    mask_meanings,
    unknown_values_error,
    value_text,
)
from pipeline.training.labels.polygon_labels import UNLABELLED, degrees_text, grid_outline

UNDEFINED = -3
"""Code of mask values without a meaning in the class map."""
MAX_MASK_PIXELS = 2**24
"""Largest number of mask pixels read at a time."""
EDGE = 1e-6
"""A centre within this distance (in mask pixels) of the edge between two mask pixels belongs to the second."""
Indices = NDArray[np.int64]


class MaskLabels:
    """Labels of a scene from a mask raster; pixels that it does not cover are unlabelled."""

    def __init__(
        self, mask: Scene, grid: RasterGrid, lookup: MaskPixelLookup, *, meanings: Meanings, names: Sequence[str]
    ) -> None:
        """`meanings` map mask values to indices of `names`, the classes."""
        self.grid = grid
        self.classes = len(names)
        self._mask, self._lookup = mask, lookup
        self._names, self._meanings = names, meanings
        self._nodata = mask.nodata[0]
        (file,) = mask.files
        self._reader = open_reader(replace(mask, files=(replace(file, nodata=(None,)),)))
        self._table = self._code_table(np.dtype(mask.dtype))

    def burn(self, window: Window) -> NDArray[np.uint8]:
        """The target of a window; raises LabelError for a value without a meaning."""
        rows, cols = self._lookup.of(window)
        inside = (rows >= 0) & (rows < self._mask.grid.height) & (cols >= 0) & (cols < self._mask.grid.width)
        target = np.full((self.classes, window.height, window.width), UNLABELLED, np.uint8)
        if not inside.any():
            return target
        top, left, bottom, right = _box(rows, cols, inside)
        if (bottom - top) * (right - left) > MAX_MASK_PIXELS and window.height * window.width > 1:
            return self._burn_halves(window)
        codes = self._codes(Window(left, top, right - left, bottom - top))
        here = codes[np.clip(rows - top, 0, bottom - top - 1), np.clip(cols - left, 0, right - left - 1)]
        here = np.where(inside, here, UNLABELLED_CLASS)
        known = here != UNLABELLED_CLASS
        for index in range(self.classes):
            target[index][known] = here[known] == index
        return target

    def close(self) -> None:
        """Close the mask's handles."""
        self._reader.close()

    def _burn_halves(self, window: Window) -> NDArray[np.uint8]:
        """Burn a window in two halves, so that memory does not grow with the ratio of pixel sizes."""
        top, left = (window.height // 2, 0) if window.height > 1 else (0, window.width // 2)
        parts = [
            Window(window.col_off, window.row_off, left or window.width, top or window.height),
            Window(window.col_off + left, window.row_off + top, window.width - left, window.height - top),
        ]
        return np.concatenate([self.burn(part) for part in parts], axis=1 if top else 2)

    def _codes(self, window: Window) -> NDArray[np.int16]:
        """The meaning of each mask pixel of a window, `(height, width)`."""
        pixels, valid = self._reader.read(window)
        values = pixels[0]
        if self._table is not None:
            codes = self._table[values.astype(np.int64) - np.iinfo(values.dtype).min]
        else:
            different, place = np.unique(values, return_inverse=True)
            codes = np.array([self._code(value) for value in different], np.int16)[place].reshape(values.shape)
        unknown = np.unique(values[valid & (codes == UNDEFINED)])
        if unknown.size:
            texts = [value_text(value.item()) for value in unknown]
            raise unknown_values_error(f"{self._mask.location}: this mask has", texts, self._meanings, self._names)
        return np.where(valid, codes, np.int16(UNLABELLED_CLASS))

    def _code_table(self, dtype: np.dtype[np.generic]) -> NDArray[np.int16] | None:
        """Codes of all values of a small type, in order; None for others."""
        if dtype.kind not in "iu" or dtype.itemsize > 2:
            return None
        info = np.iinfo(dtype)  # type: ignore[type-var]
        table = np.full(int(info.max) - int(info.min) + 1, UNDEFINED, np.int16)
        known = [text for text in self._meanings if text.lstrip("-").isdecimal()]
        nodata = [] if self._nodata is None else [value_text(float(self._nodata))]
        for value in (int(text) for text in {*known, *nodata} if text.lstrip("-").isdecimal()):
            if info.min <= value <= info.max:
                table[value - int(info.min)] = self._code(value)
        return table

    def _code(self, value: float) -> int:
        """The meaning of a value; nodata other than 0 is unlabelled unless the class map assigns it."""
        if (text := value_text(float(value))) in self._meanings:
            return self._meanings[text]
        return UNLABELLED_CLASS if self._nodata not in (None, 0) and value == self._nodata else UNDEFINED


class MaskPixelLookup:
    """Finds the mask pixel under the centre of each scene pixel."""

    def __init__(self, grid: RasterGrid, mask: RasterGrid, *, stretched: bool = False) -> None:
        """By map coordinates; `stretched`: the mask covers the grid exactly, without georeferencing."""
        self._to_crs, self._to_mask = grid.transform, ~mask.transform
        self._to_mask_crs: Transformer | None = None
        if stretched:
            self._to_crs = Affine.scale(mask.width / grid.width, mask.height / grid.height)
            self._to_mask = Affine.identity()
        elif grid.crs != mask.crs:
            self._to_mask_crs = Transformer.from_crs(grid.crs.to_wkt(), mask.crs.to_wkt(), always_xy=True)

    def of(self, window: Window) -> tuple[Indices, Indices]:
        """Mask rows and columns, which broadcast to `(height, width)`; may lie outside the mask."""
        rows = np.arange(window.row_off, window.row_off + window.height)[:, None] + 0.5
        cols = np.arange(window.col_off, window.col_off + window.width)[None] + 0.5
        if self._to_mask_crs is None:
            direct = self._to_mask @ self._to_crs
            if not direct.b and not direct.d:
                return _whole(direct.e * rows + direct.f), _whole(direct.a * cols + direct.c)
            across, down = direct.a * cols + direct.b * rows + direct.c, direct.d * cols + direct.e * rows + direct.f
            return _whole(down), _whole(across)
        there, back = self._to_crs, self._to_mask
        across, down = there.a * cols + there.b * rows + there.c, there.d * cols + there.e * rows + there.f
        x, y = self._to_mask_crs.transform(across, down)
        return _whole(back.d * x + back.e * y + back.f), _whole(back.a * x + back.b * y + back.c)


def open_mask_labels(
    path: Path, scene: Scene, native: RasterGrid, *, classes: int | Sequence[str], meanings: Meanings | None = None
) -> MaskLabels:
    """Open a mask of one band on the scene's grid, resampled by nearest neighbour where the grids differ.

    `scene` may be resampled, `native` is the grid of its file. `classes` are names or their number; by default mask
    value 0 is no class and `k` is class `k`, counted from 1.
    """
    names = [f"class {k}" for k in range(1, classes + 1)] if isinstance(classes, int) else classes
    try:
        mask = describe_scene(path, reading_for(path), source=SceneSource(georeferenced=False))
    except SceneError as error:
        raise LabelError(f"the mask of the scene {scene.id} cannot be used: {error}") from error
    if len(mask.bands) != 1:
        raise LabelError(
            f"{path}: a mask has one band, not {len(mask.bands)}; write the value of each pixel's class to one band"
        )

    # Without georeferencing on both sides, pixels correspond by row and column.
    stretched = not (is_on_earth(mask.grid.crs) and is_on_earth(native.crs))
    if stretched and mask.grid.shape != native.shape:
        lacks = "it" if not is_on_earth(mask.grid.crs) else "the scene"
        raise LabelError(
            f"{mask.location}: a mask must have the size of its scene {scene.location}, {native.height} rows x "
            f"{native.width} columns, not {mask.grid.height} x {mask.grid.width}, because {lacks} is not "
            f"georeferenced; cut it, e.g. gdal_translate -srcwin 0 0 {native.width} {native.height}, georeference it, "
            "or leave both out"
        )
    if not stretched and not _overlap(mask.grid, native):
        raise LabelError(
            f"{path}: covers {_extent_text(mask.grid)} and so does not overlap its scene {scene.location}, "
            f"which covers {_extent_text(native)}; check the CRS and place of both"
        )
    lookup = MaskPixelLookup(scene.grid, mask.grid, stretched=stretched)
    return MaskLabels(mask, scene.grid, lookup, meanings=meanings or mask_meanings(names), names=names)


def _whole(place: NDArray[np.float64]) -> Indices:
    """The index of the pixel that contains a position; -1 where the position is not finite."""
    with np.errstate(invalid="ignore"):
        pixel = np.floor(place + EDGE)
    # From 2^53 on a float64 is no exact index; NaN fails the comparison too.
    return np.where(np.abs(pixel) < 2**53, pixel, -1).astype(np.int64)


def _box(rows: Indices, cols: Indices, inside: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Top, left, and one past bottom and right, of the mask pixels in use."""
    used = [np.broadcast_to(each, inside.shape)[inside] for each in (rows, cols)]
    return int(used[0].min()), int(used[1].min()), int(used[0].max()) + 1, int(used[1].max()) + 1


def _overlap(mask: RasterGrid, grid: RasterGrid) -> bool:
    # Straight edges become curves in the CRS of the mask; added vertices follow them.
    edge = grid_outline(grid)
    corners = shapely.get_coordinates(shapely.segmentize(edge, max(edge.length / 100, 1e-12)))
    if grid.crs != mask.crs:
        between = Transformer.from_crs(grid.crs.to_wkt(), mask.crs.to_wkt(), always_xy=True)
        corners = np.column_stack(between.transform(*corners.T))
    corners = corners[np.isfinite(corners).all(axis=1)]
    if len(corners) < 4:
        return False
    covered = shapely.make_valid(shapely.Polygon(corners))
    return bool(shapely.area(shapely.intersection(covered, grid_outline(mask))) > 0)


def _extent_text(grid: RasterGrid) -> str:
    return degrees_text(grid.bounds, grid.crs.to_wkt())
