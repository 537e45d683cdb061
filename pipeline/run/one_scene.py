"""Segment or skip one scene of a catalog, and write its STAC Item."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.catalog import CatalogEntry, describe_entry
from pipeline.config import SegmentSpec
from pipeline.distribute import ProgressCallback
from pipeline.model.predictor import LoadedModel
from pipeline.results import SceneReport, open_results, write_item
from pipeline.segment import segment_scene
from pipeline.stages import find_committed

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


def segment_entry(
    entry: CatalogEntry,
    out_dir: str | Path,
    *,
    predictor: LoadedModel,
    spec: SegmentSpec,
    client: Client | None = None,
    progress: ProgressCallback | None = None,
) -> SceneReport:
    """Describe and segment one scene of a catalog, and write its STAC Item; raises what `segment_scene` raises."""
    scene = describe_entry(entry, spec.reading, card=predictor.card)
    report = segment_scene(scene, out_dir, predictor=predictor, spec=spec, client=client, watch=progress)
    return _with_item(report, entry, out_dir, spec)


def skip_entry(
    entry: CatalogEntry, out_dir: str | Path, *, predictor: LoadedModel, spec: SegmentSpec
) -> SceneReport | None:
    """The report of a finished remote scene; None: local, not finished, or not to be decided without cleanup."""
    if entry.refused is not None or not is_remote(entry):
        return None
    scene = describe_entry(entry, spec.reading, card=predictor.card)
    found = find_committed(scene, out_dir, predictor=predictor, spec=spec)
    return None if found is None else _with_item(found, entry, out_dir, spec)


def is_remote(entry: CatalogEntry) -> bool:
    """Whether any file of a scene is remote."""
    return any("://" in address for address in (entry.location, *(file.location for file in entry.files)))


def _with_item(report: SceneReport, entry: CatalogEntry, out_dir: str | Path, spec: SegmentSpec) -> SceneReport:
    """Write the STAC Item of a result, and return its report with the source of the catalog."""
    report = replace(report, inputs=replace(report.inputs, source=entry.source))
    write_item(open_results(out_dir, spec.run.work_dir).documents, report)
    if report.reason is not None:
        log.warning(
            "%s: %s, %s; --set run.repair=true makes the result again", report.folder, report.status, report.reason
        )
    log.info("%s: %s, %d pass(es) of a network per tile", report.scene, report.status, report.inputs.passes)
    return report
