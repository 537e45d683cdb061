"""Merge of the polygons of all scenes into one file, without duplicates where scenes overlap.

scenes --match pairs--> matches --select--> polygons to keep, drop and join --stream--> one file

No polygon is ever cut: each is kept unchanged, dropped as a duplicate, or joined with others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import SettingsError, TransientError
from pipeline.merge.coverage import CoverageCache
from pipeline.merge.matching import match_scenes
from pipeline.merge.record import (
    FILES,
    MergeReport,
    is_up_to_date,
    merge_key,
    previous_merge,
    recorded_settings,
    write_record,
)
from pipeline.merge.rows import MergedRows, ProgressCallback
from pipeline.merge.scenes import MergedScene, by_priority, finished_scenes, localized, overlapping_pairs
from pipeline.merge.selection import Selection, polygon_ids, select_polygons
from pipeline.merge.spec import MergeSpec
from pipeline.polygons import write_layer
from pipeline.results import COLLECTION, Documents, open_results, write_collection
from pipeline.storage import disk_error, try_lock

__all__ = ["MergeReport", "MergeSpec", "compare_scenes", "merge_scenes"]

LOCK = ".merge.lock"
"""Name of the lock file that excludes concurrent merges of a folder."""


def merge_scenes(
    out_dir: str | Path,
    spec: MergeSpec,
    *,
    work_dir: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> MergeReport | None:
    """Merge the polygons of all complete results in a folder, unless the file is up to date.

    Args:
        out_dir: folder or `s3://` address of a run's results.
        spec: format and rules; GeoPackage when it names no format.
        work_dir: folder for downloads from an object store; None: the system's temporary folder.
        progress: called with the stage, the steps done and all steps.

    Returns:
        The record of the merge; None without any complete result.

    Raises:
        SettingsError: `merge.crs` is invalid, or the folder cannot be written.
        SceneError: a result is damaged, or the CRS does not reach a scene.
        TransientError: disk or network fail, or another process is merging the same folder.
    """
    results = open_results(out_dir, work_dir)
    documents = results.documents
    documents.check()
    scenes = by_priority(finished_scenes(results), spec.priority)
    if not scenes:
        return None
    crs = _resolve_crs(scenes, spec.crs)
    report = MergeReport(
        key=merge_key(scenes, spec),
        file=FILES[spec.output or "gpkg"],
        crs=crs.to_string(),
        settings=recorded_settings(spec),
        scenes=[scene.id for scene in scenes],
        edited=[scene.id for scene in scenes if scene.is_edited],
    )
    with _work_folder(documents, work_dir) as folder:
        # Checked under the lock, since a concurrent merge may just have written the file.
        previous = previous_merge(documents)
        if previous is not None and is_up_to_date(documents, previous, report):
            return replace(previous, changed=False)
        scenes = localized(scenes, documents, folder)
        selection = compare_scenes(scenes, spec, progress=progress)
        report = _write(MergedRows(scenes, selection, crs, progress=progress), folder / report.file, report)

        # In this order a kill never leaves a record whose file is missing.
        documents.upload(report.file, folder / report.file)
        write_record(documents, report)
        if previous is not None and previous.file != report.file:
            documents.remove(previous.file)
        if documents.read(COLLECTION) is not None:
            write_collection(results)
    return report


def _write(rows: MergedRows, path: Path, report: MergeReport) -> MergeReport:
    """Write the file; returns the report with its counts."""
    write_layer(path, rows.batches(), rows.schema, crs=rows.crs, classes=rows.legend)
    return replace(rows.with_counts(report), file_bytes=path.stat().st_size)


def compare_scenes(
    scenes: Sequence[MergedScene], spec: MergeSpec, *, progress: ProgressCallback | None = None
) -> Selection:
    """Select polygons of scenes in order of priority, by ids of `polygon_ids`; `progress` counts pairs of scenes."""
    coverages = CoverageCache()
    no_pairs = np.empty((0, 2), np.int64)
    replacements, merges, unmatched = [no_pairs], [no_pairs], [no_pairs[:, 0]]
    pairs = overlapping_pairs(scenes)
    for done, (first, second) in enumerate(pairs, start=1):
        matches = match_scenes(scenes[first], scenes[second], coverages, spec)
        ends = np.array([first, second])
        # Edges go from the polygon that replaces to the one that is replaced.
        replacements += [polygon_ids(ends, matches.kept), polygon_ids(ends, matches.dropped)[:, ::-1]]
        merges.append(polygon_ids(ends, matches.merged))
        if spec.unmatched == "drop":
            unmatched.append(polygon_ids(second, matches.unmatched))
        if progress is not None:
            progress("compare", done, len(pairs))
    return select_polygons(np.concatenate(replacements), np.concatenate(merges), np.concatenate(unmatched))


def _resolve_crs(scenes: Sequence[MergedScene], requested: str | None) -> CRS:
    """The CRS of the file: as set, else that of all scenes, else EPSG:4326."""
    if requested is not None:
        try:
            return CRS.from_user_input(requested)
        except CRSError as error:
            raise SettingsError(f"merge.crs = {requested!r} is no CRS: {error}; give one such as EPSG:3035") from error
    first = scenes[0].grid.crs
    return first if all(scene.grid.crs == first for scene in scenes) else CRS.from_epsg(4326)


@contextmanager
def _work_folder(documents: Documents, work_dir: str | Path | None) -> Iterator[Path]:
    """The folder to write the file in: that of the results, or a temporary one for results in a store."""
    folder = documents.folder
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="scenemill-merge-", dir=work_dir) as name:
            yield Path(name)
        return
    with _exclusive(folder):
        yield folder


@contextmanager
def _exclusive(out: Path) -> Iterator[None]:
    """Hold the lock of a folder."""
    try:
        handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise disk_error(f"{out / LOCK}: cannot be written", error) from error
    try:
        if not try_lock(handle):
            raise TransientError(f"{out}: another process is merging the scenes of this folder; wait for it")
        yield
    finally:
        os.close(handle)
