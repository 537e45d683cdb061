"""Find and reuse a scene's previous result, or the stages an interrupted run completed."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.config import SegmentSpec
from pipeline.distribute import Executor, LocalExecutor
from pipeline.model import ArrayFunction, Predictor
from pipeline.model.predictor import with_tta
from pipeline.polygons import PolygonSpec, PolygonTotals
from pipeline.results import (
    OUTPUTS,
    REPORT,
    Results,
    SceneReport,
    StageRecords,
    open_results,
    read_report_file,
    work_folder,
)
from pipeline.scene import Scene
from pipeline.stages.inputs import resolve_inputs
from pipeline.stages.outputs import COUNTS, SceneStages, mask_key, polygons_key
from pipeline.stages.region_records import count_done_regions
from pipeline.stages.scene_report import opening_report
from pipeline.storage import is_file, real_folder, sha256_file


@dataclass(frozen=True, kw_only=True)
class ExistingResult:
    """What exists of a scene's result before a run."""

    finished: SceneReport | None = None
    """The finished result, with which the scene is skipped; None: the scene runs."""
    reusable: str = ""
    """The completed work that a run reuses, in words; empty: none."""


def find_existing(
    scene: Scene,
    out_dir: str | Path,
    *,
    predictor: Predictor | ArrayFunction,
    spec: SegmentSpec,
    executor: Executor,
) -> ExistingResult:
    """The existing result that `segment_scene` would skip or reuse; raises what `segment_scene` raises."""
    results = open_results(out_dir, spec.run.work_dir)
    report = _expected_report(scene, results, predictor, spec, executor)
    found = results.scenes.finished(scene.id, report.inputs.content_key)
    if found is not None and not is_repaired(found, spec):
        return ExistingResult(finished=found.as_skipped(report))
    return ExistingResult(reusable=describe_reusable(results.scenes.folder(scene.id), report.inputs.mosaic_key))


def find_committed(
    scene: Scene, out_dir: str | Path, *, predictor: Predictor | ArrayFunction, spec: SegmentSpec
) -> SceneReport | None:
    """The report of a finished result, unless it needs cleanup after a killed run, see `SceneResults.committed`."""
    results = open_results(out_dir, spec.run.work_dir)
    report = _expected_report(scene, results, predictor, spec, LocalExecutor())
    found = results.scenes.committed(scene.id, report.inputs.content_key)
    return None if found is None or is_repaired(found, spec) else found.as_skipped(report)


def is_repaired(found: SceneReport, spec: SegmentSpec) -> bool:
    """Whether a run makes a finished result again: its files were changed after they were written, and it may."""
    return found.reason is not None and spec.run.repair


def _expected_report(
    scene: Scene, results: Results, predictor: Predictor | ArrayFunction, spec: SegmentSpec, executor: Executor
) -> SceneReport:
    """The report that a run would begin with."""
    predictor = with_tta(predictor, spec.inference.augment)
    return opening_report(resolve_inputs(scene, predictor, None, spec, executor), results.documents.address(scene.id))


def reuse_previous_stages(work: SceneStages, previous: Path | None, report: SceneReport, spec: PolygonSpec) -> None:
    """Reuse the files of the previous result that are still valid: the mosaic, if only polygon settings changed.

    Files are verified by their digests, and hard-linked where the disk can.

    Args:
        work: the work folder.
        previous: folder of the previous result, if there is one on this machine.
        report: of the new result.
        spec: threshold and shaping.
    """
    key = report.inputs.mosaic_key
    if previous is None or key is None or work.stages.find("mosaic", key) is not None:
        return
    found = previous_report(previous, key)
    if found is None or not _link_verified(work, previous, found, "probability"):
        return

    # The verified mosaic replaces the partial work of an interrupted run.
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

    # Mask and preview depend on the mosaic and the threshold alone.
    if found.inputs.settings["polygons"]["threshold"] == spec.threshold:  # type: ignore[index]
        for stage in ("mask", "preview"):
            if _link_verified(work, previous, found, stage):
                work.stages.record(stage, mask_key(key, spec.threshold), {}, [work.output(stage)])
    if found.inputs.content_key == report.inputs.content_key and _link_verified(work, previous, found, "polygons"):
        totals = PolygonTotals(count=found.polygons, area_m2=dict(found.area_m2))
        work.stages.record("polygons", polygons_key(key, spec), asdict(totals), [work.output("polygons")])


def previous_report(folder: Path, mosaic_key: str | None) -> SceneReport | None:
    """The report of a result whose mosaic has this key, or None."""
    found = read_report_file(folder / REPORT, folder.name) if real_folder(folder) else None
    return found if found is not None and mosaic_key is not None and found.inputs.mosaic_key == mosaic_key else None


def describe_reusable(folder: Path | None, mosaic_key: str | None) -> str:
    """`ExistingResult.reusable` of a result folder on this machine, for the mosaic with this key."""
    if folder is None or mosaic_key is None:
        return ""
    if previous_report(folder, mosaic_key) is not None:
        return "the mosaic of the result in its folder is reused, since only polygon settings changed"
    stages = StageRecords(work_folder(folder))
    if stages.find("mosaic", mosaic_key) is not None:
        return "the mosaic of an interrupted run is reused"
    done, planned = count_done_regions(stages, mosaic_key)
    return f"{done} of {planned} regions were completed by an interrupted run" if done else ""


def _link_verified(work: SceneStages, previous: Path, report: SceneReport, kind: str) -> bool:
    """Link a file of the previous result into the work folder; False if it differs from the digest in its report."""
    source, target = previous / OUTPUTS[kind], work.output(kind)
    target.unlink(missing_ok=True)
    if not is_file(source):
        return False
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
