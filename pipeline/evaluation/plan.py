"""Evaluation plan: the compared files and labels, resolved before any work and opened scene by scene."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.catalog import CatalogEntry
from pipeline.errors import SettingsError
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.predictions import (
    MosaicPrediction,
    PolygonPrediction,
    Prediction,
    foreground_names,
    resolve_planes,
)
from pipeline.evaluation.records import EvaluateSpec, Kind
from pipeline.evaluation.reference import LabelFiles, check_same_extent
from pipeline.evaluation.result_files import ONE_CLASS, find_mosaic, find_polygons
from pipeline.model import ModelCard
from pipeline.model.predictor import LoadedModel
from pipeline.run import load_run_models, on_devices
from pipeline.scene import describe_scene
from pipeline.stages import resolve_settings
from pipeline.training import list_images
from pipeline.training.labels import stem_of

SCENES = "scenes"
"""Folder of the scenes, in the evaluation's folder."""


Paths = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class EvaluationRequest:
    """The inputs of an evaluation: scenes, labels, an output folder, and exactly one kind of prediction."""

    images: Sequence[str | Path]
    """Scenes: files, folders, globs or addresses."""
    labels: Paths
    """As for training: a vector file or mask raster for all scenes, or a folder of them."""
    out: str | Path
    model: Paths | None = None
    """A checkpoint, or several whose probabilities are averaged; every scene is segmented into `out/scenes/<id>/`."""
    mosaics: str | Path | None = None
    """The folder of a run, or one `probability.tif`."""
    polygons: str | Path | None = None
    """One vector file for all scenes, a folder with one of each scene's stem, or the folder of a run."""


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """Scenes, labels and the predictions to compare; plain data."""

    entries: tuple[CatalogEntry, ...]
    labels: tuple[Path, ...]
    kind: Kind
    compared: tuple[Path, ...]
    """Checkpoints, one or the members of an ensemble; or one path of mosaics or polygons."""
    out: Path
    spec: EvaluateSpec

    @property
    def path(self) -> Path:
        """The compared path, or the first checkpoint of several."""
        return self.compared[0]


def plan_evaluation(request: EvaluationRequest, spec: EvaluateSpec) -> EvaluationPlan:
    """Resolve and check the inputs, before any work.

    Raises:
        SettingsError: none or several of model, mosaics and polygons are given, a path is missing, or one
            mosaic is given for several scenes.
    """
    kind, paths = _resolve_compared(request)
    entries = list_images(request.images).entries
    if kind == "mosaics" and paths[0].is_file() and len(entries) > 1:
        raise SettingsError(
            f"mosaics: {paths[0]} is one mosaic, but {len(entries)} scenes are named; name its scene alone, or the "
            "folder that holds a result for each"
        )
    out = Path(request.out)
    if any(path.exists() and not path.is_dir() for path in (out, *out.parents)):
        raise SettingsError(f"out: {out} must be a folder, but there is a file; name another")
    return EvaluationPlan(entries=entries, labels=_paths(request.labels), kind=kind, compared=paths, out=out, spec=spec)


def find_label_files(plan: EvaluationPlan) -> LabelFiles:
    """The label files of a plan; raises LabelError when a scene has none."""
    return LabelFiles(plan.labels, [entry.location for entry in plan.entries], plan.spec)


@contextmanager
def on_plan_devices(plan: EvaluationPlan) -> Iterator[EvaluationPlan]:
    """Yield the plan with the settings of its devices, see `on_devices`; unchanged when no model is evaluated."""
    if plan.kind != "model":
        yield plan
        return
    with on_devices(plan.spec.segment) as segment:
        yield replace(plan, spec=replace(plan.spec, segment=segment))


def load_plan_model(plan: EvaluationPlan) -> LoadedModel | None:
    """The model or ensemble of a plan, checked against the settings; None when none is evaluated.

    Raises:
        ModelError: the checkpoint cannot be used.
        SettingsError: the settings do not suit it, or `classes` names a class that it lacks.
    """
    if plan.kind != "model":
        return None
    predictor = load_run_models(plan.compared, plan.spec.segment)
    resolve_settings(plan.spec.segment, predictor.card)
    resolve_planes(predictor.card, plan.spec.classes, plan.path)
    return predictor


def check_labels(plan: EvaluationPlan, entry: CatalogEntry, files: LabelFiles, card: ModelCard) -> None:
    """Open and close a scene's labels, so that errors in them are raised before a long segmentation."""
    reading = replace(plan.spec.segment.reading, resolution_m="native")
    scene = describe_scene(entry.location, reading, scene_id=entry.id)
    names = [card.classes[plane] for plane in resolve_planes(card, plan.spec.classes, plan.path)]
    classes = tuple(name for name in names if name in foreground_names(card))
    files.open(entry.location, scene, scene.grid, classes).labels.close()


def open_comparison(plan: EvaluationPlan, entry: CatalogEntry, files: LabelFiles) -> Comparison:
    """Open a scene's prediction and labels on the prediction's grid."""
    reading = replace(plan.spec.segment.reading, resolution_m="native")
    scene = describe_scene(entry.location, reading, scene_id=entry.id)
    prediction = _open_prediction(plan, entry)
    try:
        check_same_extent(scene, prediction.grid, prediction.path)
        on_grid = replace(scene, grid=prediction.grid)
        reference = files.open(entry.location, on_grid, scene.grid, foreground_names(prediction.card))
    except BaseException:
        prediction.close()
        raise
    return Comparison(on_grid, prediction, reference)


def _resolve_compared(request: EvaluationRequest) -> tuple[Kind, tuple[Path, ...]]:
    predictions: dict[Kind, Paths | None] = {
        "model": request.model,
        "mosaics": request.mosaics,
        "polygons": request.polygons,
    }
    given = [(kind, _paths(paths)) for kind, paths in predictions.items() if paths is not None]
    if len(given) != 1:
        kinds = " and ".join(kind for kind, _ in given) or "none of them"
        raise SettingsError(f"exactly one of model, mosaics and polygons must be given to compare, not {kinds}")
    kind, compared = given[0]
    for path in compared:
        if not path.exists():
            raise SettingsError(f"{kind}: there is no {path}; check the path")
    return kind, compared


def _paths(paths: Paths) -> tuple[Path, ...]:
    return (Path(paths),) if isinstance(paths, str | Path) else tuple(map(Path, paths))


def _open_prediction(plan: EvaluationPlan, entry: CatalogEntry) -> Prediction:
    spec = plan.spec
    if plan.kind == "polygons":
        scene = describe_scene(entry.location, spec.segment.reading, scene_id=entry.id)
        path, classes = find_polygons(plan.path, entry.id, stem_of(entry.location)), spec.classes or ONE_CLASS
        return PolygonPrediction(path, scene, classes, spec.found_field)
    folder = plan.out / SCENES if plan.kind == "model" else plan.path
    return MosaicPrediction(find_mosaic(folder, entry.id), spec.classes, spec.segment.polygons)
