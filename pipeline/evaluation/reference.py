"""Reference labels of scenes under evaluation: rasterized onto a prediction's grid, and as objects."""

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
from pipeline.evaluation.metrics.matching import clip_to_area
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

MAX_OPENERS = 4
"""Label files are kept in memory for this number of sets of files; more than there are concurrent scenes."""
TRACE_BLOCK_PX = 1024
"""Side of the blocks in which masks are traced; bounds memory."""
_EMPTY: NDArray[np.object_] = np.zeros(0, object)
MAX_SHIFT_PX = 0.5
"""Tolerance between the edges of the prediction and of the scene, in pixels of the prediction."""


class LabelFiles:
    """The label files of all scenes; a file that labels several scenes is read once."""

    def __init__(self, labels: Sequence[Path], images: Sequence[str], spec: EvaluateSpec) -> None:
        """Find the files of each scene.

        Args:
            labels: files, or folders of files.
            images: locations of the scenes.
            spec: the meaning of label values, and the labelled area.

        Raises:
            LabelError: see `find_labels`.
        """
        self.files = find_labels(labels, images)
        self._spec = spec
        self._openers: dict[tuple[object, ...], LabelOpener] = {}
        self._lock = Lock()

    def open(self, image: str, scene: Scene, native: RasterGrid, classes: tuple[str, ...]) -> Reference:
        """The labels of a scene.

        Args:
            image: its location, as in `images`.
            scene: with the grid of the prediction.
            native: the grid of its file, of the same extent.
            classes: in the order of the planes, without a background.

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
        area = None if opener.area is None else shapely.union_all(opener.area.polygons_touching(scene))
        frames = tuple(opener.tables[path].frame for path in files if path in opener.tables)
        return Reference(labels=labels, grid=scene.grid, classes=classes, frames=frames, area=area)

    def names(self, image: str) -> tuple[str, ...]:
        """The files that label a scene."""
        return tuple(str(path) for path in self.files[image])

    def _opener(self, files: tuple[Path, ...], classes: tuple[str, ...]) -> LabelOpener:
        """The opener of these files; at most `MAX_OPENERS` are kept."""
        spec = self._spec
        with self._lock:
            if (files, classes) not in self._openers:
                if len(self._openers) == MAX_OPENERS:
                    del self._openers[next(iter(self._openers))]
                label_spec = TrainSpec(
                    classes=classes,
                    class_field=spec.class_field,
                    class_map=dict(spec.class_map),
                    labelled_area=spec.labelled_area,
                )
                self._openers[files, classes] = LabelOpener(label_spec, files)
            return self._openers[files, classes]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The reference labels of one scene."""

    labels: Labels
    """A plane for each class, on the prediction's grid."""
    grid: RasterGrid
    """Of the prediction."""
    classes: tuple[str, ...]
    frames: tuple[geopandas.GeoDataFrame, ...]
    """The labelled polygons, in their own CRS; empty for a mask."""
    area: shapely.Geometry | None
    """The labelled area, in the grid's CRS; None = everywhere."""

    def objects(self, connectivity: Literal[4, 8]) -> Objects:
        """The reference objects of each class, clipped: labelled polygons, or the connected components of a mask."""
        by_class = {name: [_EMPTY] for name in self.classes} if self.frames else _trace(self, connectivity)
        for frame in self.frames:
            geometry, rows = polygons_touching(frame, self.grid)
            index = np.asarray(frame["class_index"], np.intp)[rows]
            for k, name in enumerate(self.classes):
                by_class[name].append(geometry[index == k])
        return {name: self.clip(np.concatenate(parts)) for name, parts in by_class.items()}

    def clip(self, polygons: NDArray[np.object_]) -> NDArray[np.object_]:
        """Polygons clipped to the grid and the labelled area; those less than half in that area are left out."""
        parts = clip_objects(polygons, self.grid)
        return parts if self.area is None else clip_to_area(parts, self.area)


def check_same_extent(scene: Scene, grid: RasterGrid, path: Path) -> None:
    """Reject a prediction whose CRS or extent is not that of its scene."""
    corners, of_scene = ((shapely.get_coordinates(grid_outline(each))) for each in (grid, scene.grid))
    pixel = abs(grid.transform.determinant) ** 0.5
    shift = float(np.abs(corners - of_scene).max()) / pixel
    if grid.crs == scene.grid.crs and shift <= MAX_SHIFT_PX:
        return
    raise SceneError(
        f"{path}: is not a result of the scene {scene.location}: it covers {_extent(grid)}, the scene "
        f"{_extent(scene.grid)}; name the result of this scene, or segment it anew"
    )


def clip_objects(geometry: NDArray[np.object_], grid: RasterGrid) -> NDArray[np.object_]:
    """Polygons clipped to a grid; those without any area left are dropped."""
    frame = grid_outline(grid)
    shapely.prepare(frame)
    clipped = geometry.copy()
    across = ~shapely.covers(frame, geometry)
    invalid = across & ~shapely.is_valid(geometry)
    clipped[invalid] = shapely.make_valid(geometry[invalid])
    clipped[across] = shapely.intersection(clipped[across], frame)
    return np.asarray(clipped[shapely.area(clipped) > 0], dtype=object)


class _LabelLevels:
    """Labels as a mosaic of probabilities 0 and 1, for the vectorizer; unlabelled pixels are invalid."""

    levels = 254

    def __init__(self, reference: Reference) -> None:
        self.grid, self._labels = reference.grid, reference.labels
        self.card = ModelCard(bands=("any",), classes=reference.classes)

    def read_levels(self, window: Window) -> NDArray[np.uint16]:
        """Level 254 where a pixel is of the class."""
        target = self._labels.burn(window)
        levels = np.zeros(target.shape, np.uint16)
        levels[target == 1] = self.levels
        levels[target == UNLABELLED] = INVALID
        return levels


def _trace(reference: Reference, connectivity: Literal[4, 8]) -> dict[str, list[NDArray[np.object_]]]:
    levels, spec = _LabelLevels(reference), PolygonSpec(connectivity=connectivity)
    by_class = {name: [_EMPTY] for name in reference.classes}
    for batch in shape_polygons(vectorize(levels, spec, block_size=TRACE_BLOCK_PX), reference.grid, spec):
        for value in np.unique(batch.class_value).tolist():
            by_class[reference.classes[value - 1]].append(batch.geometry[batch.class_value == value])
    return by_class


def _extent(grid: RasterGrid) -> str:
    left, bottom, right, top = grid.bounds
    return f"{left:.6g}..{right:.6g}, {bottom:.6g}..{top:.6g} in {grid.crs}"
