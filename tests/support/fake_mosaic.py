"""Probabilities in memory, as `vectorize` reads them: a `LevelSource` without a file."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import shapely
from affine import Affine
from numpy.typing import ArrayLike, NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.windows import Window

from pipeline.grid.raster_grid import RasterGrid
from pipeline.model.card import ModelCard
from pipeline.mosaic.levels import INVALID
from pipeline.polygons.shaping import PolygonBatch, PolygonSpec
from pipeline.polygons.stream import LevelSource, vectorize

NAMES = ("none", "roof", "road", "field", "water")
NODATA = 255


class FakeLevels:
    """A mosaic in memory; keeps the windows that were read."""

    def __init__(
        self,
        levels: NDArray[np.uint16],
        card: ModelCard,
        *,
        top: int = 254,
        crs: str = "EPSG:32633",
        transform: Affine | None = None,
    ):
        transform = transform or Affine(1, 0, 500_000, 0, -1, 5_000_000)
        self.grid = RasterGrid(
            crs=CRS.from_user_input(crs), transform=transform, height=levels.shape[1], width=levels.shape[2]
        )
        self.card = card
        self.levels = top
        self.read: list[Window] = []
        self._levels = levels

    def read_levels(self, window: Window) -> NDArray[np.uint16]:
        self.read.append(window)
        rows = slice(window.row_off, window.row_off + window.height)
        return self._levels[:, rows, window.col_off : window.col_off + window.width]


def classes_source(mask: ArrayLike, **options: object) -> FakeLevels:
    """Exclusive classes 1..4 as in a mask with 0 = none and 255 = nodata; seeded winning levels."""
    mask = np.asarray(mask, np.uint8)
    generator = np.random.default_rng(0)
    levels = np.zeros((len(NAMES), *mask.shape), np.uint16)
    for value in range(len(NAMES)):
        levels[value][mask == value] = generator.integers(100, 254, mask.shape)[mask == value]
    levels[:, mask == NODATA] = INVALID
    card = ModelCard(bands=("red",), classes=NAMES, activation="softmax", background="none")
    return FakeLevels(levels, card, **options)


def one_class_source(mask: ArrayLike, **options: object) -> FakeLevels:
    """One independent class where the mask is 1; 255 = nodata."""
    mask = np.asarray(mask, np.uint8)
    levels = np.where(mask == 1, 200, 20).astype(np.uint16)[None]
    levels[:, mask == NODATA] = INVALID
    return FakeLevels(levels, ModelCard(bands=("red",), classes=("roof",)), **options)


def polygons_of(source: LevelSource, spec: PolygonSpec | None = None, **options: int) -> PolygonBatch:
    """All polygons of a mosaic in one batch."""
    return joined(vectorize(source, spec or PolygonSpec(), **options))


def joined(batches: Iterable[PolygonBatch]) -> PolygonBatch:
    batches = list(batches)
    columns = {
        name: np.concatenate([np.empty(0, kind), *(getattr(batch, name) for batch in batches)]).astype(kind)
        for name, kind in (
            ("geometry", object),
            ("class_value", np.uint8),
            ("pixel_count", np.int64),
            ("mean_probability", float),
            ("max_probability", float),
        )
    }
    return PolygonBatch(**columns)


def as_set(batch: PolygonBatch) -> list[tuple[object, ...]]:
    """The polygons with all attributes, in an order of their own."""
    columns = (batch.class_value, batch.pixel_count, batch.mean_probability, batch.max_probability)
    return sorted(zip(shapely.to_wkt(batch.geometry), *(column.tolist() for column in columns), strict=True))


def burnt(batch: PolygonBatch, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The polygons as a mask."""
    if not len(batch):
        return np.zeros(shape, np.uint8)
    return rasterize(zip(batch.geometry, batch.class_value.tolist(), strict=True), shape, dtype="uint8")
