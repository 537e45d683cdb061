"""One scene from raster to polygons: the whole pipeline on one page. Start here.

scene --describe--> grid --plan--> tiles, regions --infer--> strips --> mosaic --> polygons --> GeoPackage
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from pipeline.config import SegmentSpec
from pipeline.distribute import (
    DistributeSpec,
    check_precision,
    plan_work,
    predictor_identity,
    run_finish,
    run_regions,
    staging_area,
)
from pipeline.grid import RasterGrid
from pipeline.inference import RegionJob
from pipeline.model import ArrayFunction, ModelCard, Predictor
from pipeline.model.predictor import device_lock, forward_passes, with_tta
from pipeline.mosaic import MosaicReader
from pipeline.polygons import PolygonSpec, PolygonTotals, shape_polygons, write_polygons
from pipeline.results import SceneReport, Stopwatch, open_results, write_report
from pipeline.scene import Scene, check_unchanged, describe_scene
from pipeline.stages import (
    QUICKLOOK,
    ExistingResult,
    InferenceResult,
    Inputs,
    RegionPlan,
    RegionRecords,
    SceneOutputs,
    SceneStages,
    area_on,
    card_of,
    closing_report,
    describe_reusable,
    find_inference,
    make_polygons,
    make_preview,
    make_rasters,
    opening_report,
    provenance,
    record_inference,
    record_outputs,
    region_job,
    resolve_settings,
    reuse_previous_stages,
)

if TYPE_CHECKING:
    from distributed import Client

ProgressCallback = Callable[[str, int, int], None]
"""Called with `(stage, finished pixels, all pixels)`."""


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
    predictor = with_tta(predictor, spec.inference.augment)
    card = card_of(predictor, card)
    tiling = resolve_settings(spec, card)
    if not isinstance(scene, Scene):
        scene = describe_scene(scene, spec.reading, card=card)
    results = open_results(out_dir, spec.run.work_dir)
    identity = predictor_identity(predictor, client, _stage_progress(watch, "infer", scene.grid))
    inputs = Inputs(scene=scene, card=card, spec=spec, identity=identity, area=area_on(scene, spec))
    report = opening_report(inputs, results.address(scene.id), forward_passes(predictor))
    if found := results.recover(scene.id, report.inputs.content_key):
        return SceneReport.from_json(found).as_skipped(report)
    with results.publishing(scene.id) as folder, ThreadPoolExecutor(1, "prepare") as background:
        work = SceneStages(folder)
        reuse_previous_stages(work, results.previous_result(scene.id, report.inputs.mosaic_key), report, spec.polygons)
        prepare = partial(background.submit, _load_polygon_kernels, scene.grid, spec) if client is None else None
        with staging_area(spec.distribute, work.folder, client) as exchange:
            job = region_job(
                inputs, tiling, work, key=report.inputs.mosaic_key, tags=provenance(report), exchange=exchange
            )
            inferred = infer_scene(
                job, predictor, work, spec=spec.distribute, client=client, watch=watch, on_start=prepare
            )
            outputs = run_output_stages(inferred, spec.polygons, work, client=client, watch=watch)
        report = closing_report(report, inferred, outputs, work)
        write_report(folder, report)
    return report


def infer_scene(
    job: RegionJob,
    predictor: Predictor | ArrayFunction,
    work: SceneStages,
    *,
    spec: DistributeSpec,
    client: Client | None = None,
    watch: ProgressCallback | None = None,
    on_start: Callable[[], object] | None = None,
) -> InferenceResult:
    """Run the first stage: choose the precision, and write the rasters of every region to the job's folder.

    Regions that an interrupted run completed are reused.

    Args:
        job: what the regions have in common; its precision is chosen here.
        predictor: the model.
        work: the work folder.
        spec: regions and cluster.
        client: of the cluster; None: this process.
        watch: progress callback.
        on_start: called before the first region, if there are any to run.

    Raises:
        TransientError: also when the scene's file was replaced during the run.
    """
    inferred, timer = find_inference(work, job), Stopwatch()
    if inferred is None:
        with device_lock(predictor) if client is None else nullcontext(), timer.stage("infer"):
            inferred = _run_missing_regions(job, predictor, work, spec, client, watch, on_start)
    return replace(inferred, seconds=timer.seconds)


def _run_missing_regions(
    job: RegionJob,
    predictor: Predictor | ArrayFunction,
    work: SceneStages,
    spec: DistributeSpec,
    client: Client | None,
    watch: ProgressCallback | None,
    on_start: Callable[[], object] | None,
) -> InferenceResult:
    """Run the regions that are not completed yet, by the plan of an earlier run if there is one."""
    records = RegionRecords(work.stages, job)
    plan = records.plan()
    if plan is None:
        progress = _stage_progress(watch, "infer", job.scene.grid)
        if progress is not None:
            progress(0)  # the run may have been cancelled while this scene waited for the model
        proof = check_precision(job.scene, job.plan, job.card, predictor, client, progress)
        plan = RegionPlan(proof=proof, threshold=job.threshold, regions=plan_work(job, predictor, spec, client))
        records.begin(plan)
    job.folder.mkdir(exist_ok=True)
    job = replace(job, precision=plan.proof.precision, threshold=plan.threshold)
    results = records.done(plan)
    reused = (f"{len(results)} of {len(plan.regions)} regions",) if results else ()
    done = {result.region.index for result in results}
    missing = [region for region in plan.regions if region.index not in done]
    progress = _stage_progress(watch, "infer", job.scene.grid, done=sum(result.region.pixels for result in results))
    if on_start is not None and missing:
        on_start()
    with closing(run_regions(job, missing, predictor, client=client, progress=progress)) as finished:
        for result in finished:
            records.add(result)
            results.append(result)
    check_unchanged(job.scene)
    return replace(record_inference(work, job, plan.proof, results), reused=reused)


def run_output_stages(
    inferred: InferenceResult,
    spec: PolygonSpec,
    work: SceneStages,
    *,
    client: Client | None = None,
    watch: ProgressCallback | None = None,
) -> SceneOutputs:
    """Run the CPU-only stages here, or on any cluster worker, so that they do not block inference."""
    job = inferred.job
    if client is None or (job.exchange is not None and not inferred.results):
        return make_outputs(inferred, spec, work.result, watch=watch)
    progress = _stage_progress(watch, "polygons", job.scene.grid)
    extra = [work.folder / QUICKLOOK]
    outputs = run_finish(make_outputs, inferred, spec, work.result, client=client, extra_files=extra, progress=progress)
    if job.exchange is not None:
        record_outputs(work, job, spec, outputs.totals)
    return outputs


def make_outputs(
    inferred: InferenceResult, spec: PolygonSpec, folder: Path, *, watch: ProgressCallback | None = None
) -> SceneOutputs:
    """Run the stages mosaic, mask, polygons and preview, which need only the work folder, not the model.

    Args:
        inferred: the result of the first stage.
        spec: threshold and shaping.
        folder: of the outputs, in the work folder.
        watch: progress callback.
    """
    work, job, timer = SceneStages(folder), inferred.job, Stopwatch()
    with timer.stage("mosaic"):
        make_rasters(work, inferred, spec.threshold)
    with timer.stage("polygons"):
        mosaic, target = work.output("probability"), work.output("polygons")
        totals = make_polygons(work, job.key, spec, lambda: vectorize_mosaic(mosaic, target, spec=spec, watch=watch))
    with timer.stage("preview"):
        make_preview(work, inferred, spec.threshold)
    return SceneOutputs(totals=totals, reused=tuple(work.reused), seconds=timer.seconds)


def find_existing(
    scene: Scene,
    out_dir: str | Path,
    *,
    predictor: Predictor | ArrayFunction,
    spec: SegmentSpec,
    client: Client | None = None,
    committed: bool = False,
) -> ExistingResult:
    """The existing result that `segment_scene` would skip or reuse; arguments and errors are those of `segment_scene`.

    With `committed`, a finished result that needs cleanup after a killed run does not count, see `Results.committed`.
    """
    predictor = with_tta(predictor, spec.inference.augment)
    identity = predictor_identity(predictor, client)
    results = open_results(out_dir, spec.run.work_dir)
    card, area = card_of(predictor, None), area_on(scene, spec)
    inputs = Inputs(scene=scene, card=card, spec=spec, identity=identity, area=area)
    report = opening_report(inputs, results.address(scene.id), forward_passes(predictor))
    find = results.committed if committed else results.finished
    if found := find(scene.id, report.inputs.content_key):
        return ExistingResult(finished=SceneReport.from_json(found).as_skipped(report))
    return ExistingResult(reusable=describe_reusable(results.folder(scene.id), report.inputs.mosaic_key))


def vectorize_mosaic(
    mosaic: str | Path, target: str | Path, *, spec: PolygonSpec | None = None, watch: ProgressCallback | None = None
) -> PolygonTotals:
    """Turn a probability mosaic into a file of whole polygons (GeoPackage, GeoParquet or FlatGeobuf).

    Args:
        mosaic: a `probability.tif` of a result.
        target: `.gpkg`, `.parquet` or `.fgb`.
        spec: threshold and shaping; None: the threshold of the model card.
        watch: progress callback.

    Raises:
        SceneError: the mosaic has no model card.
    """
    from pipeline.polygons import vectorize  # imports numba, which inference need not wait for

    spec = spec or PolygonSpec()
    with MosaicReader(Path(mosaic)) as source:
        source.progress = _stage_progress(watch, "polygons", source.grid)
        polygons = shape_polygons(vectorize(source, spec), source.grid, spec)
        return write_polygons(
            Path(target),
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


def _stage_progress(
    watch: ProgressCallback | None, stage: str, grid: RasterGrid, done: int = 0
) -> Callable[[int], None] | None:
    """A thread-safe counter of a stage's pixels that reports to `watch`; `done` of them are finished already."""
    if watch is None:
        return None
    total, lock = grid.height * grid.width, Lock()

    def advance(pixels: int) -> None:
        nonlocal done
        with lock:
            done += pixels
            watch(stage, done, total)

    return advance
