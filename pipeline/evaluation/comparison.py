"""One scene's result beside its labels, on one grid: counted window by window, and shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.evaluation.error_map import error_form
from pipeline.evaluation.metrics.calibration import CalibrationSums
from pipeline.evaluation.metrics.counts import (
    FOUND,
    MATCHED_FOUND,
    MATCHED_TRUTH,
    TRUTH,
    BlockCounter,
    PixelPlanes,
    within,
)
from pipeline.evaluation.metrics.objects import PlacedObjects, place_objects
from pipeline.evaluation.predictions import Found, PolygonPrediction, foreground_names
from pipeline.evaluation.records import EvaluateSpec, Planes
from pipeline.evaluation.reference import Reference
from pipeline.model import ModelCard
from pipeline.mosaic import cog_writer
from pipeline.scene import Scene, SceneReader
from pipeline.segment import ProgressCallback
from pipeline.storage import atomic_path
from pipeline.training.artifacts import PredictedWindow
from pipeline.training.labels import UNLABELLED

COLUMNS = (TRUTH, MATCHED_TRUTH), (FOUND, MATCHED_FOUND)
"""Where true and found objects are counted: all of them, and those with a partner at the first bound."""


class Comparison:
    """A result and its labels; reads from one thread."""

    def __init__(self, scene: Scene, found: Found, truth: Reference) -> None:
        """Put them together.

        Args:
            scene: read on the result's grid.
            found: the result.
            truth: on the same grid, a plane for each class but the background.
        """
        self.scene, self.found, self.truth = scene, found, truth
        self.card = found.card
        classes = foreground_names(found.card)
        self.planes = Planes(
            names=found.card.classes,
            background=len(classes) < len(found.card.classes),
            exclusive=found.card.activation == "softmax",
        )
        self._reader = SceneReader(scene)

    @property
    def has_probabilities(self) -> bool:
        """False for polygons, which are either there or not."""
        return not isinstance(self.found, PolygonPrediction)

    def read(self, window: Window) -> tuple[PixelPlanes, NDArray[np.float32]]:
        """Decisions beside labels, and the probabilities `(planes, height, width)`, of a window inside the grid."""
        found = self.found.read(window)
        valid = found.valid if self.has_probabilities else self._reader.read(window)[1]
        target = self.truth.labels.burn(window)
        labelled, counted = target == 1, (target != UNLABELLED) & valid
        background = self.planes.background
        if self.planes.exclusive:
            labelled, counted = _exclusive(labelled, counted, background=background)
        planes = PixelPlanes(predicted=found.predicted, labelled=labelled, counted=counted, background=background)
        return planes, found.probability

    def show(self, window: Window) -> PredictedWindow:
        """What is needed to draw a window."""
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
    def shown_card(self) -> ModelCard:
        """The result's card with the bands of the scene, which are what is drawn."""
        card = self.card
        return ModelCard(
            bands=self.scene.bands,
            classes=card.classes,
            activation=card.activation,
            background=card.background,
            threshold=card.threshold,
        )

    def place_objects(self, connectivity: Literal[4, 8]) -> dict[int, tuple[PlacedObjects, PlacedObjects]]:
        """True and found objects of each plane but the background's."""
        grid, classes = self.found.grid, self.planes.classes
        truth, found = self.truth.objects(connectivity), self.found.objects()
        return {
            plane: place_objects(truth[name], self.truth.cut(found[name]), grid)
            for plane, name in enumerate(classes, start=int(self.planes.background))
        }

    def close(self) -> None:
        """Close result, labels and scene."""
        self.found.close()
        self.truth.labels.close()
        self._reader.close()


class SceneCount:
    """One pass over a comparison: counts per block, calibration, and the error map."""

    def __init__(self, comparison: Comparison, spec: EvaluateSpec) -> None:
        """Place the objects; nothing is counted yet."""
        self.comparison = comparison
        self.compress = spec.segment.mosaic.compress
        self.calibration = CalibrationSums()
        self.counter = BlockCounter(
            comparison.found.grid.shape,
            planes=len(comparison.planes.names),
            block_size=spec.bootstrap.block_size,
            border=spec.boundary_px,
        )
        placed = comparison.place_objects(spec.segment.polygons.connectivity)
        self._objects = {
            plane: [(side.by_square(self.counter.step), columns) for side, columns in zip(sides, COLUMNS, strict=True)]
            for plane, sides in placed.items()
        }

    def run(self, error_map: Path, *, tags: Mapping[str, str], watch: ProgressCallback | None) -> None:
        """Count every window once and write the error map; the file appears whole or not at all."""
        grid = self.comparison.found.grid
        form, whole = error_form(grid, tags, self.compress), grid.height * grid.width
        with atomic_path(error_map) as partial, cog_writer(partial, form) as writer:
            for row in self.counter.windows():
                codes = [self._count(core, wide) for core, wide in row]
                writer.write(np.concatenate(codes, axis=1)[None])
                if watch is not None:
                    watch("evaluate", int(row[0][0].row_off + row[0][0].height) * grid.width, whole)

    def _count(self, core: Window, wide: Window) -> NDArray[np.uint8]:
        planes, probability = self.comparison.read(wide)
        codes = self.counter.add(core, wide, planes)
        rows, cols = within(core, wide)
        inner = planes.part(rows, cols)
        if self.comparison.has_probabilities:
            exclusive = self.comparison.planes.exclusive
            self.calibration.add(probability[:, rows, cols], inner.labelled, inner.counted, exclusive=exclusive)
        for plane, sides in self._objects.items():
            for squares, columns in sides:
                here = squares.get((int(core.row_off), int(core.col_off)))
                if here is not None:
                    row, col = (here.place - (core.row_off, core.col_off)).T
                    self._add_objects(plane, here.those(inner.counted[plane][row, col]), columns)
        return codes

    def _add_objects(self, plane: int, objects: PlacedObjects, columns: tuple[int, int]) -> None:
        total, matched = columns
        self.counter.add_objects(plane, total, objects.place)
        for bound in range(objects.matched.shape[1]):
            self.counter.add_objects(plane, matched + bound, objects.place[objects.matched[:, bound]])


def _exclusive(
    labelled: NDArray[np.bool_], counted: NDArray[np.bool_], *, background: bool
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """One class per pixel, the first where labels overlap; a pixel unlabelled for one class counts for none."""
    labelled = labelled & (np.cumsum(labelled, axis=0) == 1)
    known = counted.all(axis=0)
    if background:
        labelled = np.concatenate([~labelled.any(axis=0, keepdims=True), labelled])
    return labelled, np.broadcast_to(known, labelled.shape)
