"""Labelled scenes as sources of samples: windows with pixels, target and validity, from files or from memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.grid import is_on_earth
from pipeline.scene import Scene
from pipeline.training.data.blocks import plan_blocks
from pipeline.training.data.consistency import check_consistent
from pipeline.training.data.label_opener import LabelOpener
from pipeline.training.images import list_images, open_reader
from pipeline.training.labels.polygon_labels import UNLABELLED, Labels, find_labels
from pipeline.training.sample import Sample
from pipeline.training.settings.spec import TrainSpec

CACHE_ROWS = 1024
"""Rows read at a time when a scene is loaded into memory."""


class SampleSource(Protocol):
    """A labelled scene; safe to read from many threads."""

    @property
    def scene(self) -> Scene:
        """The scene that is read."""

    def read(self, window: Window) -> Sample:
        """The sample of a window inside `scene.grid`."""

    def target(self, window: Window) -> NDArray[np.uint8]:
        """The target of a window inside `scene.grid`, `(classes, height, width)`; see `Sample.target`."""

    def close(self) -> None:
        """Close all file handles; no thread may be reading."""


class LabelledScene:
    """Reads a scene and burns its labels, window by window."""

    def __init__(self, scene: Scene, labels: Labels) -> None:
        self.scene = scene
        self._labels = labels
        self._reader = open_reader(scene)

    def read(self, window: Window) -> Sample:
        """The sample of a window inside the grid."""
        pixels, valid = self._reader.read(window)
        return Sample(pixels=pixels, target=self._labels.burn(window), valid=valid)

    def target(self, window: Window) -> NDArray[np.uint8]:
        """The target of a window inside the grid, without reading pixels."""
        return self._labels.burn(window)

    def close(self) -> None:
        """Close the handles of scene and labels."""
        self._reader.close()
        self._labels.close()


class CachedScene:
    """A labelled scene in memory; its source is closed."""

    def __init__(self, source: SampleSource) -> None:
        grid = source.scene.grid
        self.scene = source.scene
        rows = range(0, grid.height, CACHE_ROWS)
        strips = [source.read(Window(0, row, grid.width, min(CACHE_ROWS, grid.height - row))) for row in rows]
        self._whole = Sample(
            pixels=np.concatenate([s.pixels for s in strips], axis=1),
            target=np.concatenate([s.target for s in strips], axis=1),
            valid=np.concatenate([s.valid for s in strips], axis=0),
        )
        source.close()

    def read(self, window: Window) -> Sample:
        """The sample of a window inside the grid; views, not copies."""
        (rows, cols), whole = window.toslices(), self._whole
        return Sample(
            pixels=whole.pixels[:, rows, cols], target=whole.target[:, rows, cols], valid=whole.valid[rows, cols]
        )

    def target(self, window: Window) -> NDArray[np.uint8]:
        """The target of a window inside the grid; a view."""
        rows, cols = window.toslices()
        return self._whole.target[:, rows, cols]

    def close(self) -> None:
        """Do nothing: no file is open."""


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """All scenes of a training run."""

    sources: tuple[SampleSource, ...]
    """Every scene; ids are unique."""
    validation: tuple[str, ...] = ()
    """Ids of scenes that the settings name for validation."""
    test: tuple[str, ...] = ()
    """Ids of scenes that the settings name for the test; none is in both."""
    repaired: int = 0
    """Label geometries that were invalid and have been repaired."""
    dropped: int = 0
    """Label features without area, ignored."""

    @property
    def resolution_m(self) -> float | None:
        """Mean true ground resolution of the scenes as they are read; None without georeferencing."""
        grids = [source.scene.grid for source in self.sources]
        if not all(is_on_earth(grid.crs) for grid in grids):
            return None
        return math.fsum(grid.resolution_m for grid in grids) / len(grids)

    def close(self) -> None:
        """Close every scene; no thread may be reading."""
        for source in self.sources:
            source.close()


def open_data(images: Sequence[str | Path], labels: str | Path | Sequence[str | Path], spec: TrainSpec) -> LabelledData:
    """Open every scene with its labels; refuses scenes that are not consistent, and labels that do not fit."""
    listed = list_images(images, spec.split.validation, spec.split.test)
    scenes, natives = check_consistent(listed.entries, spec)
    files = find_labels(labels, [entry.location for entry in listed.entries])
    opener = LabelOpener(spec, {p for found in files.values() for p in found})
    labelled = [
        opener.open(files[entry.location], scene, native)
        for entry, scene, native in zip(listed.entries, scenes, natives, strict=True)
    ]
    sources = tuple(
        LabelledScene(scene, each) for scene, each in zip(scenes, labelled, strict=True) if each is not None
    )
    opener.check_area_overlap([s.id for s, each in zip(scenes, labelled, strict=True) if each is None], listed)
    return LabelledData(
        sources=sources,
        validation=listed.validation,
        test=listed.test,
        repaired=sum(t.repaired for t in opener.tables.values()),
        dropped=sum(t.dropped for t in opener.tables.values()),
    )


def cache(data: LabelledData, budget_mb: int, classes: int) -> LabelledData:
    """The same data in memory, when all of it fits into `budget_mb` MiB; otherwise unchanged."""
    if sum(_bytes_of(s.scene, classes) for s in data.sources) > budget_mb * 2**20:
        return data
    return replace(data, sources=tuple(CachedScene(s) for s in data.sources))


def presence(source: SampleSource, window: Window) -> NDArray[np.bool_]:
    """Which classes have a pixel in a window, `(classes,)`; reads labels only."""
    found: NDArray[np.bool_] = np.zeros(1, bool)
    for block in plan_blocks((window.height, window.width), CACHE_ROWS):
        here = Window(window.col_off + block.col_off, window.row_off + block.row_off, block.width, block.height)
        found = found | (source.target(here) == 1).any(axis=(1, 2))
        if found.all():
            break
    return found


def read_padded(source: SampleSource, row: int, col: int, size: int) -> Sample:
    """A square sample that may reach past the scene on any side; pixels outside are 0, invalid and unlabelled."""
    grid = source.scene.grid
    top, left = max(row, 0), max(col, 0)
    bottom, right = min(row + size, grid.height), min(col + size, grid.width)
    inner = source.read(Window(left, top, right - left, bottom - top))
    if (bottom - top, right - left) == (size, size):
        return inner
    around = ((top - row, row + size - bottom), (left - col, col + size - right))
    return Sample(
        pixels=np.pad(inner.pixels, ((0, 0), *around)),
        target=np.pad(inner.target, ((0, 0), *around), constant_values=UNLABELLED),
        valid=np.pad(inner.valid, around),
    )


def _bytes_of(scene: Scene, classes: int) -> int:
    per_pixel = len(scene.bands) * np.dtype(scene.dtype).itemsize + classes + 1
    return scene.grid.height * scene.grid.width * per_pixel
