"""One file of polygons over all scenes of a folder, in which what several scenes saw comes out once and whole.

scenes --compare two by two--> links --choose--> polygons that stay, and those that are joined --stream--> one file

No polygon is ever cut. Each one stays as it is, is left out since another stands for it, or is joined with others.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline.errors import SettingsError, TransientError
from pipeline.merge.coverage import CoverageCache
from pipeline.merge.matching import match_scenes
from pipeline.merge.record import FILES, MergeReport, former_merge, is_there, merge_key, write_record
from pipeline.merge.rows import MergedRows, Watch
from pipeline.merge.scenes import MergedScene, finished_scenes, in_order, localized, meeting
from pipeline.merge.selection import Choice, choose, polygon_ids
from pipeline.merge.spec import MergeSpec
from pipeline.polygons import write_layer
from pipeline.results import COLLECTION, Results, open_results, write_collection
from pipeline.storage import try_lock

__all__ = ["MergeReport", "MergeSpec", "compare_scenes", "merge_scenes"]

LOCK = ".merge.lock"
"""Name of the file that one process at a time holds."""


def merge_scenes(
    out_dir: str | Path, spec: MergeSpec, *, work_dir: str | Path | None = None, watch: Watch | None = None
) -> MergeReport | None:
    """Merge the polygons of all whole results of a folder; a file that is there and up to date is left as it is.

    Args:
        out_dir: folder or `s3://` address of a run's results.
        spec: kind of file, and the rule; GeoPackage when it names none.
        work_dir: where results of an object store are brought meanwhile; None: the system's temporary folder.
        watch: told about progress.

    Returns:
        What it came to; None where there is no whole result.

    Raises:
        SettingsError: the CRS of the settings is none, or nothing can be written there.
        SceneError: a result is damaged, or the CRS has no place for a scene.
        TransientError: disk or network refuse, or another process is merging the same folder.
    """
    results = open_results(out_dir, work_dir)
    results.check()
    scenes = in_order(finished_scenes(results), spec.prefer)
    if not scenes:
        return None
    crs = _resolve_crs(scenes, spec.crs)
    report = MergeReport(
        key=merge_key(scenes, spec),
        file=FILES[spec.into or "gpkg"],
        crs=crs.to_string(),
        settings=asdict(replace(spec, into=None)),
        scenes=[scene.id for scene in scenes],
    )
    with _workplace(results, work_dir) as folder:
        former = former_merge(results)
        if former is not None and (former.key, former.file) == (report.key, report.file) and is_there(results, former):
            return replace(former, is_new=False)
        report = _write(localized(scenes, results, folder), folder / report.file, crs, spec, report, watch)
        results.upload(report.file, folder / report.file)
        write_record(results, report)
        if former is not None and former.file != report.file:
            results.remove(former.file)
        if results.read(COLLECTION) is not None:
            write_collection(results)
    return report


def _write(
    scenes: Sequence[MergedScene], path: Path, crs: CRS, spec: MergeSpec, report: MergeReport, watch: Watch | None
) -> MergeReport:
    """Write the file; returns the report with what it came to."""
    rows = MergedRows(scenes, compare_scenes(scenes, spec, watch=watch), crs, watch=watch)
    write_layer(path, rows.batches(), rows.schema, crs=crs, classes=rows.legend)
    return replace(rows.counted(report), file_bytes=path.stat().st_size)


def compare_scenes(scenes: Sequence[MergedScene], spec: MergeSpec, *, watch: Watch | None = None) -> Choice:
    """Which polygons stay, by ids that `polygon_ids` makes.

    Args:
        scenes: in order of preference.
        spec: the rule.
        watch: told about progress.
    """
    grounds = CoverageCache()
    stands_for, joins, lone = [np.empty((0, 2), np.int64)], [np.empty((0, 2), np.int64)], [np.empty(0, np.int64)]
    pairs = meeting(scenes)
    for done, (first, second) in enumerate(pairs, start=1):
        links = match_scenes(scenes[first], scenes[second], grounds, spec)
        ends = np.array([first, second])
        stands_for += [polygon_ids(ends, links.beats), polygon_ids(ends, links.yields)[:, ::-1]]
        joins.append(polygon_ids(ends, links.joins))
        if spec.lone == "drop":
            lone.append(polygon_ids(second, links.lone))
        if watch is not None:
            watch("compare", done, len(pairs))
    return choose(np.concatenate(stands_for), np.concatenate(joins), np.concatenate(lone))


def _resolve_crs(scenes: Sequence[MergedScene], wanted: str | None) -> CRS:
    """The CRS of the result: as set, else that of all scenes, else degrees."""
    if wanted is not None:
        try:
            return CRS.from_user_input(wanted)
        except CRSError as error:
            raise SettingsError(f"merge.crs = {wanted!r} is no CRS: {error}; give one such as EPSG:3035") from error
    first = scenes[0].grid.crs
    return first if all(scene.grid.crs == first for scene in scenes) else CRS.from_epsg(4326)


@contextmanager
def _workplace(results: Results, work_dir: str | Path | None) -> Iterator[Path]:
    """Where the file is written: the folder of the results, or one that passes, for results in a store."""
    folder = results.folder("")
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="scenemill-merge-", dir=work_dir) as name:
            yield Path(name)
        return
    with _alone(folder):
        yield folder


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Keep other processes from merging the same folder meanwhile."""
    try:
        handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise TransientError(f"{out}: cannot be written: {error}; check the disk and its permissions") from error
    try:
        if not try_lock(handle):
            raise TransientError(f"{out}: another process is merging the scenes of this folder; wait for it")
        yield
    finally:
        os.close(handle)
