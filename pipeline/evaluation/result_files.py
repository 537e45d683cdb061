"""Result files of a run: finding and reading a scene's mosaic and polygons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import LabelError, SceneError, SettingsError
from pipeline.grid import RasterGrid
from pipeline.polygons import LAYER
from pipeline.results import OUTPUTS, REPORT, read_report_file
from pipeline.storage import check_vector, import_pyogrio
from pipeline.training.labels import VECTOR_SUFFIXES, PolygonTable, polygons_touching

Objects = dict[str, NDArray[np.object_]]
"""Class name -> polygons in the grid's CRS."""
ONE_CLASS = ("object",)
"""The class of every polygon when the settings name no classes."""


def find_mosaic(mosaics: Path, scene_id: str) -> Path:
    """The mosaic of a scene: `mosaics` itself, or `<scene id>/probability.tif` in it."""
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
    """The polygon file of a scene: `polygons` itself, or in it a file of the stem or `<scene id>/polygons.gpkg`."""
    if polygons.is_file():
        return polygons
    of_run = polygons / scene_id / OUTPUTS["polygons"]
    named = sorted(p for p in polygons.glob("*") if p.stem in (stem, scene_id) and p.suffix.lower() in VECTOR_SUFFIXES)
    candidates = [of_run] if of_run.is_file() else named
    if len(candidates) != 1:
        names = ", ".join(p.name for p in candidates) or "none"
        raise SceneError(
            f"{polygons}: the scene {scene_id!r} needs one polygon file, {stem}.gpkg or "
            f"{scene_id}/{OUTPUTS['polygons']}, but there is {names}"
        )
    return candidates[0]


def threshold_of_run(mosaic: Path) -> float | None:
    """The threshold in the settings of the run that made a mosaic, from its report; None = the model's."""
    report = read_report_file(mosaic.with_name(REPORT))
    polygons = None if report is None else report.inputs.settings.get("polygons")
    value = polygons.get("threshold") if isinstance(polygons, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def read_objects(path: Path, classes: tuple[str, ...], grid: RasterGrid) -> Objects:
    """Polygons of a GeoPackage of Scenemill, by class; other classes are left out."""
    frame = read_own_polygons(path, classes).frame
    geometry, rows = polygons_touching(frame, grid)
    index = np.asarray(frame["class_index"], np.intp)[rows]
    return {name: geometry[index == k] for k, name in enumerate(classes)}


def is_own_file(path: Path) -> bool:
    """Whether a file is a GeoPackage written by Scenemill."""
    if path.suffix.lower() != ".gpkg":
        return False
    try:
        check_vector(path)
        pyogrio = import_pyogrio()
        return LAYER in pyogrio.list_layers(path)[:, 0] and "class_value" in pyogrio.read_info(path, LAYER)["fields"]
    except (OSError, RuntimeError, ValueError, SettingsError):
        return False


def read_own_polygons(path: Path, classes: tuple[str, ...]) -> PolygonTable:
    """The polygons of `classes` in a GeoPackage of Scenemill; all polygons for `ONE_CLASS`."""
    try:
        check_vector(path)
        frame = import_pyogrio().read_dataframe(path, layer=LAYER, columns=["class"])
    except (OSError, RuntimeError, ValueError, SettingsError) as error:
        raise LabelError(
            f"{path}: cannot be read as polygons of scenemill: {error}; segment the scene again"
        ) from error
    names = np.asarray(frame["class"], dtype=object)
    frame["class_index"] = [classes.index(name) if name in classes else -1 for name in names]
    if classes == ONE_CLASS:
        frame["class_index"] = 0
    return PolygonTable(frame=frame[frame["class_index"] >= 0], repaired=0, dropped=0, path=path)
