"""One scene from raster to polygons: the whole pipeline on one page. Start here.

scene --describe--> grid --plan--> tiles, regions --infer--> strips --> mosaic --> polygons --> GeoPackage
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from pipeline.averaging import augmented, passes_of
from pipeline.card import ModelCard
from pipeline.config import SegmentSpec
from pipeline.decide import resolve_threshold
from pipeline.distribute import (
    exchanging,
    predictor_identity,
    prove_precision,
    region_count,
    run_finish,
    run_regions,
)
from pipeline.errors import ModelError
from pipeline.exchange import Exchange
from pipeline.export import PolygonTotals, write_polygons
from pipeline.glance import join_glances
from pipeline.grid import RasterGrid
from pipeline.levels import TOP_LEVEL
from pipeline.mosaic import MosaicReader, read_mask
from pipeline.predictor import ArrayFunction, Predictor, Prepared, exclusive
from pipeline.region_job import RegionJob, join_regions, widest_region
from pipeline.report import SceneReport, Stopwatch, write_preview, write_report
from pipeline.results import open_results
from pipeline.scene import Scene, describe_scene
from pipeline.segment_report import OUTPUTS, Finished, Inferred, closing_report, opening_report, provenance
from pipeline.shaping import PolygonSpec, shape_polygons
from pipeline.tiling import Tiling, plan_regions, plan_tiles, resolve_tiling

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
        WorldError: disk, network or workers failed; running again may help.
    """
    spec = spec or SegmentSpec()
    predictor = augmented(predictor, spec.inference.augment)
    card = _card_of(predictor, card)
    tiling = resolve_settings(spec, card)
    if not isinstance(scene, Scene):
        scene = describe_scene(scene, spec.reading, card=card)
    results = open_results(out_dir)
    identity = predictor_identity(predictor, client, _staged(watch, "infer", scene.grid))
    report = opening_report(scene, results.address(scene.id), card, spec, identity, passes_of(predictor))
    if found := results.finished(scene.id, report.content_key):
        return SceneReport.from_json(found).found_again(report.location, report.folder)
    with (
        results.publishing(scene.id) as work,
        exchanging(spec.distribute, work, client) as exchange,
        ThreadPoolExecutor(1, "prepare") as meanwhile,
    ):
        job = _region_job(scene, tiling, card, spec, identity, provenance(report), work, exchange)
        if client is None:
            meanwhile.submit(_prepare_polygons, scene.grid, spec)
        rows = region_count(spec.distribute, client)
        inferred = infer_scene(job, predictor, regions=rows, client=client, watch=watch)
        finished = finish_anywhere(inferred, spec.polygons, work, client=client, watch=watch)
        report = closing_report(report, inferred, finished)
        write_report(work, report)
    return report


def infer_scene(
    job: RegionJob,
    predictor: Predictor | ArrayFunction,
    *,
    regions: int,
    client: Client | None = None,
    watch: Watch | None = None,
) -> Inferred:
    """The first stage: the precision is proven, and every region leaves its rasters in the job's folder.

    Args:
        job: what the regions have in common; its precision is settled here.
        predictor: the model.
        regions: about how many there are from top to bottom.
        client: runs them; None runs them here.
        watch: told about progress.
    """
    timer = Stopwatch()
    widest = widest_region(job.scene, job.plan, job.card, job.mosaic)
    planned = plan_regions(job.plan, rows=regions, widest=widest)
    with exclusive(predictor) if client is None else nullcontext(), timer.stage("infer"):
        told = _staged(watch, "infer", job.scene.grid)
        proof = prove_precision(job.scene, job.plan, job.card, predictor, client, told)
        job = replace(job, precision=proof.precision)
        job.folder.mkdir()
        results = tuple(run_regions(job, planned, predictor, client=client, watch=told))
    return Inferred(job=job, proof=proof, results=results, seconds=timer.seconds)


def finish_anywhere(
    inferred: Inferred, spec: PolygonSpec, work: Path, *, client: Client | None = None, watch: Watch | None = None
) -> Finished:
    """`finish_scene` here, or on any worker of the client's cluster, where it is no burden to who infers."""
    if client is None:
        return finish_scene(inferred, spec, work, watch=watch)
    told = _staged(watch, "polygons", inferred.job.scene.grid)
    return run_finish(finish_scene, inferred, spec, work, client=client, watch=told)


def finish_scene(inferred: Inferred, spec: PolygonSpec, work: Path, *, watch: Watch | None = None) -> Finished:
    """The other stages: mosaic, polygons and preview. They need no model, only the work folder, and run anywhere.

    Args:
        inferred: what the first stage left.
        spec: threshold and shaping.
        work: the work folder.
        watch: told about progress.
    """
    timer = Stopwatch()
    with timer.stage("mosaic"):
        join_regions(inferred.job, inferred.results, work)
    with timer.stage("polygons"):
        totals = vectorize_mosaic(work / OUTPUTS["probability"], work / OUTPUTS["polygons"], spec=spec, watch=watch)
    with timer.stage("preview"):
        glance = join_glances([result.glance for result in inferred.results])
        write_preview(work / OUTPUTS["preview"], glance, *read_mask(work / OUTPUTS["mask"], glance.shape[1:]))
    shutil.rmtree(inferred.job.folder)
    return Finished(totals=totals, seconds=timer.seconds)


def find_finished(
    scene: Scene,
    out_dir: str | Path,
    *,
    predictor: Predictor | ArrayFunction,
    spec: SegmentSpec,
    client: Client | None = None,
) -> SceneReport | None:
    """The result that `segment_scene` would skip the scene for, None where it would run; raises what it raises."""
    predictor = augmented(predictor, spec.inference.augment)
    identity = predictor_identity(predictor, client)
    results = open_results(out_dir)
    report = opening_report(
        scene, results.address(scene.id), _card_of(predictor, None), spec, identity, passes_of(predictor)
    )
    found = results.finished(scene.id, report.content_key)
    return SceneReport.from_json(found).found_again(report.location, report.folder) if found else None


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
    from pipeline.vectorize import vectorize  # brings numba, which no strip has to wait for

    spec = spec or PolygonSpec()
    with MosaicReader(Path(mosaic)) as source:
        source.watch = _staged(watch, "polygons", source.grid)
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
    from pipeline.vectorize import compile_kernels

    compile_kernels(grid, spec.polygons, spec.mosaic.dtype)


def resolve_settings(spec: SegmentSpec, card: ModelCard) -> Tiling:
    """Settings and model put together, before any work.

    Raises:
        SettingsError: tile size, overlap, blend or threshold do not suit the network.
    """
    resolve_threshold(card, spec.polygons.threshold, TOP_LEVEL[spec.mosaic.dtype])
    return resolve_tiling(spec.tiling, card, exact=spec.blend == "exact")


def _card_of(predictor: Predictor | ArrayFunction, card: ModelCard | None) -> ModelCard:
    own = predictor.card if isinstance(predictor, Prepared) else None
    if own is not None and card is not None and own != card:
        raise ModelError("the predictor brings its own card and another one was given; leave card out")
    found = own or card
    if found is None:
        raise ModelError("a plain predictor needs a card, e.g. ModelCard(bands=('red', ...), classes=('building',))")
    return found


def _region_job(
    scene: Scene,
    tiling: Tiling,
    card: ModelCard,
    spec: SegmentSpec,
    identity: str | None,
    tags: Mapping[str, str],
    work: Path,
    exchange: Exchange | None,
) -> RegionJob:
    """What every region of the scene has in common."""
    return RegionJob(
        scene=scene,
        plan=plan_tiles(scene.grid.shape, tiling),
        card=card,
        identity=identity,
        precision="",
        blend=spec.blend,
        inference=spec.inference,
        mosaic=spec.mosaic,
        threshold=spec.polygons.threshold,
        threads=spec.reading.threads,
        tags=tags,
        folder=work.absolute() / "regions",
        exchange=exchange,
    )


def _staged(watch: Watch | None, stage: str, grid: RasterGrid) -> Callable[[int], None] | None:
    """Count the pixels of a stage, from any thread, for the watcher."""
    if watch is None:
        return None
    total, done, turn = grid.height * grid.width, 0, Lock()

    def advance(pixels: int) -> None:
        nonlocal done
        with turn:
            done += pixels
            watch(stage, done, total)

    return advance
