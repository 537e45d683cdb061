"""Numbers and pictures of a run: what a scene's task returns, and what stays beside its outputs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.results.publish import REPORT
from pipeline.scene import DateOf
from pipeline.storage import atomic_write

PNG_LEVEL = 3
"""zlib's effort for previews: five times faster than its best, and here no larger."""
STRETCHED_BY = 100_000
"""About so many pixels decide how a preview is stretched."""

RUN = "run.json"
Status = Literal["done", "skipped", "failed", "quarantined", "not run"]


@dataclass(frozen=True, kw_only=True)
class SceneReport:
    """What became of one scene; small and JSON-able."""

    scene: str
    """Scene id, the name of its folder."""
    location: str
    """Where the scene was read from; the first of several files."""
    status: Status
    """`done`, `skipped` (an equal result was there), `failed`, `quarantined` (failed before), or `not run`."""
    reason: str | None = None
    """Why there is no result, in one paragraph."""
    folder: str = ""
    """Folder of the outputs."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Kind of output -> file name in `folder`."""
    content_key: str | None = None
    """Identity of the result, None for a predictor without identity."""
    mosaic_key: str | None = None
    """Identity of the mosaic alone: scene, model, and all settings but those of polygons."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of each file in `outputs`; none for a predictor without identity."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """Bytes of each file in `outputs`; none where they are not known."""
    reused: Sequence[str] = field(default_factory=list)
    """What was taken over from a run that was stopped, or from the former result, and not done again."""
    area: str = ""
    """Name of the file of polygons that the result is restricted to; empty: none, or all of the scene lies in it."""
    area_share: float = 1.0
    """Share of the pixels that lie in it."""
    pixels: int = 0
    """Pixels of the mosaic."""
    valid_pixels: int = 0
    """Those that are not nodata."""
    tiles_run: int = 0
    """Tiles that went through the network."""
    tiles_skipped: int = 0
    """Tiles without a valid pixel, or of which no pixel is in the area."""
    polygons: int = 0
    """Polygons written."""
    area_m2: Mapping[str, float] = field(default_factory=dict)
    """True area of the polygons of each class."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall time of each stage."""
    model: str = ""
    """SHA-256 of the checkpoint, or `function`."""
    passes: int = 1
    """How many times a network ran on each tile: over 1 for averages of turned tiles and of several models."""
    precision: str = ""
    """Number format in which the network ran; `float32` for a plain function, which runs as it is."""
    precision_change: float = 0.0
    """Largest change of a probability against float32 on the trial window, in the format that was tried."""
    precision_note: str = ""
    """Why `precision: auto` stepped back to float32; empty when it did not."""
    regions_split: int = 0
    """Regions that ran in narrower parts, for the device had no room for strips of their whole width."""
    settings: Mapping[str, object] = field(default_factory=dict)
    """Settings the result depends on."""
    version: str = ""
    """Scenemill's version."""
    date: str = ""
    """The best date that is known of the scene, ISO 8601 in UTC."""
    date_of: DateOf = "processing"
    """What `date` tells: when the scene was taken, when its file last changed, or when it was processed."""
    source: str | None = None
    """Where the STAC Item lies that the scene comes from; None when it comes from elsewhere."""
    files: Sequence[str] = field(default_factory=list)
    """Where each of several raster files lies that hold bands of the model; none when `location` is the only one."""

    @classmethod
    def from_json(cls, record: Mapping[str, object]) -> SceneReport:
        """The report that `asdict` and JSON made `record` of."""
        return cls(**record)  # type: ignore[arg-type]

    def as_skipped(self, now: SceneReport) -> SceneReport:
        """This result, met by a later run, which knows where scene and folder are now; they may have moved since."""
        return replace(self, status="skipped", location=now.location, files=now.files, folder=now.folder)


class Stopwatch:
    """Wall seconds of named stages."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body under a name."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


def write_report(folder: Path, report: SceneReport) -> None:
    """Write `report.json`, the record that vouches for the outputs beside it."""
    atomic_write(folder / REPORT, json.dumps(asdict(report), indent=2, sort_keys=True) + "\n")


def exit_code(reports: Sequence[SceneReport]) -> int:
    """The exit code of a run that came to its end.

    Returns:
        0: every scene is done; 1: some failed or were not run; 3: all are done but those in quarantine.
    """
    statuses = {report.status for report in reports}
    if statuses & {"failed", "not run"}:
        return 1
    return 3 if "quarantined" in statuses else 0


def write_preview(
    path: Path,
    pixels: NDArray[np.generic],
    mask: NDArray[np.uint8],
    colours: Mapping[int, tuple[int, int, int, int]],
) -> None:
    """Draw the scene with the outlines of its classes.

    Args:
        path: the PNG.
        pixels: `(bands, h, w)`; the first three are taken for red, green, blue, or the first for gray.
        mask: `(h, w)` class values, 255 = nodata, drawn white.
        colours: class value -> RGBA of its outline.
    """
    from PIL import Image

    valid = mask != 255
    picture = _stretched(pixels[:3] if len(pixels) >= 3 else pixels[:1], valid)
    picture[~valid] = 255
    for value, (red, green, blue, _) in colours.items():
        if value not in (0, 255):
            picture[_outline(mask == value)] = (red, green, blue)
    Image.fromarray(picture).save(path, compress_level=PNG_LEVEL)


def _stretched(pixels: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Stretch the 2nd to 98th percentile of the valid pixels to 0..255, `(h, w, 3)`."""
    bands = pixels.astype(np.float32)
    usable = valid & np.isfinite(bands).all(axis=0)
    if not usable.any():
        return np.full((*valid.shape, 3), 255, np.uint8)
    sample = bands[:, usable]
    low, high = np.percentile(sample[:, :: max(1, sample.shape[1] // STRETCHED_BY)], (2, 98))
    scaled = np.clip(np.nan_to_num(bands, copy=False, nan=low), low, high, out=bands)
    scaled -= low
    scaled *= 255 / max(float(high - low), 1e-12)
    return np.array(np.broadcast_to(scaled.astype(np.uint8), (3, *valid.shape)).transpose(1, 2, 0), order="C")


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of `inside` with a 4-neighbour outside it."""
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core
