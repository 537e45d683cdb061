"""Report and preview image of a scene's result."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.results.publish import REPORT
from pipeline.scene import DateOf
from pipeline.storage import atomic_write

PNG_LEVEL = 3
"""zlib level of previews: five times faster than the highest, and here no larger."""
STRETCH_SAMPLE = 100_000
"""About how many pixels the contrast stretch of a preview samples."""

RUN = "run.json"
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


@dataclass(frozen=True, kw_only=True)
class OutputFiles:
    """The files of a result."""

    names: Mapping[str, str] = field(default_factory=dict, metadata={"key": "outputs"})
    """Kind of output -> file name in the report's `folder`."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file; empty for a predictor without identity."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each file; empty when unknown."""


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
            TypeError, ValueError: a key is missing or unknown, or it is no JSON object.
        """
        top: dict[str, object] = {}
        parts: dict[str, dict[str, object]] = {name: {} for name in PARTS}
        for key, value in dict(record).items():  # TypeError or ValueError for JSON that is no object
            part, name = PART_FIELDS.get(key, ("", key))
            if part or key in TOP_KEYS or not ignore_unknown:
                parts.get(part, top)[name] = value
        return cls(**top, **{name: kind(**parts[name]) for name, kind in PARTS.items()})  # type: ignore[arg-type]

    def as_skipped(self, current: SceneReport) -> SceneReport:
        """This result as reported by a later run that skips it, with the current paths of scene and folder."""
        inputs = replace(self.inputs, files=current.inputs.files)
        return replace(self, status="skipped", location=current.location, folder=current.folder, inputs=inputs)


PARTS = {"inputs": SceneInputs, "outputs": OutputFiles, "statistics": SceneStatistics}
"""Field of `SceneReport` -> the class of that part."""
PART_FIELDS: Mapping[str, tuple[str, str]] = {
    each.metadata.get("key", each.name): (part, each.name) for part, kind in PARTS.items() for each in fields(kind)
}
"""Key in `report.json` -> part, and name of the field in it."""
TOP_KEYS = tuple(each.name for each in fields(SceneReport) if each.name not in PARTS)
"""Keys in `report.json` that belong to no part."""


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


def write_preview(
    path: Path, pixels: NDArray[np.generic], mask: NDArray[np.uint8], colours: Mapping[int, tuple[int, int, int, int]]
) -> None:
    """Write a PNG of the scene with the outlines of its classes.

    Args:
        path: of the PNG.
        pixels: `(bands, h, w)`; the first three are drawn as red, green and blue, or else the first as gray.
        mask: `(h, w)` class values, 255 = nodata, drawn white.
        colours: class value -> RGBA of its outline.
    """
    from PIL import Image

    valid = mask != 255
    image = _stretch(pixels[:3] if len(pixels) >= 3 else pixels[:1], valid)
    image[~valid] = 255
    for value, (red, green, blue, _) in colours.items():
        if value not in (0, 255):
            image[_outline(mask == value)] = (red, green, blue)
    Image.fromarray(image).save(path, compress_level=PNG_LEVEL)


def _stretch(pixels: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Stretch the 2nd to 98th percentile of the valid pixels to 0..255, `(h, w, 3)`."""
    bands = pixels.astype(np.float32)
    usable = valid & np.isfinite(bands).all(axis=0)
    if not usable.any():
        return np.full((*valid.shape, 3), 255, np.uint8)
    sample = bands[:, usable]
    low, high = np.percentile(sample[:, :: max(1, sample.shape[1] // STRETCH_SAMPLE)], (2, 98))
    scaled = np.clip(np.nan_to_num(bands, copy=False, nan=low), low, high, out=bands)
    scaled -= low
    scaled *= 255 / max(float(high - low), 1e-12)
    return np.array(np.broadcast_to(scaled.astype(np.uint8), (3, *valid.shape)).transpose(1, 2, 0), order="C")


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of `inside` with a 4-neighbour outside it."""
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core
