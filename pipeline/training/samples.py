"""Labelled scenes as sources of samples: windows with pixels, target and validity, on the fly or from memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.card import ModelCard
from pipeline.errors import SceneError, SettingsError
from pipeline.grid import RasterGrid
from pipeline.scene import ReadingSpec, Scene, SceneReader, describe_scene
from pipeline.training.labels import (
    MASK_SUFFIXES,
    UNLABELLED,
    Labels,
    PolygonTable,
    find_labels,
    open_polygon_labels,
    read_polygons,
)
from pipeline.training.masks import open_mask_labels

if TYPE_CHECKING:
    from pipeline.training.settings import TrainSpec

SCENE_SUFFIXES = (".tif", ".tiff")
MOST_RESOLUTION_SPREAD = 1.1
"""Largest over smallest ground resolution of scenes that may be trained together without `resolution_m`."""
CACHE_ROWS = 1024
"""Rows read at once when a scene is taken into memory."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One window of a labelled scene."""

    pixels: NDArray[np.generic]
    """`(bands, height, width)` in the scene's type."""
    target: NDArray[np.uint8]
    """`(classes, height, width)`: 1 object, 0 none, 255 unlabelled."""
    valid: NDArray[np.bool_]
    """`(height, width)`, True = real data."""


class SampleSource(Protocol):
    """A labelled scene; safe to read from many threads."""

    @property
    def scene(self) -> Scene:
        """What is read."""
        ...

    def read(self, window: Window) -> Sample:
        """The sample of a window inside `scene.grid`."""
        ...

    def touches(self, window: Window) -> bool:
        """Whether some labelled object may lie in the window."""
        ...

    def close(self) -> None:
        """Close what is open; no thread may be reading."""
        ...


class LabelledScene:
    """Reads a scene and burns its labels, window by window."""

    def __init__(self, scene: Scene, labels: Labels) -> None:
        self.scene = scene
        self._labels = labels
        self._reader = SceneReader(scene)

    def read(self, window: Window) -> Sample:
        """The sample of a window inside the grid."""
        pixels, valid = self._reader.read(window)
        return Sample(pixels=pixels, target=self._labels.burn(window), valid=valid)

    def touches(self, window: Window) -> bool:
        """Whether some labelled object may lie in the window."""
        return self._labels.touches(window)

    def close(self) -> None:
        """Close the handles of scene and labels."""
        self._reader.close()
        self._labels.close()


class CachedScene:
    """A labelled scene held in memory; its source is closed."""

    def __init__(self, source: SampleSource) -> None:
        grid = source.scene.grid
        self.scene = source.scene
        strips = [source.read(Window(0, row, grid.width, rows)) for row, rows in _spans(grid.height, CACHE_ROWS)]
        self._whole = Sample(
            pixels=np.concatenate([s.pixels for s in strips], axis=1),
            target=np.concatenate([s.target for s in strips], axis=1),
            valid=np.concatenate([s.valid for s in strips], axis=0),
        )
        source.close()

    def read(self, window: Window) -> Sample:
        """The sample of a window inside the grid; views, not copies."""
        rows, cols = window.toslices()
        whole = self._whole
        return Sample(
            pixels=whole.pixels[:, rows, cols], target=whole.target[:, rows, cols], valid=whole.valid[rows, cols]
        )

    def touches(self, window: Window) -> bool:
        """Whether some labelled object lies in the window."""
        rows, cols = window.toslices()
        return bool((self._whole.target[:, rows, cols] == 1).any())

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """All scenes of a training run."""

    training: tuple[SampleSource, ...]
    """Scenes to learn from; parts of them may be held out."""
    validation: tuple[SampleSource, ...]
    """Scenes kept for validation; empty when blocks are to be held out."""
    repaired: int
    """Label geometries that were invalid and have been repaired."""
    dropped: int
    """Label features without area, left out."""

    def close(self) -> None:
        """Close every scene; no thread may be reading."""
        for source in (*self.training, *self.validation):
            source.close()


def list_scenes(images: Iterable[str | Path]) -> tuple[str, ...]:
    """Locations of scenes: GeoTIFFs of folders in name order, everything else as it is; each once.

    Raises:
        SettingsError: a folder without GeoTIFF, or no scene at all.
    """
    found: list[str] = []
    for image in images:
        folder = Path(image)
        inside = sorted(p for p in folder.iterdir() if p.suffix.lower() in SCENE_SUFFIXES) if folder.is_dir() else None
        if inside == []:
            raise SettingsError(f"images: the folder {folder} holds no GeoTIFF ({', '.join(SCENE_SUFFIXES)})")
        found += [str(p) for p in inside] if inside else [str(image)]
    if not found:
        raise SettingsError("images must name at least one scene")
    return tuple(dict.fromkeys(found))


def open_data(images: Sequence[str | Path], labels: str | Path, spec: TrainSpec) -> LabelledData:
    """Open every scene with its labels, and check that they fit one another.

    Raises:
        SceneError: a scene cannot be read, or scenes differ in bands, type or resolution.
        LabelError: labels are missing or do not fit.
        SettingsError: a scene named for validation is not there, or none is left for training.
    """
    training, validation = _split_scenes(list_scenes(images), spec.split.validation)
    scenes, natives = _describe([*training, *validation], spec)
    files = find_labels(labels, [Path(location).stem for location in (*training, *validation)])
    tables = {
        p: _read_table(p, spec) for found in files.values() for p in found if p.suffix.lower() not in MASK_SUFFIXES
    }
    sources = [
        LabelledScene(scene, _open_labels(files[Path(location).stem], scene, native, tables, spec))
        for location, scene, native in zip((*training, *validation), scenes, natives, strict=True)
    ]
    return LabelledData(
        training=tuple(sources[: len(training)]),
        validation=tuple(sources[len(training) :]),
        repaired=sum(t.repaired for t in tables.values()),
        dropped=sum(t.dropped for t in tables.values()),
    )


def cache(data: LabelledData, budget_mb: int, classes: int) -> LabelledData:
    """The same data in memory, when all of it fits into so many MiB; otherwise unchanged."""
    sources = (*data.training, *data.validation)
    if sum(_bytes_of(s.scene, classes) for s in sources) > budget_mb * 2**20:
        return data
    return replace(
        data,
        training=tuple(CachedScene(s) for s in data.training),
        validation=tuple(CachedScene(s) for s in data.validation),
    )


def read_padded(source: SampleSource, row: int, col: int, size: int) -> Sample:
    """A square sample that may reach past the scene; pixels outside are 0, invalid and unlabelled.

    Args:
        source: where to read.
        row: first row, may be negative.
        col: first column, may be negative.
        size: height and width.
    """
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


def _spans(length: int, step: int) -> list[tuple[int, int]]:
    return [(start, min(step, length - start)) for start in range(0, length, step)]


def _bytes_of(scene: Scene, classes: int) -> int:
    per_pixel = len(scene.bands) * np.dtype(scene.dtype).itemsize + classes + 1
    return scene.grid.height * scene.grid.width * per_pixel


def _split_scenes(images: Sequence[str], kept: Sequence[str]) -> tuple[list[str], list[str]]:
    """Training and validation locations; a validation scene is one of the images (path or stem) or a path."""
    validation = []
    for name in kept:
        same = [image for image in images if name in (image, Path(image).stem) or Path(image) == Path(name)]
        if not same and not Path(name).exists():
            raise SettingsError(f"validation: {name!r} is neither a file nor the stem of a training image")
        validation += same or [name]
    training = [image for image in images if image not in validation]
    if not training:
        raise SettingsError("validation: every image is kept for validation, none is left for training")
    return training, list(dict.fromkeys(validation))


def _describe(locations: Sequence[str], spec: TrainSpec) -> tuple[list[Scene], list[RasterGrid]]:
    """Every scene as it is read, and its file's own grid; checked to agree with one another."""
    native = replace(spec.reading, resolution_m="native")
    first = describe_scene(locations[0], native, card=_wanted(spec.bands) if spec.bands else None)
    wanted = _wanted(first.bands)
    natives = [describe_scene(location, native, card=wanted) for location in locations]
    for scene in natives:
        if scene.dtype != natives[0].dtype:
            raise SceneError(
                f"{scene.location}: is {scene.dtype}, but {natives[0].location} is {natives[0].dtype}; "
                "train on scenes of one type, or convert them"
            )
    reading = _reading(natives, spec)
    return [describe_scene(location, reading, card=wanted) for location in locations], [s.grid for s in natives]


def _wanted(bands: Sequence[str]) -> ModelCard:
    return ModelCard(bands=tuple(bands), classes=("any",))


def _reading(natives: Sequence[Scene], spec: TrainSpec) -> ReadingSpec:
    if spec.resolution_m is not None:
        return replace(spec.reading, resolution_m=spec.resolution_m)
    sizes = [scene.grid.resolution_m for scene in natives]
    if max(sizes) > MOST_RESOLUTION_SPREAD * min(sizes):
        listed = ", ".join(f"{scene.id} {size:.3g} m" for scene, size in zip(natives, sizes, strict=True))
        raise SettingsError(
            f"resolution_m must be set, because the scenes differ in ground resolution: {listed}; "
            f"e.g. resolution_m={max(sizes):.2g}"
        )
    return replace(spec.reading, resolution_m="native")


def _read_table(path: Path, spec: TrainSpec) -> PolygonTable:
    return read_polygons(path, spec.classes, spec.class_field)


def _open_labels(
    files: Sequence[Path], scene: Scene, native: RasterGrid, tables: dict[Path, PolygonTable], spec: TrainSpec
) -> Labels:
    if files[0].suffix.lower() in MASK_SUFFIXES:
        return open_mask_labels(files[0], scene, native, classes=len(spec.classes))
    return open_polygon_labels([tables[p] for p in files], scene, classes=len(spec.classes))
