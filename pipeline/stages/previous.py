"""What is there of a scene before it is run: a former result, or what a run that was stopped has done."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.polygons import PolygonSpec, PolygonTotals
from pipeline.results import REPORT, SceneReport, StageRecords, work_folder
from pipeline.stages.outputs import COUNTS, OUTPUTS, SceneWork, mask_key, polygons_key
from pipeline.stages.region_records import done_regions
from pipeline.storage import sha256_file


@dataclass(frozen=True, kw_only=True)
class Found:
    """What there is of a scene's result before it is run."""

    finished: SceneReport | None = None
    """The whole result, for which the scene is skipped; None where it runs."""
    reusable: str = ""
    """What is not done again when it runs, in words; empty: nothing."""


def adopt(work: SceneWork, former: Path | None, report: SceneReport, spec: PolygonSpec) -> None:
    """Take over what is still right of the former result: the mosaic, where only settings of polygons are others now.

    Its files are believed by their digests, and shared rather than copied where the disk can.

    Args:
        work: the work folder.
        former: the folder of the former result, if there is one on this machine.
        report: of the new one.
        spec: threshold and shaping.
    """
    key = report.inputs.mosaic_key
    if former is None or key is None or work.stages.find("mosaic", key) is not None:
        return
    found = former_report(former, key)
    if found is None or not _shared(work, former, found, "probability"):
        return
    work.stages.discard()
    facts = {
        "proof": {
            "precision": found.statistics.precision,
            "change": found.statistics.precision_change,
            "note": found.statistics.precision_note,
        },
        "counts": {name: getattr(found.statistics, name) for name in COUNTS},
    }
    work.stages.record("infer", key, facts)
    work.stages.record("mosaic", key, {}, [work.output("probability")])
    if found.inputs.settings["polygons"]["threshold"] == spec.threshold:  # type: ignore[index]
        for stage in ("mask", "preview"):
            if _shared(work, former, found, stage):
                work.stages.record(stage, mask_key(key, spec.threshold), {}, [work.output(stage)])
    if found.inputs.content_key == report.inputs.content_key and _shared(work, former, found, "polygons"):
        totals = PolygonTotals(count=found.polygons, area_m2=dict(found.area_m2))
        work.stages.record("polygons", polygons_key(key, spec), asdict(totals), [work.output("polygons")])


def former_report(folder: Path, mosaic_key: str | None) -> SceneReport | None:
    """The report of a result whose mosaic has this key; None where there is none."""
    try:
        found = SceneReport.from_json(json.loads((folder / REPORT).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    return found if mosaic_key is not None and found.inputs.mosaic_key == mosaic_key else None


def reusable(folder: Path | None, mosaic_key: str | None) -> str:
    """What a run need not do again of a scene, in words, as `Found` says.

    Args:
        folder: of the scene's result, if it is on this machine.
        mosaic_key: identity of the mosaic that is wanted.
    """
    if folder is None or mosaic_key is None:
        return ""
    if former_report(folder, mosaic_key) is not None:
        return "the mosaic of the result in its folder is used again, since only settings of polygons are others"
    stages = StageRecords(work_folder(folder))
    if stages.find("mosaic", mosaic_key) is not None:
        return "the mosaic of a run that was stopped is used again"
    done, planned = done_regions(stages, mosaic_key)
    return f"{done} of {planned} regions were done by a run that was stopped" if done else ""


def _shared(work: SceneWork, former: Path, report: SceneReport, kind: str) -> bool:
    """Whether a file of the former result is what its report says, and is now in the work folder too."""
    source, target = former / OUTPUTS[kind], work.output(kind)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        return False
    except OSError:
        shutil.copyfile(source, target)
    if sha256_file(target) == report.outputs.digests.get(OUTPUTS[kind]):
        return True
    target.unlink()
    return False
