"""Record of a merged file, `merge.json`: its inputs and counts, and whether it is up to date."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

from pipeline.merge.scenes import MergedScene
from pipeline.merge.spec import MergeSpec
from pipeline.results import MERGE_RECORD, Documents
from pipeline.storage import sha256_of_json
from pipeline.text import read_json

MERGE_FORMAT = 1
"""Raised whenever the same results of scenes give a different file than before."""
FILES = {"gpkg": "polygons.gpkg", "parquet": "polygons.parquet"}


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """The outcome of a merge; small and JSON-able."""

    key: str
    """Identity of the file: scenes with their results, and settings."""
    file: str
    file_bytes: int = 0
    crs: str
    settings: Mapping[str, object]
    """Settings of the merge, under the names of `recorded_settings`."""
    scenes: Sequence[str]
    """Ids of the merged scenes, in order of priority."""
    edited: Sequence[str] = ()
    """Those whose files were changed after they were written; they are merged as they are."""
    read: int = 0
    """Polygons read, of all scenes."""
    polygons: int = 0
    """Polygons written."""
    area_m2: Mapping[str, float] = field(default_factory=dict)
    """True area of the polygons of each class."""
    left_out: int = 0
    """Polygons dropped as duplicates of another scene's."""
    lone: int = 0
    """Polygons dropped since a preferred scene covers them fully and does not show them."""
    joined: int = 0
    """Polygons that were joined into others."""
    made: int = 0
    """Polygons that the joined ones became."""
    changed: bool = field(default=True, compare=False)
    """False when the file already existed; not in `merge.json`."""


def merge_key(scenes: Sequence[MergedScene], spec: MergeSpec) -> str:
    """Identity of a merged file: SHA-256 of the scenes' results and the settings, in hexadecimal."""
    identity = {
        "format": MERGE_FORMAT,
        "scenes": sorted(scene.identity for scene in scenes),
        "settings": recorded_settings(spec),
    }
    return sha256_of_json(identity)


def recorded_settings(spec: MergeSpec) -> dict[str, object]:
    """The settings that affect the content, under their first names, so that keys of existing files stay valid."""
    values = asdict(replace(spec, output=None))
    return {each.metadata.get("alias", each.name): values[each.name] for each in fields(spec)}


def previous_merge(documents: Documents) -> MergeReport | None:
    """The record of the last merge into a folder; None without a valid one."""
    try:
        previous = MergeReport(**read_json(documents.read(MERGE_RECORD) or b""))
    except (ValueError, TypeError):
        return None
    return previous if previous.file in FILES.values() else None


def is_up_to_date(documents: Documents, previous: MergeReport, report: MergeReport) -> bool:
    """Whether the previous merge has the same inputs, and its file still has the recorded size."""
    same = (previous.key, previous.file) == (report.key, report.file)
    return same and documents.size(previous.file) == previous.file_bytes


def write_record(documents: Documents, report: MergeReport) -> None:
    """Write `merge.json`."""
    record = {name: value for name, value in asdict(report).items() if name != "changed"}
    documents.write(MERGE_RECORD, json.dumps(record, indent=2) + "\n")
