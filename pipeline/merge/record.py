"""The record beside a merged file: what went in, what became of it, and whether it is up to date."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from pipeline.merge.scenes import MergedScene
from pipeline.merge.spec import MergeSpec
from pipeline.results import MERGE_RECORD, Results

MERGE_FORMAT = 1
"""Raised whenever the same results of scenes give another file than before."""
FILES = {"gpkg": "polygons.gpkg", "parquet": "polygons.parquet"}
"""Name of each kind of file."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge came to; small and JSON-able."""

    key: str
    """Identity of the result: scenes with their results, and settings."""
    file: str
    """Name of the file."""
    file_bytes: int = 0
    """Its size."""
    crs: str
    """Its CRS."""
    settings: Mapping[str, object]
    """The rule, as set."""
    scenes: Sequence[str]
    """Ids of the scenes that went in, in the order of preference."""
    read: int = 0
    """Polygons of all scenes."""
    polygons: int = 0
    """Polygons written."""
    area_m2: Mapping[str, float] = field(default_factory=dict)
    """True area of the polygons of each class."""
    left_out: int = 0
    """Polygons of which another scene shows the same."""
    lone: int = 0
    """Polygons left out where a preferred scene saw all and shows nothing like them."""
    joined: int = 0
    """Polygons that became parts of others."""
    made: int = 0
    """Polygons that were made of these."""
    is_new: bool = field(default=True, compare=False)
    """False when the file was there already."""


def merge_key(scenes: Sequence[MergedScene], spec: MergeSpec) -> str:
    """Identity of a merged file: the results of the scenes and the rule.

    Returns:
        64 hexadecimal digits.
    """
    what = {
        "format": MERGE_FORMAT,
        "scenes": sorted(scene.identity for scene in scenes),
        "settings": asdict(replace(spec, into=None)),
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def former_merge(results: Results) -> MergeReport | None:
    """What the last merge of a folder came to; None where there is no record, or none of ours."""
    try:
        former = MergeReport(**json.loads(results.read(MERGE_RECORD) or b""))
    except (ValueError, TypeError):
        return None
    return former if former.file in FILES.values() else None


def is_there(results: Results, report: MergeReport) -> bool:
    """Whether the file of a record lies beside it."""
    return results.size(report.file) == report.file_bytes


def write_record(results: Results, report: MergeReport) -> None:
    """Write `merge.json`.

    Raises:
        TransientError: disk or network refuse.
    """
    record = {name: value for name, value in asdict(report).items() if name != "is_new"}
    results.write(MERGE_RECORD, json.dumps(record, indent=2) + "\n")
