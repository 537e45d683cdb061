"""What is compared with what: settled before any work, and opened scene by scene."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.catalog import CatalogEntry
from pipeline.errors import SettingsError
from pipeline.evaluation.comparison import Comparison
from pipeline.evaluation.predictions import Found, MosaicPrediction, PolygonPrediction, foreground_names, resolve_planes
from pipeline.evaluation.records import EvaluateSpec, Kind
from pipeline.evaluation.reference import LabelFiles, check_same_ground
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


@dataclass(frozen=True, kw_only=True)
class EvaluationPlan:
    """What is compared with what; plain data."""

    entries: tuple[CatalogEntry, ...]
    """The scenes."""
    labels: tuple[Path, ...]
    """Label files or folders."""
    kind: Kind
    """What is compared with the labels."""
    compared: tuple[Path, ...]
    """Checkpoints, one or the members of an ensemble; or one path of mosaics or polygons."""
    out: Path
    """Folder of the evaluation."""
    spec: EvaluateSpec
    """All settings."""

    @property
    def path(self) -> Path:
        """What is compared, or the first checkpoint of several."""
        return self.compared[0]


def plan_evaluation(
    images: Sequence[str | Path],
    labels: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    model: str | Path | Sequence[str | Path] | None = None,
    mosaics: str | Path | None = None,
    polygons: str | Path | None = None,
    spec: EvaluateSpec,
) -> EvaluationPlan:
    """Settle what is compared, before any work.

    Raises:
        SettingsError: none or several of model, mosaics and polygons are given, a path is missing, or one
            mosaic is to serve several scenes.
    """
    kind, paths = _compared({"model": model, "mosaics": mosaics, "polygons": polygons})
    entries = list_images(images).entries
    if kind == "mosaics" and paths[0].is_file() and len(entries) > 1:
        raise SettingsError(
            f"mosaics: {paths[0]} is one mosaic, but {len(entries)} scenes are named; name its scene alone, or the "
            "folder that holds a result for each"
        )
    out = Path(out)
    if any(place.exists() and not place.is_dir() for place in (out, *out.parents)):
        raise SettingsError(f"out: {out} must be a folder, but there is a file; name another")
    return EvaluationPlan(
        entries=entries,
        labels=tuple(map(Path, [labels] if isinstance(labels, str | Path) else labels)),
        kind=kind,
        compared=paths,
        out=out,
        spec=spec,
    )


def find_label_files(plan: EvaluationPlan) -> LabelFiles:
    """The label files of a plan; raises LabelError when a scene has none."""
    return LabelFiles(plan.labels, [entry.location for entry in plan.entries], plan.spec)


@contextmanager
def on_plan_devices(plan: EvaluationPlan) -> Iterator[EvaluationPlan]:
    """Yield the plan as it runs on the devices of its settings, see `on_devices`; as it is without a model."""
    if plan.kind != "model":
        yield plan
        return
    with on_devices(plan.spec.segment) as segment:
        yield replace(plan, spec=replace(plan.spec, segment=segment))


def load_plan_model(plan: EvaluationPlan) -> LoadedModel | None:
    """The model or ensemble of a plan, checked against the settings; None when none is evaluated.

    Raises:
        ModelError: the checkpoint cannot be used.
        SettingsError: the settings do not suit it, or `classes` names one that it does not have.
    """
    if plan.kind != "model":
        return None
    predictor = load_run_models(plan.compared, plan.spec.segment)
    resolve_settings(plan.spec.segment, predictor.card)
    resolve_planes(predictor.card, plan.spec.classes, plan.path)
    return predictor


def check_labels(plan: EvaluationPlan, entry: CatalogEntry, files: LabelFiles, card: ModelCard) -> None:
    """Open a scene's labels and close them, so that what is wrong with them is told before a long segmentation.

    Raises:
        LabelError: they cannot be used, or do not touch the scene.
        SceneError: the scene cannot be read.
    """
    reading = replace(plan.spec.segment.reading, resolution_m="native")
    scene = describe_scene(entry.location, reading, scene_id=entry.id)
    names = [card.classes[plane] for plane in resolve_planes(card, plan.spec.classes, plan.path)]
    classes = tuple(name for name in names if name in foreground_names(card))
    files.open(entry.location, scene, scene.grid, classes).labels.close()


def open_comparison(plan: EvaluationPlan, entry: CatalogEntry, files: LabelFiles) -> Comparison:
    """A scene's result and labels, ready to be read on the result's grid.

    Raises:
        SceneError: the scene or its result cannot be used.
        LabelError: its labels cannot be used, or do not touch it.
        SettingsError: classes that the result does not have.
    """
    reading = replace(plan.spec.segment.reading, resolution_m="native")
    scene = describe_scene(entry.location, reading, scene_id=entry.id)
    found = _open_found(plan, entry)
    try:
        check_same_ground(scene, found.grid, found.path)
        here = replace(scene, grid=found.grid)
        truth = files.open(entry.location, here, scene.grid, foreground_names(found.card))
    except BaseException:
        found.close()
        raise
    return Comparison(here, found, truth)


def _compared(named: Mapping[Kind, str | Path | Sequence[str | Path] | None]) -> tuple[Kind, tuple[Path, ...]]:
    given = [(kind, _paths(path)) for kind, path in named.items() if path is not None]
    if len(given) != 1:
        kinds = " and ".join(kind for kind, _ in given) or "none of them"
        raise SettingsError(f"exactly one of model, mosaics and polygons must be given to compare, not {kinds}")
    kind, paths = given[0]
    for path in paths:
        if not path.exists():
            raise SettingsError(f"{kind}: there is no {path}; check the path")
    return kind, paths


def _paths(path: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    return (Path(path),) if isinstance(path, str | Path) else tuple(map(Path, path))


def _open_found(plan: EvaluationPlan, entry: CatalogEntry) -> Found:
    spec = plan.spec
    if plan.kind == "polygons":
        scene = describe_scene(entry.location, spec.segment.reading, scene_id=entry.id)
        path, classes = find_polygons(plan.path, entry.id, stem_of(entry.location)), spec.classes or ONE_CLASS
        return PolygonPrediction(path, scene, classes, spec.found_field)
    folder = plan.out / SCENES if plan.kind == "model" else plan.path
    return MosaicPrediction(find_mosaic(folder, entry.id), spec.classes, spec.segment.polygons)
