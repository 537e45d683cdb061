"""One scene from raster to polygons: the whole pipeline on one page. Start here.

scene --describe--> grid --plan--> tiles, regions --infer--> strips --> mosaic --> polygons --> GeoPackage
"""

from __future__ import annotations

from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.config import SegmentSpec
from pipeline.distribute import Executor, ProgressCallback, scene_executor, stage_progress
from pipeline.grid import RasterGrid
from pipeline.inference import RegionJob
from pipeline.model import ArrayFunction, ModelCard, Predictor
from pipeline.model.predictor import with_tta
from pipeline.mosaic import MosaicReader
from pipeline.polygons import PolygonSpec, PolygonTotals, check_replaceable, layer_of, shape_polygons, write_polygons
from pipeline.results import SceneReport, Stopwatch, open_results, write_report
from pipeline.scene import Scene, check_unchanged
from pipeline.stages import (
    InferenceResult,
    OutputStages,
    RegionPlan,
    RegionRecords,
    SceneOutputs,
    SceneStages,
    closing_report,
    find_inference,
    is_repaired,
    make_polygons,
    make_preview,
    make_rasters,
    opening_report,
    provenance,
    record_inference,
    region_job,
    resolve_inputs,
    reuse_previous_stages,
)

if TYPE_CHECKING:
    from distributed import Client


def segment_scene(
    scene: str | Path | Scene,
    out_dir: str | Path,
    *,
    predictor: Predictor | ArrayFunction,
    card: ModelCard | None = None,
    spec: SegmentSpec | None = None,
    client: Client | None = None,
    watch: ProgressCallback | None = None,
) -> SceneReport:
    """Segment one scene into `out_dir/<scene id>/`: mosaic, mask, polygons, preview and report.

    A scene with a finished result of the same inputs is skipped. Outputs are published atomically.

    Args:
        scene: a path or address, or a described scene.
        out_dir: parent of the scene's folder.
        predictor: the result of `load_predictor`, a torch module, or a function on numpy arrays or
            tensors `(N, bands, H, W) -> (N, classes, H, W)`.
        card: bands and classes of the predictor; a loaded predictor has its own.
        spec: settings.
        client: dask.distributed client of the cluster that runs the scene; None: this process.
        watch: progress callback.

    Raises:
        SceneError: the scene is invalid or damaged.
        ModelError: the predictor does not fit the scene, or its outputs are no probabilities.
        SettingsError: tiling, blend or threshold do not fit the network.
        TransientError: disk, network or workers failed; running again may help.
    """
    spec = spec or SegmentSpec()
    executor = scene_executor(spec.distribute, client, watch)
    predictor = with_tta(predictor, spec.inference.augment)
    inputs = resolve_inputs(scene, predictor, card, spec, executor)
    scene_id, grid = inputs.scene.id, inputs.scene.grid
    results = open_results(out_dir, spec.run.work_dir)
    report = opening_report(inputs, results.documents.address(scene_id))
    key, mosaic_key = report.inputs.content_key, report.inputs.mosaic_key

    # An equal result is there: skip, unless its files were changed and the run repairs them.
    found = results.scenes.recover(scene_id, key)
    if found is not None and not is_repaired(found, spec):
        return found.as_skipped(report)

    # Run the stages in a work folder, which becomes the scene's folder at the end.
    preload = partial(_load_polygon_kernels, grid, spec)
    with results.scenes.publishing(scene_id) as folder, executor.workspace(folder.parent.absolute(), preload):
        work = SceneStages(folder)
        reuse_previous_stages(work, results.scenes.previous_result(scene_id, mosaic_key), report, spec.polygons)
        job = region_job(inputs, work, key=mosaic_key, tags=provenance(report))
        inferred = infer_scene(job, predictor, work, executor)
        stages = OutputStages(make=make_outputs, inferred=inferred, spec=spec.polygons)
        outputs = executor.run_outputs(stages, work.result)
        report = closing_report(report, inferred, outputs, work)
        write_report(folder, report)
    return report


def infer_scene(
    job: RegionJob, predictor: Predictor | ArrayFunction, work: SceneStages, executor: Executor
) -> InferenceResult:
    """Run the first stage: choose the precision, and write the rasters of every region to the job's folder.

    Regions that an interrupted run completed are reused.
    """
    inferred, timer = find_inference(work, job), Stopwatch()
    if inferred is None:
        with executor.reserve(predictor), timer.stage("infer"):
            inferred = _run_missing_regions(job, predictor, work, executor)
    return replace(inferred, seconds=timer.seconds)


def _run_missing_regions(
    job: RegionJob, predictor: Predictor | ArrayFunction, work: SceneStages, executor: Executor
) -> InferenceResult:
    """Run the regions that are not completed yet, by the plan of an earlier run if there is one."""
    records = RegionRecords(work.stages, job)
    plan = records.plan()
    if plan is None:
        check, regions = executor.check_precision(job, predictor), executor.plan_regions(job, predictor)
        plan = RegionPlan(check=check, threshold=job.threshold, regions=regions)
        records.begin(plan)
    job.folder.mkdir(exist_ok=True)
    job = replace(job, precision=plan.check.precision, threshold=plan.threshold)

    # Run the regions without a record, and record each at once, so that a kill loses only those in progress.
    results = records.done(plan)
    reused = (f"{len(results)} of {len(plan.regions)} regions",) if results else ()
    done = {result.region.index for result in results}
    missing = [region for region in plan.regions if region.index not in done]
    with closing(executor.run_regions(job, missing, predictor)) as finished:
        for result in finished:
            records.add(result)
            results.append(result)
    check_unchanged(job.scene)
    return replace(record_inference(work, job, plan.check, results), reused=reused)


def make_outputs(
    inferred: InferenceResult, spec: PolygonSpec, work: SceneStages, progress: ProgressCallback | None
) -> SceneOutputs:
    """Run the stages mosaic, mask, polygons and preview, which need only the work folder, not the model."""
    job, timer = inferred.job, Stopwatch()
    with timer.stage("mosaic"):
        make_rasters(work, inferred, spec.threshold)
    with timer.stage("polygons"):
        mosaic, target = work.output("probability"), work.output("polygons")
        totals = make_polygons(work, job.key, spec, lambda: vectorize_mosaic(mosaic, target, spec=spec, watch=progress))
    with timer.stage("preview"):
        make_preview(work, inferred, spec.threshold)
    return SceneOutputs(totals=totals, reused=tuple(work.reused), seconds=timer.seconds)


def vectorize_mosaic(
    mosaic: str | Path,
    target: str | Path,
    *,
    spec: PolygonSpec | None = None,
    layer: str | None = None,
    overwrite: bool = False,
    watch: ProgressCallback | None = None,
) -> PolygonTotals:
    """Turn a probability mosaic into a file of whole polygons (GeoPackage, GeoParquet or FlatGeobuf).

    Args:
        mosaic: a `probability.tif` of a result.
        target: `.gpkg`, `.parquet` or `.fgb`; an existing file is replaced if it holds polygons of Scenemill only.
        spec: threshold and shaping; None: the threshold of the model card.
        layer: name of the layer of a GeoPackage that is added or replaced; its other layers stay.
        overwrite: replace an existing file whatever it holds.
        watch: progress callback.

    Raises:
        SceneError: the mosaic has no model card.
        SettingsError: the target cannot be written, or holds other content, which would be lost.
        TransientError: the disk fails, or another program is writing the file.
    """
    from pipeline.polygons import vectorize  # imports numba, which inference need not wait for

    spec, target = spec or PolygonSpec(), Path(target)
    if layer is None and not overwrite:
        check_replaceable(target)
    with (
        MosaicReader(Path(mosaic)) as source,
        nullcontext(target) if layer is None else layer_of(target, layer) as file,
    ):
        source.progress = stage_progress(watch, "polygons", source.grid)
        polygons = shape_polygons(vectorize(source, spec), source.grid, spec)
        return write_polygons(
            file,
            polygons,
            crs=source.grid.crs,
            scene_id=source.tags.get("SCENEMILL_SCENE", Path(mosaic).stem),
            model_id=source.tags.get("SCENEMILL_MODEL", ""),
            classes={value: name for _, value, name in source.card.foreground},
        )


def _load_polygon_kernels(grid: RasterGrid, spec: SegmentSpec) -> None:
    """Compile the polygon kernels while regions run; an error shows when polygons are made."""
    from pipeline.polygons import compile_kernels

    compile_kernels(grid, spec.polygons, spec.mosaic.dtype)
