"""Comparison of one scene's prediction with its labels, on one grid: window by window, or as a picture of a window."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.distribute import ProgressCallback
from pipeline.evaluation.error_map import error_map_profile
from pipeline.evaluation.metrics.calibration import CalibrationSums
from pipeline.evaluation.metrics.counts import (
    MATCHED_PREDICTED,
    MATCHED_REFERENCE,
    PREDICTED,
    REFERENCE,
    BlockCounter,
    PixelPlanes,
    core_slices,
)
from pipeline.evaluation.metrics.objects import PlacedObjects, place_objects
from pipeline.evaluation.predictions import PolygonPrediction, Prediction, foreground_names
from pipeline.evaluation.records import ClassPlanes, EvaluateSpec
from pipeline.evaluation.reference import Reference
from pipeline.model import ModelCard
from pipeline.mosaic import cog_writer
from pipeline.scene import Scene, SceneReader
from pipeline.storage import atomic_path
from pipeline.training.artifacts import PredictedWindow
from pipeline.training.labels import UNLABELLED

COLUMNS = (REFERENCE, MATCHED_REFERENCE), (PREDICTED, MATCHED_PREDICTED)
"""Columns of reference and predicted objects: of all, and of those matched at the first threshold."""


class Comparison:
    """A prediction and its labels; reads from one thread."""

    def __init__(self, scene: Scene, prediction: Prediction, reference: Reference) -> None:
        self.scene, self.prediction, self.reference = scene, prediction, reference
        self.card = prediction.card
        classes = foreground_names(prediction.card)
        self.planes = ClassPlanes(
            names=prediction.card.classes,
            background=len(classes) < len(prediction.card.classes),
            exclusive=prediction.card.activation == "softmax",
        )
        self._reader = SceneReader(scene)

    @property
    def has_probabilities(self) -> bool:
        """False for polygons, which have no probability."""
        return not isinstance(self.prediction, PolygonPrediction)

    def read(self, window: Window) -> tuple[PixelPlanes, NDArray[np.float32]]:
        """Prediction and labels, and probabilities `(planes, height, width)`, of a window inside the grid."""
        predicted = self.prediction.read(window)
        valid = predicted.valid if self.has_probabilities else self._reader.read(window)[1]
        target = self.reference.labels.burn(window)
        labelled, counted = target == 1, (target != UNLABELLED) & valid
        background = self.planes.background
        if self.planes.exclusive:
            labelled, counted = _exclusive(labelled, counted, background=background)
        planes = PixelPlanes(predicted=predicted.predicted, labelled=labelled, counted=counted, background=background)
        return planes, predicted.probability

    def shown_window(self, window: Window) -> PredictedWindow:
        """The data to draw a window."""
        planes, probability = self.read(window)
        pixels, valid = self._reader.read(window)
        return PredictedWindow(
            scene=self.scene.id,
            row=int(window.row_off),
            col=int(window.col_off),
            pixels=pixels,
            valid=valid,
            truth=planes.labelled,
            weight_mask=planes.counted,
            probability=probability,
        )

    @property
    def display_card(self) -> ModelCard:
        """The prediction's card with the bands of the scene, which are the ones drawn."""
        card = self.card
        return ModelCard(
            bands=self.scene.bands,
            classes=card.classes,
            activation=card.activation,
            background=card.background,
            threshold=card.threshold,
        )

    def place_objects(self, connectivity: Literal[4, 8]) -> dict[int, tuple[PlacedObjects, PlacedObjects]]:
        """Reference and predicted objects of each plane but the background's."""
        grid, classes = self.prediction.grid, self.planes.classes
        reference, predicted = self.reference.objects(connectivity), self.prediction.objects()
        return {
            plane: place_objects(reference[name], self.reference.clip(predicted[name]), grid)
            for plane, name in enumerate(classes, start=int(self.planes.background))
        }

    def close(self) -> None:
        """Close prediction, labels and scene."""
        self.prediction.close()
        self.reference.labels.close()
        self._reader.close()


class SceneCounter:
    """One pass over a comparison: counts per block, calibration, and the error map."""

    def __init__(self, comparison: Comparison, spec: EvaluateSpec) -> None:
        """Match and locate the objects; no pixel is counted yet."""
        self.comparison = comparison
        self.compress = spec.segment.mosaic.compress
        self.calibration = CalibrationSums()
        self.counter = BlockCounter(
            comparison.prediction.grid.shape,
            planes=len(comparison.planes.names),
            block_size=spec.bootstrap.block_size,
            band_px=spec.boundary_px,
        )
        placed = comparison.place_objects(spec.segment.polygons.connectivity)
        self._objects = {
            plane: [(side.by_block(self.counter.step), columns) for side, columns in zip(sides, COLUMNS, strict=True)]
            for plane, sides in placed.items()
        }

    def run(self, error_map: Path, *, tags: Mapping[str, str], progress: ProgressCallback | None) -> None:
        """Count every window once and write the error map, atomically."""
        grid = self.comparison.prediction.grid
        profile, pixels = error_map_profile(grid, tags, self.compress), grid.height * grid.width
        with atomic_path(error_map) as partial, cog_writer(partial, profile) as writer:
            for row in self.counter.windows():
                codes = [self._count(core, window) for core, window in row]
                writer.write(np.concatenate(codes, axis=1)[None])
                if progress is not None:
                    progress("evaluate", int(row[0][0].row_off + row[0][0].height) * grid.width, pixels)

    def _count(self, core: Window, window: Window) -> NDArray[np.uint8]:
        planes, probability = self.comparison.read(window)
        codes = self.counter.add(core, window, planes)
        rows, cols = core_slices(core, window)
        inner = planes.crop(rows, cols)
        if self.comparison.has_probabilities:
            exclusive = self.comparison.planes.exclusive
            self.calibration.add(probability[:, rows, cols], inner.labelled, inner.counted, exclusive=exclusive)
        # An object counts where the pixel under it counts.
        for plane, sides in self._objects.items():
            for blocks, columns in sides:
                objects = blocks.get((int(core.row_off), int(core.col_off)))
                if objects is not None:
                    row, col = (objects.pixel - (core.row_off, core.col_off)).T
                    self._add_objects(plane, objects.select(inner.counted[plane][row, col]), columns)
        return codes

    def _add_objects(self, plane: int, objects: PlacedObjects, columns: tuple[int, int]) -> None:
        total, matched = columns
        self.counter.add_objects(plane, total, objects.pixel)
        for threshold in range(objects.matched.shape[1]):
            self.counter.add_objects(plane, matched + threshold, objects.pixel[objects.matched[:, threshold]])


def _exclusive(
    labelled: NDArray[np.bool_], counted: NDArray[np.bool_], *, background: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """One class per pixel, the first where labels overlap; a pixel that is unlabelled for one class counts for none."""
    labelled = labelled & (np.cumsum(labelled, axis=0) == 1)
    known = counted.all(axis=0)
    if background:
        labelled = np.concatenate([~labelled.any(axis=0, keepdims=True), labelled])
    return labelled, np.broadcast_to(known, labelled.shape)
