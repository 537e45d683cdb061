"""Evaluation of a model, mosaics or polygons against labels over a list of scenes. Start here.

OUT/
  evaluation.html     one page: tables with intervals, calibration, worst windows, error maps
  evaluation.json     all numbers
  worst/*.png         windows with the most wrong pixels: picture, labels, probability, errors
  scenes/<id>/
    errors.tif        COG: hit, false alarm, miss, wrong class, not counted
    counts.npz        counts per block, from which the intervals are resampled
    probability.tif   and the other outputs of a run, when a model was evaluated
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version

from pipeline import __version__
from pipeline.catalog import CatalogEntry
from pipeline.distribute import ProgressCallback, cluster
from pipeline.errors import LabelError, ScenemillError, SettingsError
from pipeline.evaluation.comparison import SceneCounter
from pipeline.evaluation.metrics.calibration import join_bins
from pipeline.evaluation.metrics.counts import BlockCounts
from pipeline.evaluation.metrics.scores import join_counts, score_counts
from pipeline.evaluation.page import write_page
from pipeline.evaluation.plan import (
    SCENES,
    EvaluationPlan,
    EvaluationRequest,
    check_labels,
    find_label_files,
    load_plan_model,
    on_plan_devices,
    open_comparison,
    plan_evaluation,
)
from pipeline.evaluation.records import ClassPlanes, EvaluateSpec, EvaluationReport, SceneEvaluation
from pipeline.evaluation.reference import LabelFiles
from pipeline.evaluation.worst import draw_worst, find_worst
from pipeline.model.predictor import LoadedModel
from pipeline.scene import describe_scene
from pipeline.segment import segment_scene
from pipeline.storage import ensure_dir
from pipeline.text import without_secrets

__all__ = ["EvaluateSpec", "EvaluationReport", "evaluate"]

log = logging.getLogger(__name__)

PACKAGES = ("numpy", "rasterio", "shapely", "geopandas", "torch")
ERRORS, COUNTS = "errors.tif", "counts.npz"


def evaluate(
    request: EvaluationRequest,
    spec: EvaluateSpec | None = None,
    *,
    progress_of: Callable[[CatalogEntry], ProgressCallback | None] = lambda _: None,
) -> EvaluationReport:
    """Compare a model, mosaics or polygons (exactly one of them) with labels, per scene and over all scenes.

    A scene that cannot be evaluated is reported with its reason and does not stop the others.

    Args:
        request: scenes, labels, the output folder, and what is compared.
        spec: settings; the defaults by default.
        progress_of: returns the progress callback of a scene.

    Raises:
        SettingsError: before any scene, wrong usage; or a class that a prediction lacks.
        LabelError: before any scene, when there are no labels.
        ModelError: before any scene, when the checkpoint cannot be used.
        TransientError: the disk fails.
    """
    plan = plan_evaluation(request, spec or EvaluateSpec())
    files = find_label_files(plan)
    predictor = load_plan_model(plan)
    started, scenes = time.perf_counter(), []
    with on_plan_devices(plan) as running:
        for entry in plan.entries:
            try:
                scenes.append(evaluate_scene(running, entry, files, predictor=predictor, progress=progress_of(entry)))
            except SettingsError:
                raise
            except Exception as error:
                log.debug("%s failed", entry.shown, exc_info=True)
                scenes.append(failed_evaluation(entry, error))
    return aggregate(plan, scenes, files, seconds=time.perf_counter() - started)


def evaluate_scene(
    plan: EvaluationPlan,
    entry: CatalogEntry,
    files: LabelFiles,
    *,
    predictor: LoadedModel | None = None,
    progress: ProgressCallback | None = None,
) -> SceneEvaluation:
    """Evaluate one scene: counts per block, scores, error map.

    Raises:
        SceneError: the scene or its prediction cannot be used.
        LabelError: the labels cannot be used, or do not touch the scene.
        SettingsError: `classes` names a class that the prediction lacks.
        TransientError: disk or network failed; running again may help.
    """
    started, folder = time.perf_counter(), plan.out / SCENES / entry.id
    if predictor is not None:
        # Labels are checked before the inference, which takes far longer.
        check_labels(plan, entry, files, predictor.card)
        _segment(plan, entry, predictor, progress)
    tags = {"SCENEMILL_SCENE": entry.id, "SCENEMILL_VERSION": __version__}
    with closing(open_comparison(plan, entry, files)) as comparison:
        ensure_dir(folder)
        counter = SceneCounter(comparison, plan.spec)
        counter.run(folder / ERRORS, tags=tags, progress=progress)
    counts, prediction, planes = counter.counter.finish(), comparison.prediction, comparison.planes
    if not counts.counted.any():
        raise LabelError(
            f"{entry.shown}: no pixel is both labelled and valid in {prediction.path}, so nothing can be compared; "
            "check the labels, labelled_area and nodata"
        )
    counts.save(folder / COUNTS)
    return SceneEvaluation(
        scene=entry.id,
        location=entry.shown,
        status="done",
        found=str(prediction.path),
        labels=files.names(entry.location),
        model=prediction.model,
        planes=planes,
        shape=prediction.grid.shape,
        resolution_m=round(prediction.grid.resolution_m, 4),
        scores=score_counts(counts, planes, plan.spec.bootstrap, calibration=counter.calibration.finish()),
        errors=f"{SCENES}/{entry.id}/{ERRORS}",
        counts=f"{SCENES}/{entry.id}/{COUNTS}",
        seconds=round(time.perf_counter() - started, 2),
    )


def failed_evaluation(entry: CatalogEntry, error: BaseException) -> SceneEvaluation:
    """The record of a scene that could not be evaluated."""
    reason = str(error) if isinstance(error, ScenemillError) else f"unexpected {type(error).__name__}: {error}"
    return SceneEvaluation(scene=entry.id, location=entry.shown, status="failed", reason=without_secrets(reason))


def aggregate(
    plan: EvaluationPlan, scenes: Sequence[SceneEvaluation], files: LabelFiles, *, seconds: float = 0.0
) -> EvaluationReport:
    """Combine the scenes: overall scores, pictures of the worst windows, the page and its JSON.

    Raises:
        SettingsError: the predictions have different classes.
        TransientError: the disk fails.
    """
    done = [scene for scene in scenes if scene.status == "done"]
    tables = [BlockCounts.load(plan.out / str(scene.counts)) for scene in done]
    planes = _common_planes(done)

    # Overall scores pool the blocks of all scenes; they are no mean of the scenes' scores.
    overall = None
    if planes is not None:
        bins = join_bins([s.scores.calibration for s in done if s.scores is not None and s.scores.calibration])
        overall = score_counts(join_counts(tables), planes, plan.spec.bootstrap, calibration=bins)
    report = EvaluationReport(
        kind=plan.kind,
        compared=", ".join(map(str, plan.compared)),
        labels=", ".join(map(str, plan.labels)),
        planes=planes,
        overall=overall,
        scenes=tuple(scenes),
        worst=draw_worst(plan, files, find_worst(done, tables, plan.spec)),
        settings=asdict(plan.spec),
        versions={"scenemill": __version__, **{name: version(name) for name in PACKAGES}},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=round(seconds, 2),
        folder=str(plan.out),
    )
    ensure_dir(plan.out)
    write_page(plan.out, report)
    return report


def _segment(
    plan: EvaluationPlan, entry: CatalogEntry, predictor: LoadedModel, progress: ProgressCallback | None
) -> None:
    spec = plan.spec.segment
    scene = describe_scene(entry.location, spec.reading, card=predictor.card, scene_id=entry.id)
    with cluster(spec.distribute) as client:
        segment_scene(scene, plan.out / SCENES, predictor=predictor, spec=spec, client=client, watch=progress)


def _common_planes(scenes: Sequence[SceneEvaluation]) -> ClassPlanes | None:
    """The classes of all scenes; None when there is no scene."""
    for scene in scenes:
        if scene.planes != scenes[0].planes:
            names, first = (", ".join(each.planes.names) for each in (scene, scenes[0]) if each.planes)
            raise SettingsError(
                f"classes: {scene.found} has {names}, but {scenes[0].found} has {first}; evaluate results of one "
                "model, or name their common classes"
            )
    return scenes[0].planes if scenes else None
