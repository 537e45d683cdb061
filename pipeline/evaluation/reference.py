"""The labels of scenes under evaluation: opened on a result's grid, and as objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Literal

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import LabelError, SceneError
from pipeline.evaluation.metrics.matching import cut_to_area
from pipeline.evaluation.records import EvaluateSpec
from pipeline.evaluation.result_files import Objects
from pipeline.grid import RasterGrid
from pipeline.model import ModelCard
from pipeline.mosaic import INVALID
from pipeline.polygons import PolygonSpec, shape_polygons, vectorize
from pipeline.scene import Scene
from pipeline.training import TrainSpec
from pipeline.training.data import LabelOpener
from pipeline.training.labels import UNLABELLED, Labels, find_labels, grid_outline, polygons_touching

if TYPE_CHECKING:
    import geopandas

MOST_OPENERS = 4
"""Label files are kept in memory for so many sets of files; more than scenes are in hand at once."""
TRACED = 1024
"""Side in pixels of the blocks in which masks are traced; bounds memory."""
_NOTHING: NDArray[np.object_] = np.zeros(0, object)
MOST_SHIFT = 0.5
"""Pixels of the result by which its edges may lie off the scene's."""


class LabelFiles:
    """The label files of all scenes; a file that labels several scenes is read once."""

    def __init__(self, labels: Sequence[Path], images: Sequence[str], spec: EvaluateSpec) -> None:
        """Find them.

        Args:
            labels: files, or folders of files.
            images: locations of the scenes.
            spec: what label values mean, and where was looked.

        Raises:
            LabelError: see `find_labels`.
        """
        self.files = find_labels(labels, images)
        self._spec = spec
        self._openers: dict[tuple[object, ...], LabelOpener] = {}
        self._turn = Lock()

    def open(self, image: str, scene: Scene, native: RasterGrid, classes: tuple[str, ...]) -> Reference:
        """The labels of a scene.

        Args:
            image: its location, as given.
            scene: with the grid of the result.
            native: the grid of its file, of the same extent.
            classes: in the order of the planes wanted, without a background.

        Raises:
            LabelError: they cannot be used, or do not touch the scene.
        """
        files = self.files[image]
        opener = self._opener(files, classes)
        labels = opener.open(files, scene, native)
        if labels is None:
            raise LabelError(
                f"labelled_area: {self._spec.labelled_area} does not touch {scene.location}, so nothing there is "
                "labelled; leave the scene out, or check the area's CRS and place"
            )
        area = None if opener.area is None else shapely.union_all(opener.area.on(scene))
        frames = tuple(opener.tables[path].frame for path in files if path in opener.tables)
        return Reference(labels=labels, grid=scene.grid, classes=classes, frames=frames, area=area)

    def names(self, image: str) -> tuple[str, ...]:
        """The files that label a scene."""
        return tuple(str(path) for path in self.files[image])

    def _opener(self, files: tuple[Path, ...], classes: tuple[str, ...]) -> LabelOpener:
        """What opens these files; the last few are kept."""
        spec = self._spec
        with self._turn:
            if (files, classes) not in self._openers:
                if len(self._openers) == MOST_OPENERS:
                    del self._openers[next(iter(self._openers))]
                meaning = TrainSpec(
                    classes=classes,
                    class_field=spec.class_field,
                    class_map=dict(spec.class_map),
                    labelled_area=spec.labelled_area,
                )
                self._openers[files, classes] = LabelOpener(meaning, files)
            return self._openers[files, classes]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What is true of one scene."""

    labels: Labels
    """A plane for each class, on the result's grid."""
    grid: RasterGrid
    """Of the result."""
    classes: tuple[str, ...]
    """Names of the planes."""
    frames: tuple[geopandas.GeoDataFrame, ...]
    """The labelled polygons, in their own CRS; empty for a mask."""
    area: shapely.Geometry | None
    """The land that was looked at, in the grid's CRS; None = everywhere."""

    def objects(self, connectivity: Literal[4, 8]) -> Objects:
        """The true objects of each class, cut to what counts: labelled polygons, or the connected parts of a mask."""
        found = {name: [_NOTHING] for name in self.classes}
        if not self.frames:
            found = _trace(self, connectivity)
        for frame in self.frames:
            geometry, rows = polygons_touching(frame, self.grid)
            index = np.asarray(frame["class_index"], np.intp)[rows]
            for k, name in enumerate(self.classes):
                found[name].append(geometry[index == k])
        return {name: self.cut(np.concatenate(parts)) for name, parts in found.items()}

    def cut(self, polygons: NDArray[np.object_]) -> NDArray[np.object_]:
        """The parts of polygons on the grid; of those less than half in the labelled area, nothing."""
        parts = clip_objects(polygons, self.grid)
        return parts if self.area is None else cut_to_area(parts, self.area)


def check_same_ground(scene: Scene, grid: RasterGrid, path: Path) -> None:
    """Refuse a result that does not lie where its scene lies.

    Raises:
        SceneError: another CRS or extent.
    """
    corners, of_scene = ((shapely.get_coordinates(grid_outline(each))) for each in (grid, scene.grid))
    pixel = abs(grid.transform.determinant) ** 0.5
    shift = float(np.abs(corners - of_scene).max()) / pixel
    if grid.crs == scene.grid.crs and shift <= MOST_SHIFT:
        return
    raise SceneError(
        f"{path}: is not a result of the scene {scene.location}: it covers {_extent(grid)}, the scene "
        f"{_extent(scene.grid)}; name the result of this scene, or segment it anew"
    )


def clip_objects(geometry: NDArray[np.object_], grid: RasterGrid) -> NDArray[np.object_]:
    """Polygons cut to a grid; those of which no area is left are left out."""
    frame = grid_outline(grid)
    shapely.prepare(frame)
    cut = geometry.copy()
    across = ~shapely.covers(frame, geometry)
    broken = across & ~shapely.is_valid(geometry)
    cut[broken] = shapely.make_valid(geometry[broken])
    cut[across] = shapely.intersection(cut[across], frame)
    return np.asarray(cut[shapely.area(cut) > 0], dtype=object)


class _LabelLevels:
    """Labels as a mosaic of certain classes, for the vectorizer; unlabelled pixels are invalid."""

    levels = 254

    def __init__(self, truth: Reference) -> None:
        self.grid, self._labels = truth.grid, truth.labels
        self.card = ModelCard(bands=("any",), classes=truth.classes)

    def read_levels(self, window: Window) -> NDArray[np.uint16]:
        """Level 254 where the class is."""
        target = self._labels.burn(window)
        levels = np.zeros(target.shape, np.uint16)
        levels[target == 1] = self.levels
        levels[target == UNLABELLED] = INVALID
        return levels


def _trace(truth: Reference, connectivity: Literal[4, 8]) -> dict[str, list[NDArray[np.object_]]]:
    levels, spec = _LabelLevels(truth), PolygonSpec(connectivity=connectivity)
    found = {name: [_NOTHING] for name in truth.classes}
    for batch in shape_polygons(vectorize(levels, spec, block_size=TRACED), truth.grid, spec):
        for value in np.unique(batch.class_value).tolist():
            found[truth.classes[value - 1]].append(batch.geometry[batch.class_value == value])
    return found


def _extent(grid: RasterGrid) -> str:
    left, bottom, right, top = grid.bounds
    return f"{left:.6g}..{right:.6g}, {bottom:.6g}..{top:.6g} in {grid.crs}"
