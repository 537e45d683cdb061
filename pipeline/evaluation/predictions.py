"""Predictions under evaluation, window by window: the classified mosaic, or polygons rasterized onto a grid."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import SettingsError
from pipeline.evaluation.result_files import Objects, is_own_file, read_objects, read_own_polygons, threshold_of_run
from pipeline.grid import RasterGrid
from pipeline.model import ModelCard
from pipeline.mosaic import MosaicReader, classify_multilabel, resolve_threshold
from pipeline.polygons import PolygonSpec, shape_polygons, vectorize
from pipeline.results import OUTPUTS
from pipeline.scene import Scene
from pipeline.training.labels import open_polygon_labels, read_polygons

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PredictionWindow:
    """The prediction of one window."""

    predicted: NDArray[np.bool_]
    """`(planes, height, width)`, True = predicted as the class."""
    valid: NDArray[np.bool_]
    """`(height, width)`, True = the pixel has a prediction."""
    probability: NDArray[np.float32]
    """`(planes, height, width)`, 0 to 1; of polygons 0 or 1."""


class Prediction(Protocol):
    """A mosaic or polygons; `read` may be called from one thread."""

    grid: RasterGrid
    """The grid of the comparison; labels are rasterized onto it."""
    card: ModelCard
    """The planes (`classes`) and how they are classified; its bands are those of the scene's picture."""
    path: Path
    model: str
    """SHA-256 of the checkpoint that made it; empty when there is none."""

    def read(self, window: Window) -> PredictionWindow:
        """Classes and probabilities of a window inside the grid."""
        ...

    def objects(self) -> Objects:
        """All polygons of each class but the background."""
        ...

    def close(self) -> None:
        """Close open files."""
        ...


class MosaicPrediction:
    """A probability mosaic, and the polygons next to it or vectorized from it."""

    def __init__(self, path: Path, classes: tuple[str, ...], polygons: PolygonSpec) -> None:
        """Open a `probability.tif`; no `classes` = all, `polygons` has threshold and shaping.

        The defaults of `polygons` stand for those of the run that made the mosaic. SceneError: no mosaic of Scenemill;
        SettingsError: it has none of the classes, or the threshold does not suit it.
        """
        self.path = path
        self._reader = MosaicReader(path)
        try:
            card = self._reader.card
            self._planes = resolve_planes(card, classes, path)
            threshold = polygons.threshold or threshold_of_run(path) if card.activation == "sigmoid" else None
            resolve_threshold(card, polygons.threshold, self._reader.levels)
        except BaseException:
            self._reader.close()
            raise
        self._polygons = replace(polygons, threshold=threshold)
        self._polygon_file = path.with_name(OUTPUTS["polygons"]) if polygons == PolygonSpec() else None
        self.grid = self._reader.grid
        self.model = self._reader.tags.get("SCENEMILL_MODEL", "")
        self.card = _card_of_planes(card, self._planes, threshold)

    def read(self, window: Window) -> PredictionWindow:
        """Classified in exact integers, as for the polygons; a pixel may be of several independent classes."""
        levels = self._reader.read_levels(window)[list(self._planes)]
        masks = [each.mask for each in classify_multilabel(levels, self.card, top=self._reader.levels)]
        valid = masks[0] != 255
        if self.card.activation == "softmax":
            predicted = np.stack([masks[0] == value for value in self.card.mask_values])
        else:
            predicted = np.stack([mask == value for mask, value in zip(masks, self.card.mask_values, strict=True)])
        probability = np.where(valid, levels, 0).astype(np.float32) / np.float32(self._reader.levels)
        return PredictionWindow(predicted=predicted, valid=valid, probability=probability)

    def objects(self) -> Objects:
        """The polygons next to the mosaic, or the mosaic vectorized."""
        if self._polygon_file is not None and self._polygon_file.is_file():
            return read_objects(self._polygon_file, foreground_names(self.card), self.grid)
        by_class: dict[str, list[NDArray[np.object_]]] = {name: [] for name in foreground_names(self.card)}
        names = {value: name for _, value, name in self._reader.card.foreground}
        batches = shape_polygons(vectorize(self._reader, self._polygons), self.grid, self._polygons)
        for batch in batches:
            for value in np.unique(batch.class_value):
                by_class.get(names[int(value)], []).append(batch.geometry[batch.class_value == value])
        return {name: np.concatenate(parts) if parts else np.zeros(0, object) for name, parts in by_class.items()}

    def close(self) -> None:
        """Close the mosaic."""
        self._reader.close()


class PolygonPrediction:
    """Polygons on the grid of a scene; every pixel is valid, so the scene decides which pixels count."""

    def __init__(self, path: Path, scene: Scene, classes: tuple[str, ...], field: str | None) -> None:
        """Read a vector file for rasterization onto the scene's grid; `ONE_CLASS` stands for every polygon.

        `field` is the attribute with the class; None = there is one class, or the file is Scenemill's own.
        """
        self.path, self.grid, self.model = path, scene.grid, ""
        self.card = ModelCard(bands=scene.bands, classes=classes)
        own = field is None and is_own_file(path)
        table = read_own_polygons(path, classes) if own else read_polygons(path, classes, field)
        if table.frame.empty:
            log.warning("%s: holds no polygon of the classes %s; check classes", path, ", ".join(classes))
        self._labels = open_polygon_labels([table], scene, classes=len(classes), allow_empty=True)

    def read(self, window: Window) -> PredictionWindow:
        """The polygons rasterized by the pixel-centre rule."""
        predicted = self._labels.burn(window) == 1
        valid = np.ones(predicted.shape[1:], bool)
        return PredictionWindow(predicted=predicted, valid=valid, probability=predicted.astype(np.float32))

    def objects(self) -> Objects:
        """The polygons that touch the scene."""
        labels = self._labels
        return {name: labels.polygons[labels.class_index == k] for k, name in enumerate(self.card.classes)}

    def close(self) -> None:
        """No file is open."""


def foreground_names(card: ModelCard) -> tuple[str, ...]:
    """The classes but the background."""
    return tuple(name for _, _, name in card.foreground)


def resolve_planes(card: ModelCard, classes: tuple[str, ...], path: Path) -> tuple[int, ...]:
    """Indices of the classes to compare among a card's classes; all if `classes` is empty.

    SettingsError if the card lacks a class, or a class of exclusive ones is left out; its message names `path`.
    """
    have = foreground_names(card)
    missing = [name for name in classes if name not in have]
    if missing:
        raise SettingsError(
            f"classes names {', '.join(missing)}, which {path} does not have; it has {', '.join(have)}: "
            "name classes that both labels and result have, or translate label values with class_map"
        )
    if card.activation == "softmax":
        if classes and set(classes) != set(have):
            raise SettingsError(
                f"classes leaves out {', '.join(sorted(set(have) - set(classes)))}, but the classes of {path} exclude "
                "one another, so a pixel of one is an error in another; leave classes empty"
            )
        return tuple(range(len(card.classes)))
    return tuple(card.classes.index(name) for name in classes or have)


def _card_of_planes(card: ModelCard, planes: tuple[int, ...], threshold: float | None) -> ModelCard:
    return ModelCard(
        bands=card.bands,
        classes=tuple(card.classes[k] for k in planes),
        activation=card.activation,
        background=card.background,
        threshold=card.threshold if threshold is None else threshold,
    )
