"""Report of a scene's result: its keys, and the one parser of `report.json`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.scene import DateOf
from pipeline.storage import atomic_write, read_file, sha256_file

if TYPE_CHECKING:
    from pydantic import TypeAdapter

REPORT = "report.json"
RUN = "run.json"
OUTPUTS: Mapping[str, str] = {
    "probability": "probability.tif",
    "mask": "mask.tif",
    "polygons": "polygons.gpkg",
    "preview": "preview.png",
}
"""Kind of output -> its file in the folder of a result; a report that names any other file is invalid."""
MAX_REPORT_BYTES = 64 * 2**20
"""A longer `report.json` is invalid; they have some kilobytes."""
HASHED_BYTES = 2**20
"""Outputs up to this size are always compared with their SHA-256; larger ones if they are newer than the report."""
Status = Literal["done", "skipped", "failed", "quarantined", "not run"]


@dataclass(frozen=True, kw_only=True)
class SceneInputs:
    """Everything that a result depends on, and where it came from."""

    content_key: str | None = None
    """Identity of the result, None for a predictor without identity."""
    mosaic_key: str | None = None
    """Identity of the mosaic alone: scene, model, and all settings except those of polygons."""
    model: str = ""
    """SHA-256 of the checkpoint, or `function`."""
    passes: int = 1
    """Forward passes per tile: above 1 for test-time augmentation and ensembles."""
    settings: Mapping[str, object] = field(default_factory=dict)
    version: str = ""
    area: str = ""
    """Name of the polygon file that the result is restricted to; empty: none, or it covers the whole scene."""
    area_share: float = 1.0
    """Share of the scene's pixels in the area."""
    date: str = ""
    """The best known date of the scene, ISO 8601 in UTC."""
    date_of: DateOf = "processing"
    """Meaning of `date`: acquisition of the scene, last change of its file, or processing."""
    source: str | None = None
    """Address of the STAC Item of the scene; None without one."""
    files: Sequence[str] = field(default_factory=list)
    """Paths or addresses of the scene's raster files; empty when `location` is the only one."""

    def __post_init__(self) -> None:
        if self.date:
            datetime.fromisoformat(self.date)


@dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """The files of a result."""

    names: Mapping[str, str] = field(default_factory=dict, metadata={"key": "outputs"})
    """Kind of output -> file name in the report's `folder`."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file; empty for a predictor without identity."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each file; empty when unknown."""

    def __post_init__(self) -> None:
        if not self.names.items() <= OUTPUTS.items():
            raise ValueError(f"outputs are among {OUTPUTS}, not {self.names}")
        strangers = {*self.digests, *self.sizes} - {*OUTPUTS.values()}
        if strangers or any(size < 0 for size in self.sizes.values()):
            raise ValueError(f"digests and sizes are those of {[*OUTPUTS.values()]}, not {sorted(strangers)}")


@dataclass(frozen=True, kw_only=True)
class SceneStatistics:
    """Measurements of a run over one scene."""

    pixels: int = 0
    """Pixels of the mosaic."""
    valid_pixels: int = 0
    """Pixels that are not nodata."""
    tiles_run: int = 0
    """Tiles that the network ran on."""
    tiles_skipped: int = 0
    """Tiles without a valid pixel, or outside the area."""
    regions_split: int = 0
    """Regions that ran in narrower parts, since strips of their full width did not fit the device's memory."""
    precision: str = ""
    """Number format of the network; `float32` for a plain function, which runs as it is."""
    precision_change: float = 0.0
    """Largest difference of a probability from float32 on the trial window, in the format that was tried."""
    precision_note: str = ""
    """Why `precision: auto` fell back to float32; empty when it did not."""
    polygons: int = 0
    area_m2: Mapping[str, float] = field(default_factory=dict)
    """True area of the polygons of each class."""
    reused: Sequence[str] = field(default_factory=list)
    """Stages reused from an interrupted run or from the previous result."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of each stage."""

    def __post_init__(self) -> None:
        counts = (self.pixels, self.valid_pixels, self.tiles_run, self.tiles_skipped, self.regions_split, self.polygons)
        if not 0 <= min(counts) <= max(counts) < 2**63:
            raise ValueError(f"counts must be 0 or more and below 2**63, not {counts}")


@dataclass(frozen=True, kw_only=True)
class SceneReport:
    """The outcome of one scene, in three parts; `report.json` has the keys of all parts in one object."""

    scene: str
    """Scene id, the name of its folder."""
    location: str
    """Path or address of the scene; the first of several files."""
    status: Status
    """`done`, `skipped` (an equal result existed), `failed`, `quarantined` (failed before), or `not run`."""
    reason: str | None = None
    """Why there is no result, one paragraph."""
    folder: str = ""
    inputs: SceneInputs = field(default_factory=SceneInputs)
    outputs: OutputFiles = field(default_factory=OutputFiles)
    statistics: SceneStatistics = field(default_factory=SceneStatistics)

    @property
    def polygons(self) -> int:
        """Polygons written."""
        return self.statistics.polygons

    @property
    def area_m2(self) -> Mapping[str, float]:
        """True area of the polygons of each class."""
        return self.statistics.area_m2

    def to_json(self) -> dict[str, object]:
        """The keys of `report.json`, without nesting."""
        parts = {name: asdict(getattr(self, name)) for name in PARTS}
        record = {name: getattr(self, name) for name in TOP_KEYS}
        return record | {key: parts[part][name] for key, (part, name) in PART_FIELDS.items()}

    @classmethod
    def from_json(cls, record: Mapping[str, object], *, ignore_unknown: bool = False) -> SceneReport:
        """The report in a parsed `report.json`.

        Args:
            record: its keys.
            ignore_unknown: accept further keys, as a report in an object store has.

        Raises:
            TypeError, ValueError: a key is missing, unknown or of another type, a file is none of `OUTPUTS`, or it is
                no JSON object.
        """
        top: dict[str, object] = {}
        parts: dict[str, dict[str, object]] = {name: {} for name in PARTS}
        for key, value in dict(record).items():  # TypeError or ValueError for JSON that is no object
            part, name = PART_FIELDS.get(key, ("", key))
            if part or key in TOP_KEYS:
                parts.get(part, top)[name] = value
            elif not ignore_unknown:
                raise TypeError(f"a report has no key {key!r}")
        return _report_adapter().validate_json(json.dumps({**top, **parts}), strict=True)

    def as_skipped(self, current: SceneReport) -> SceneReport:
        """This result as reported by a later run that skips it, with the current paths of scene and folder.

        Settings are the current ones: of equal content, and not from a file that anyone may have edited. The
        `reason` stays: it names files that were changed.
        """
        inputs = replace(self.inputs, files=current.inputs.files, settings=current.inputs.settings)
        return replace(
            self,
            scene=current.scene,
            status="skipped",
            location=current.location,
            folder=current.folder,
            inputs=inputs,
        )


PARTS = {"inputs": SceneInputs, "outputs": OutputFiles, "statistics": SceneStatistics}
"""Field of `SceneReport` -> the class of that part."""
PART_FIELDS: Mapping[str, tuple[str, str]] = {
    each.metadata.get("key", each.name): (part, each.name) for part, kind in PARTS.items() for each in fields(kind)
}
"""Key in `report.json` -> part, and name of the field in it."""
TOP_KEYS = tuple(each.name for each in fields(SceneReport) if each.name not in PARTS)
"""Keys in `report.json` that belong to no part."""


@lru_cache(maxsize=1)
def _report_adapter() -> TypeAdapter[SceneReport]:
    from pydantic import TypeAdapter

    return TypeAdapter(SceneReport)


def read_report(content: bytes, scene_id: str | None = None) -> SceneReport | None:
    """The report in the content of a `report.json`, of this scene if an id is given; None if it is invalid.

    Every reader uses it: a report is only data, whoever wrote it, and names no files but `OUTPUTS`.
    """
    try:
        report = SceneReport.from_json(json.loads(content), ignore_unknown=True)
    except (ValueError, TypeError, RecursionError):
        return None
    return report if scene_id in (None, report.scene) else None


def read_report_file(path: Path, scene_id: str | None = None) -> SceneReport | None:
    """As `read_report`, of a regular file; None if there is none that can be read."""
    try:
        return read_report(read_file(path, max_bytes=MAX_REPORT_BYTES), scene_id)
    except OSError:
        return None


def edited_outputs(folder: Path, outputs: OutputFiles) -> str | None:
    """Names of outputs that were changed after they were written, in a sentence; None if there are none.

    Sizes are compared first. The SHA-256 is compared for small files, and for those newer than the report.
    """
    written_ns = (folder / REPORT).stat().st_mtime_ns
    changed = []
    for name in outputs.names.values():
        facts, size, digest = (folder / name).stat(), outputs.sizes.get(name), outputs.digests.get(name)
        is_suspect = facts.st_size <= HASHED_BYTES or facts.st_mtime_ns > written_ns
        if size is not None and facts.st_size != size:
            changed.append(f"{name} ({facts.st_size:,} bytes, {size:,} were written)")
        elif digest is not None and is_suspect and sha256_file(folder / name) != digest:
            changed.append(f"{name} (its content differs)")
    return f"changed after it was written: {', '.join(changed)}" if changed else None


class Stopwatch:
    """Wall time of named stages, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the wall time of the body."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


def write_report(folder: Path, report: SceneReport) -> None:
    """Write `report.json`, which verifies the outputs in the same folder."""
    atomic_write(folder / REPORT, json.dumps(report.to_json(), indent=2, sort_keys=True) + "\n")


def exit_code(reports: Sequence[SceneReport]) -> int:
    """The exit code of a completed run.

    Returns:
        0: every scene is done; 1: some failed or were not run; 3: all are done except those in quarantine.
    """
    statuses = {report.status for report in reports}
    if statuses & {"failed", "not run"}:
        return 1
    return 3 if "quarantined" in statuses else 0
