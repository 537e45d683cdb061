"""Report of a scene: its inputs before the run, and its outputs after it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from pipeline import __version__
from pipeline.results import OUTPUTS, OutputFiles, SceneInputs, SceneReport, SceneStatistics, content_key
from pipeline.scene import resolve_date
from pipeline.stages.inputs import Inputs
from pipeline.stages.outputs import COUNTS, InferenceResult, SceneOutputs, SceneStages


def opening_report(inputs: Inputs, folder: str) -> SceneReport:
    """The report before the run: inputs, settings and content keys; `folder` is the address of the result."""
    scene, area, identity = inputs.scene, inputs.area, inputs.identity
    settings = {**inputs.spec.result_settings(), "card": inputs.card.to_json()}
    pixels = scene.grid.height * scene.grid.width
    if area is not None:
        settings["area"] = area.digest
    # The mosaic does not depend on the polygon settings, so its key leaves them out.
    of_mosaic = {name: section for name, section in settings.items() if name != "polygons"}
    date = resolve_date(scene.acquired, scene.modified_ns, now=datetime.now(UTC))
    known = SceneInputs(
        content_key=content_key(scene, identity, settings) if identity else None,
        mosaic_key=content_key(scene, identity, of_mosaic) if identity else None,
        model=identity.split()[0] if identity else "function",
        passes=inputs.passes,
        settings=settings,
        version=__version__,
        area="" if area is None else area.name,
        area_share=1.0 if area is None else area.count / pixels,
        date=date.text,
        date_of=date.of,
        files=[str(file.location) for file in scene.files] if len(scene.files) > 1 else [],
    )
    return SceneReport(
        scene=scene.id,
        location=str(scene.location),
        status="done",
        folder=folder,
        inputs=known,
        outputs=OutputFiles(names=OUTPUTS),
        statistics=SceneStatistics(pixels=pixels),
    )


def closing_report(
    report: SceneReport, inferred: InferenceResult, outputs: SceneOutputs, work: SceneStages
) -> SceneReport:
    """The report after the run, with digests, statistics and times."""
    check = inferred.check
    statistics = replace(
        report.statistics,
        reused=[*inferred.reused, *outputs.reused],
        precision=check.precision,
        precision_change=check.change,
        precision_note=check.note,
        polygons=outputs.totals.count,
        area_m2=outputs.totals.area_m2,
        seconds={**inferred.seconds, **outputs.seconds},
        **{name: getattr(inferred, name) for name in COUNTS},
    )
    files = replace(report.outputs, digests=work.digests(), sizes=work.sizes())
    return replace(report, outputs=files, statistics=statistics)


def provenance(report: SceneReport) -> dict[str, str]:
    """Provenance tags of a raster."""
    return {
        "SCENEMILL_SCENE": report.scene,
        "SCENEMILL_MODEL": report.inputs.model,
        "SCENEMILL_KEY": report.inputs.mosaic_key or "",
        "SCENEMILL_VERSION": report.inputs.version,
        "TIFFTAG_SOFTWARE": f"scenemill {report.inputs.version}",
    }
