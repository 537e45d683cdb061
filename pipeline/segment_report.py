"""The report of a scene: what is known of it before the work, and what the work came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from pipeline import __version__
from pipeline.card import ModelCard
from pipeline.config import SegmentSpec
from pipeline.dates import resolve_date
from pipeline.export import PolygonTotals
from pipeline.journal import content_key
from pipeline.predictor import Proof
from pipeline.region_job import RegionJob, RegionResult
from pipeline.report import SceneReport
from pipeline.scene import Scene

OUTPUTS = {
    "probability": "probability.tif",
    "mask": "mask.tif",
    "polygons": "polygons.gpkg",
    "preview": "preview.png",
}


@dataclass(frozen=True, kw_only=True)
class Inferred:
    """What the regions of a scene came to; it pickles, so that the rest can be done elsewhere."""

    job: RegionJob
    """What they had in common."""
    proof: Proof
    """The precision they ran in, and why."""
    results: tuple[RegionResult, ...]
    """What each did."""
    seconds: Mapping[str, float]
    """Wall time of each stage."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What was made of the regions."""

    totals: PolygonTotals
    """Polygons written."""
    seconds: Mapping[str, float]
    """Wall time of each stage."""


def opening_report(
    scene: Scene, folder: str, card: ModelCard, spec: SegmentSpec, identity: str | None, passes: int
) -> SceneReport:
    """What is known before the work: what goes in."""
    settings = {**spec.result_settings(), "card": card.to_json()}
    date = resolve_date(scene.acquired, scene.modified_ns, now=datetime.now(UTC))
    return SceneReport(
        scene=scene.id,
        location=scene.location.text,
        status="done",
        folder=folder,
        outputs=OUTPUTS,
        content_key=content_key(scene, identity, settings) if identity else None,
        pixels=scene.grid.height * scene.grid.width,
        model=identity.split()[0] if identity else "function",
        passes=passes,
        settings=settings,
        version=__version__,
        date=date.text,
        date_of=date.of,
    )


def closing_report(report: SceneReport, inferred: Inferred, finished: Finished) -> SceneReport:
    """What the work came to."""
    proof, results = inferred.proof, inferred.results
    return replace(
        report,
        precision=proof.precision,
        precision_change=proof.change,
        precision_note=proof.note,
        valid_pixels=sum(result.valid_pixels for result in results),
        tiles_run=sum(result.tiles_run for result in results),
        tiles_skipped=sum(result.tiles_skipped for result in results),
        regions_split=sum(len(result.rasters) > 1 for result in results),
        polygons=finished.totals.count,
        area_m2=finished.totals.area_m2,
        seconds={**inferred.seconds, **finished.seconds},
    )


def provenance(report: SceneReport) -> dict[str, str]:
    """The tags that say where a raster comes from."""
    return {
        "SCENEMILL_SCENE": report.scene,
        "SCENEMILL_MODEL": report.model,
        "SCENEMILL_KEY": report.content_key or "",
        "SCENEMILL_VERSION": report.version,
        "TIFFTAG_SOFTWARE": f"scenemill {report.version}",
    }
