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
from pipeline.model.predictor import augmented, exclusive, forward_passes
from pipeline.mosaic import MosaicReader
from pipeline.polygons import PolygonSpec, PolygonTotals, shape_polygons, write_polygons
from pipeline.results import SceneReport, Stopwatch, open_results, write_report
from pipeline.scene import Scene, check_unchanged, describe_scene
from pipeline.stages import (
    QUICKLOOK,
    Finished,
    Found,
    InferenceResult,
    Inputs,
    RegionPlan,
    RegionRecords,
    SceneWork,
    adopt,
    area_on,
    card_of,
    closing_report,
    find_inferred,
    make_polygons,
    make_preview,
    make_rasters,
    opening_report,
    provenance,
    record_inferred,
    record_outputs,
    region_job,
    resolve_settings,
    reusable,
)

if TYPE_CHECKING:
    from distributed import Client

Watch = Callable[[str, int, int], None]
"""Told `(stage, pixels done, pixels in all)` now and then."""


def segment_scene(
    scene: str | Path | Scene,
    out_dir: str | Path,
    *,
    predictor: Predictor | ArrayFunction,
    card: ModelCard | None = None,
    spec: SegmentSpec | None = None,
    client: Client | None = None,
    watch: Watch | None = None,
) -> SceneReport:
    """Segment one scene into `out_dir/<scene id>/`: mosaic, mask, polygons, preview and report.

    A scene whose result is already there, made of the same inputs, is skipped. Outputs appear whole
    or not at all.

    Args:
        scene: a path or address, or what `describe_scene` made of it.
        out_dir: where the scene's folder goes.
        predictor: what `load_predictor` returned, a torch module, or a function on numpy arrays or
            tensors `(N, bands, H, W) -> (N, classes, H, W)`.
        card: what the predictor takes and gives; a loaded predictor brings its own.
        spec: settings.
        client: a dask.distributed client that runs the regions; None runs them here.
        watch: told about progress.

    Raises:
        SceneError: the scene is refused or damaged.
        ModelError: the predictor does not fit, or returns no probabilities.
        SettingsError: tiling, blend or threshold do not suit the network.
        TransientError: disk, network or workers failed; running again may help.
    """
    spec = spec or SegmentSpec()
    predictor = augmented(predictor, spec.inference.augment)
    card = card_of(predictor, card)
    tiling = resolve_settings(spec, card)
    if not isinstance(scene, Scene):
        scene = describe_scene(scene, spec.reading, card=card)
    results = open_results(out_dir, spec.run.work_dir)
    identity = predictor_identity(predictor, client, _staged(watch, "infer", scene.grid))
    inputs = Inputs(scene=scene, card=card, spec=spec, identity=identity, area=area_on(scene, spec))
    report = opening_report(inputs, results.address(scene.id), forward_passes(predictor))
    if found := results.recover(scene.id, report.inputs.content_key):
        return SceneReport.from_json(found).as_skipped(report)
    with results.publishing(scene.id) as folder, ThreadPoolExecutor(1, "prepare") as meanwhile:
        work = SceneWork(folder)
        adopt(work, results.previous_result(scene.id, report.inputs.mosaic_key), report, spec.polygons)
        prepare = partial(meanwhile.submit, _prepare_polygons, scene.grid, spec) if client is None else None
        with staging_area(spec.distribute, work.folder, client) as exchange:
            job = region_job(
                inputs, tiling, work, key=report.inputs.mosaic_key, tags=provenance(report), exchange=exchange
            )
            inferred = infer_scene(
                job, predictor, work, spec=spec.distribute, client=client, watch=watch, begun=prepare
            )
            finished = run_output_stages(inferred, spec.polygons, work, client=client, watch=watch)
        report = closing_report(report, inferred, finished, work)
        write_report(folder, report)
    return report


def infer_scene(
    job: RegionJob,
    predictor: Predictor | ArrayFunction,
    work: SceneWork,
    *,
    spec: DistributeSpec,
    client: Client | None = None,
    watch: Watch | None = None,
    begun: Callable[[], object] | None = None,
) -> InferenceResult:
    """The first stage: the precision is proven, and every region leaves its rasters in the job's folder.

    What a run that was stopped has done of it is not done again.

    Args:
        job: what the regions have in common; its precision is settled here.
        predictor: the model.
        work: the work folder.
        spec: how the scene is cut.
        client: runs the regions; None runs them here.
        watch: told about progress.
        begun: called when the regions begin, if there are any to run.

    Raises:
        TransientError: also when the scene's file was replaced meanwhile.
    """
    inferred, timer = find_inferred(work, job), Stopwatch()
    if inferred is None:
        with exclusive(predictor) if client is None else nullcontext(), timer.stage("infer"):
            inferred = _infer_missing(job, predictor, work, spec, client, watch, begun)
    return replace(inferred, seconds=timer.seconds)


def _infer_missing(
    job: RegionJob,
    predictor: Predictor | ArrayFunction,
    work: SceneWork,
    spec: DistributeSpec,
    client: Client | None,
    watch: Watch | None,
    begun: Callable[[], object] | None,
) -> InferenceResult:
    """Run the regions that are not done, by the plan of an earlier run if there is one."""
    records = RegionRecords(work.stages, job)
    plan = records.plan()
    if plan is None:
        told = _staged(watch, "infer", job.scene.grid)
        if told is not None:
            told(0)  # the run may have been stopped while another scene held the model
        proof = check_precision(job.scene, job.plan, job.card, predictor, client, told)
        plan = RegionPlan(proof=proof, threshold=job.threshold, regions=plan_work(job, predictor, spec, client))
        records.begin(plan)
    job.folder.mkdir(exist_ok=True)
    job = replace(job, precision=plan.proof.precision, threshold=plan.threshold)
    results = records.done(plan)
    reused = (f"{len(results)} of {len(plan.regions)} regions",) if results else ()
    done = {result.region.index for result in results}
    missing = [region for region in plan.regions if region.index not in done]
    told = _staged(watch, "infer", job.scene.grid, done=sum(result.region.pixels for result in results))
    if begun is not None and missing:
        begun()
    with closing(run_regions(job, missing, predictor, client=client, watch=told)) as found:
        for result in found:
            records.add(result)
            results.append(result)
    check_unchanged(job.scene)
    return replace(record_inferred(work, job, plan.proof, results), reused=reused)


def run_output_stages(
    inferred: InferenceResult,
    spec: PolygonSpec,
    work: SceneWork,
    *,
    client: Client | None = None,
    watch: Watch | None = None,
) -> Finished:
    """`make_outputs` here, or on any worker of the client's cluster, where it is no burden to who infers."""
    job = inferred.job
    if client is None or (job.exchange is not None and not inferred.results):
        return make_outputs(inferred, spec, work.result, watch=watch)
    told = _staged(watch, "polygons", job.scene.grid)
    beside = [work.folder / QUICKLOOK]
    finished = run_finish(make_outputs, inferred, spec, work.result, client=client, beside=beside, watch=told)
    if job.exchange is not None:
        record_outputs(work, job, spec, finished.totals)
    return finished


def make_outputs(inferred: InferenceResult, spec: PolygonSpec, folder: Path, *, watch: Watch | None = None) -> Finished:
    """The other stages: mosaic, polygons and preview. They need no model, only the work folder, and run anywhere.

    Args:
        inferred: what the first stage left.
        spec: threshold and shaping.
        folder: that of the outputs, in the work folder.
        watch: told about progress.
    """
    work, job, timer = SceneWork(folder), inferred.job, Stopwatch()
    with timer.stage("mosaic"):
        make_rasters(work, inferred, spec.threshold)
    with timer.stage("polygons"):
        mosaic, target = work.output("probability"), work.output("polygons")
        totals = make_polygons(work, job.key, spec, lambda: vectorize_mosaic(mosaic, target, spec=spec, watch=watch))
    with timer.stage("preview"):
        make_preview(work, inferred, spec.threshold)
    return Finished(totals=totals, reused=tuple(work.reused), seconds=timer.seconds)


def find_existing(
    scene: Scene,
    out_dir: str | Path,
    *,
    predictor: Predictor | ArrayFunction,
    spec: SegmentSpec,
    client: Client | None = None,
    settled: bool = False,
) -> Found:
    """What `segment_scene` would find of a scene's result; raises what it raises.

    Args:
        scene: as for `segment_scene`, like the others.
        out_dir: where results are.
        predictor: the model.
        spec: settings.
        client: asked which device decides.
        settled: what a killed run left beside a finished result makes it count as none, see `Results.committed`.
    """
    predictor = augmented(predictor, spec.inference.augment)
    identity = predictor_identity(predictor, client)
    results = open_results(out_dir, spec.run.work_dir)
    card, area = card_of(predictor, None), area_on(scene, spec)
    inputs = Inputs(scene=scene, card=card, spec=spec, identity=identity, area=area)
    report = opening_report(inputs, results.address(scene.id), forward_passes(predictor))
    find = results.committed if settled else results.finished
    if found := find(scene.id, report.inputs.content_key):
        return Found(finished=SceneReport.from_json(found).as_skipped(report))
    return Found(reusable=reusable(results.folder(scene.id), report.inputs.mosaic_key))


def vectorize_mosaic(
    mosaic: str | Path, target: str | Path, *, spec: PolygonSpec | None = None, watch: Watch | None = None
) -> PolygonTotals:
    """Turn a probability mosaic into a file of whole polygons (GeoPackage, GeoParquet or FlatGeobuf).

    Args:
        mosaic: a `probability.tif` of ours.
        target: `.gpkg`, `.parquet` or `.fgb`.
        spec: threshold and shaping; the checkpoint's threshold when it says nothing.
        watch: told about progress.

    Raises:
        SceneError: the mosaic is not one of ours.
    """
    from pipeline.polygons import vectorize  # brings numba, which no strip has to wait for

    spec = spec or PolygonSpec()
    with MosaicReader(Path(mosaic)) as source:
        source.progress = _staged(watch, "polygons", source.grid)
        polygons = shape_polygons(vectorize(source, spec), source.grid, spec)
        return write_polygons(
            Path(target),
            polygons,
            crs=source.grid.crs,
            scene_id=source.tags.get("SCENEMILL_SCENE", Path(mosaic).stem),
            model_id=source.tags.get("SCENEMILL_MODEL", ""),
            classes={value: name for _, value, name in source.card.foreground},
        )


def _prepare_polygons(grid: RasterGrid, spec: SegmentSpec) -> None:
    """Load what polygons need while strips are computed; what goes wrong is told when polygons are made."""
    from pipeline.polygons import compile_kernels

    compile_kernels(grid, spec.polygons, spec.mosaic.dtype)


def _staged(watch: Watch | None, stage: str, grid: RasterGrid, done: int = 0) -> Callable[[int], None] | None:
    """Count the pixels of a stage, from any thread, for the watcher; so many are done already."""
    if watch is None:
        return None
    total, turn = grid.height * grid.width, Lock()

    def advance(pixels: int) -> None:
        nonlocal done
        with turn:
            done += pixels
            watch(stage, done, total)

    return advance
