"""Mosaic reader: probabilities as levels, window by window, and the classes of the mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from rasterio import DatasetReader
from rasterio.errors import RasterioError
from rasterio.windows import Window

from pipeline.errors import ModelError, SceneError
from pipeline.grid import RasterGrid
from pipeline.model import ModelCard
from pipeline.mosaic.levels import TOP_LEVEL, as_integers
from pipeline.storage import ThreadHandles, check_local_sidecars, open_raster

CARD_TAG = "SCENEMILL_CARD"
"""The tag of `probability.tif` that holds the card of its model."""


class MosaicReader:
    """Reads blocks of a probability mosaic, from any number of threads."""

    progress: Callable[[int], None] | None = None
    """Called with the number of pixels of every block that is read."""

    def __init__(self, path: Path):
        """Open `probability.tif`.

        Raises:
            SceneError: the file is not a probability mosaic.
        """
        self._handles = ThreadHandles(partial(_open, path))
        try:
            dataset = self._handles.get()
        except RasterioError as error:
            raise SceneError(f"{path}: cannot be opened as a mosaic: {error}") from error
        tags = dataset.tags()
        if CARD_TAG not in tags:
            self.close()
            raise SceneError(
                f"{path}: no probability mosaic of ours (it has no {CARD_TAG} tag); name a probability.tif"
            )
        self.tags: dict[str, str] = tags
        self.card = _card_of(tags[CARD_TAG], path)
        self.grid = RasterGrid(crs=dataset.crs, transform=dataset.transform, height=dataset.height, width=dataset.width)
        self.levels = TOP_LEVEL[dataset.dtypes[0]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all handles."""
        self._handles.close()

    def read_levels(self, window: Window) -> NDArray[np.uint8 | np.uint16]:
        """`(classes, height, width)` levels: 0..`levels` mean probability 0..1, the type's largest value is invalid."""
        levels = as_integers(self._handles.get().read(window=window))
        if self.progress is not None:
            self.progress(int(window.width * window.height))
        return levels


def _open(path: Path) -> DatasetReader:
    check_local_sidecars(path)
    return open_raster(path)


def _card_of(text: str, path: Path) -> ModelCard:
    try:
        return ModelCard.from_json(text)
    except ModelError as error:
        raise SceneError(f"{path}: its {CARD_TAG} tag is not readable: {error}") from error


def read_mask(path: Path, shape: tuple[int, int]) -> tuple[NDArray[np.uint8], dict[int, tuple[int, int, int, int]]]:
    """`mask.tif` resampled to `shape`: `(h, w)` class values, and the colour of each value."""
    with _open(path) as dataset:
        return dataset.read(1, out_shape=shape), dataset.colormap(1)


def read_mask_blocks(path: Path, side: int) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    """Yield the windows that partition `mask.tif`, at most `side` px wide and high, and their class values.

    Raises:
        SceneError: the file is damaged or gone.
    """
    try:
        with _open(path) as dataset:
            height, width = dataset.shape
            for row in range(0, height, side):
                for col in range(0, width, side):
                    window = Window(col, row, min(side, width - col), min(side, height - row))
                    yield window, dataset.read(1, window=window)
    except RasterioError as error:
        raise SceneError(f"{path}: cannot be read: {error}; delete its folder and run again") from error
