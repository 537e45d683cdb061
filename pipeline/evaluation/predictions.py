"""What is compared with the labels, window by window: the decisions of a mosaic, or polygons burnt onto a grid."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import SettingsError
from pipeline.evaluation.result_files import Objects, is_ours, our_table, read_objects, threshold_of_run
from pipeline.grid import RasterGrid
from pipeline.model import ModelCard
from pipeline.mosaic import MosaicReader, classify_multilabel, resolve_threshold
from pipeline.polygons import PolygonSpec, shape_polygons, vectorize
from pipeline.scene import Scene
from pipeline.stages import OUTPUTS
from pipeline.training.labels import open_polygon_labels, read_polygons

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FoundWindow:
    """What was found in one window."""

    predicted: NDArray[np.bool_]
    """`(planes, height, width)`, True = of the class."""
    valid: NDArray[np.bool_]
    """`(height, width)`, True = the result says something here."""
    probability: NDArray[np.float32]
    """`(planes, height, width)`, 0 to 1; of polygons 0 or 1."""


class Found(Protocol):
    """A result; `read` is safe to call from one thread."""

    grid: RasterGrid
    """Where it lies; labels are burnt onto this grid."""
    card: ModelCard
    """Its planes (`classes`) and how they are decided; its bands are those of the scene's picture."""
    path: Path
    """The file."""
    model: str
    """SHA-256 of the checkpoint that made it; empty when none did."""

    def read(self, window: Window) -> FoundWindow:
        """Decisions and probabilities of a window inside the grid."""
        ...

    def objects(self) -> Objects:
        """All polygons of each class but the background."""
        ...

    def close(self) -> None:
        """Close what is open."""
        ...


class MosaicPrediction:
    """A probability mosaic, and the polygons beside it or made of it."""

    def __init__(self, path: Path, classes: tuple[str, ...], polygons: PolygonSpec) -> None:
        """Open it.

        Args:
            path: a `probability.tif`.
            classes: those wanted, empty = all.
            polygons: threshold and shaping; when nothing is said, those of the run that made the mosaic.

        Raises:
            SceneError: it is no mosaic of ours.
            SettingsError: it has none of the classes, or the threshold does not suit it.
        """
        self.path = path
        self._reader = MosaicReader(path)
        try:
            whole = self._reader.card
            self._planes = resolve_planes(whole, classes, path)
            threshold = polygons.threshold or threshold_of_run(path) if whole.activation == "sigmoid" else None
            resolve_threshold(whole, polygons.threshold, self._reader.levels)
        except BaseException:
            self._reader.close()
            raise
        self._polygons = replace(polygons, threshold=threshold)
        self._beside = path.with_name(OUTPUTS["polygons"]) if polygons == PolygonSpec() else None
        self.grid = self._reader.grid
        self.model = self._reader.tags.get("SCENEMILL_MODEL", "")
        self.card = _card_of_planes(whole, self._planes, threshold)

    def read(self, window: Window) -> FoundWindow:
        """Decisions in exact integers, as in the polygons; several independent classes may meet at a pixel."""
        levels = self._reader.read_levels(window)[list(self._planes)]
        decisions = list(classify_multilabel(levels, self.card, top=self._reader.levels))
        masks = [decision.mask for decision in decisions]
        valid = masks[0] != 255
        if self.card.activation == "softmax":
            predicted = np.stack([masks[0] == value for value in self.card.mask_values])
        else:
            predicted = np.stack([mask == value for mask, value in zip(masks, self.card.mask_values, strict=True)])
        probability = np.where(valid, levels, 0).astype(np.float32) / np.float32(self._reader.levels)
        return FoundWindow(predicted=predicted, valid=valid, probability=probability)

    def objects(self) -> Objects:
        """The polygons beside the mosaic, or those that it vectorizes to."""
        if self._beside is not None and self._beside.is_file():
            return read_objects(self._beside, foreground_names(self.card), self.grid)
        found: dict[str, list[NDArray[np.object_]]] = {name: [] for name in foreground_names(self.card)}
        names = {value: name for _, value, name in self._reader.card.foreground}
        batches = shape_polygons(vectorize(self._reader, self._polygons), self.grid, self._polygons)
        for batch in batches:
            for value in np.unique(batch.class_value):
                found.get(names[int(value)], []).append(batch.geometry[batch.class_value == value])
        return {name: _joined(parts) for name, parts in found.items()}

    def close(self) -> None:
        """Close the mosaic."""
        self._reader.close()


class PolygonPrediction:
    """Polygons on the grid of a scene; every pixel is valid, what counts is up to the scene."""

    def __init__(self, path: Path, scene: Scene, classes: tuple[str, ...], field: str | None) -> None:
        """Read them.

        Args:
            path: a vector file.
            scene: where they are burnt.
            classes: those wanted; of `ONE_CLASS` is every polygon.
            field: attribute that tells the class; None = there is one class, or the file is of ours.

        Raises:
            LabelError: the file cannot be used, see `read_polygons`.
        """
        self.path, self.grid, self.model = path, scene.grid, ""
        self.card = ModelCard(bands=scene.bands, classes=classes)
        table = our_table(path, classes) if field is None and is_ours(path) else read_polygons(path, classes, field)
        if table.frame.empty:
            log.warning("%s: holds no polygon of the classes %s; check classes", path, ", ".join(classes))
        self._burnt = open_polygon_labels([table], scene, classes=len(classes), allow_empty=True)

    def read(self, window: Window) -> FoundWindow:
        """The polygons burnt by the pixel-centre rule."""
        predicted = self._burnt.burn(window) == 1
        valid = np.ones(predicted.shape[1:], bool)
        return FoundWindow(predicted=predicted, valid=valid, probability=predicted.astype(np.float32))

    def objects(self) -> Objects:
        """Those that touch the scene."""
        burnt = self._burnt
        return {name: burnt.polygons[burnt.class_index == k] for k, name in enumerate(self.card.classes)}

    def close(self) -> None:
        """Nothing is open."""


def foreground_names(card: ModelCard) -> tuple[str, ...]:
    """The classes but the background."""
    return tuple(name for _, _, name in card.foreground)


def resolve_planes(card: ModelCard, classes: tuple[str, ...], path: Path) -> tuple[int, ...]:
    """Places among a card's classes of those wanted; of exclusive ones all.

    Args:
        card: of a mosaic or model.
        classes: those wanted, empty = all.
        path: the mosaic or model, for the message.

    Raises:
        SettingsError: some are not there, or some of exclusive ones are left out.
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


def _joined(parts: list[NDArray[np.object_]]) -> NDArray[np.object_]:
    return np.concatenate(parts) if parts else np.zeros(0, object)
