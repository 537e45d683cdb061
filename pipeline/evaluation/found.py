"""What is compared with the labels, window by window: the decisions of a mosaic, or polygons burnt onto a grid."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.card import ModelCard
from pipeline.decide import decide_apart, resolve_threshold
from pipeline.errors import LabelError, SceneError, SettingsError
from pipeline.export import LAYER
from pipeline.grid import RasterGrid
from pipeline.mosaic import MosaicReader
from pipeline.scene import Scene
from pipeline.segment import OUTPUTS
from pipeline.shaping import PolygonSpec, shape_polygons
from pipeline.training.labels import (
    VECTOR_SUFFIXES,
    PolygonTable,
    open_polygon_labels,
    polygons_on,
    read_polygons,
)
from pipeline.vectorize import vectorize

Objects = dict[str, NDArray[np.object_]]
"""Class name -> polygons in the grid's CRS."""
ONE_CLASS = ("object",)
"""What polygons are called when nothing says their classes; every polygon is then of this class."""


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


class MosaicFound:
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
            threshold = polygons.threshold or _threshold_of_run(path) if whole.activation == "sigmoid" else None
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
        decisions = list(decide_apart(levels, self.card, top=self._reader.levels))
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


class PolygonsFound:
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
        table = _our_table(path, classes) if field is None and _is_ours(path) else read_polygons(path, classes, field)
        self._burnt = open_polygon_labels([table], scene, classes=len(classes), may_miss=True)

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


def find_mosaic(mosaics: Path, scene_id: str) -> Path:
    """The mosaic of a scene: `mosaics` itself, or `<scene id>/probability.tif` in it.

    Raises:
        SceneError: there is none.
    """
    if mosaics.is_file():
        return mosaics
    name = OUTPUTS["probability"]
    for path in (mosaics / scene_id / name, mosaics / name):
        if path.is_file():
            return path
    raise SceneError(
        f"{mosaics}: holds no result of the scene {scene_id!r}: {scene_id}/{name} is missing; segment it first "
        "with --out of that folder, or leave the scene out"
    )


def find_polygons(polygons: Path, scene_id: str, stem: str) -> Path:
    """The polygon file of a scene: `polygons` itself, a file of the scene's stem, or `<scene id>/polygons.gpkg` in it.

    Raises:
        SceneError: there is none, or more than one.
    """
    if polygons.is_file():
        return polygons
    of_run = polygons / scene_id / OUTPUTS["polygons"]
    named = sorted(p for p in polygons.glob("*") if p.stem in (stem, scene_id) and p.suffix.lower() in VECTOR_SUFFIXES)
    found = [of_run] if of_run.is_file() else named
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise SceneError(
            f"{polygons}: the scene {scene_id!r} needs one polygon file, {stem}.gpkg or "
            f"{scene_id}/{OUTPUTS['polygons']}, but there is {names}"
        )
    return found[0]


def read_objects(path: Path, classes: tuple[str, ...], grid: RasterGrid) -> Objects:
    """Polygons of a file of ours, by class; classes that are not wanted are left out.

    Raises:
        LabelError: it cannot be read.
    """
    frame = _our_table(path, classes).frame
    geometry, rows = polygons_on(frame, grid)
    index = np.asarray(frame["class_index"], np.intp)[rows]
    return {name: geometry[index == k] for k, name in enumerate(classes)}


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


def _threshold_of_run(mosaic: Path) -> float | None:
    """The threshold set in the run that made a mosaic, from the report beside it; None = the model's."""
    try:
        report = json.loads(mosaic.with_name("report.json").read_text(encoding="utf-8"))
        value = report["settings"]["polygons"]["threshold"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) else None


def _joined(parts: list[NDArray[np.object_]]) -> NDArray[np.object_]:
    return np.concatenate(parts) if parts else np.zeros(0, object)


def _is_ours(path: Path) -> bool:
    """Whether a file is a GeoPackage as we write them."""
    import pyogrio

    if path.suffix.lower() != ".gpkg":
        return False
    try:
        return LAYER in pyogrio.list_layers(path)[:, 0] and "class_value" in pyogrio.read_info(path, LAYER)["fields"]
    except (OSError, RuntimeError, ValueError):
        return False


def _our_table(path: Path, classes: tuple[str, ...]) -> PolygonTable:
    """The polygons of the classes wanted; all of them for `ONE_CLASS`."""
    import geopandas

    try:
        frame = geopandas.read_file(path, layer=LAYER, columns=["class"])
    except (OSError, RuntimeError, ValueError) as error:
        raise LabelError(f"{path}: cannot be read as polygons of ours: {error}; segment the scene again") from error
    names = np.asarray(frame["class"], dtype=object)
    frame["class_index"] = [classes.index(name) if name in classes else -1 for name in names]
    if classes == ONE_CLASS:
        frame["class_index"] = 0
    return PolygonTable(frame=frame[frame["class_index"] >= 0], repaired=0, dropped=0, path=path)
