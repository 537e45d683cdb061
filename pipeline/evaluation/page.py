"""HTML page of an evaluation, one file with its pictures inside, and all numbers as JSON."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from pipeline.errors import TransientError
from pipeline.evaluation.error_map import COLOURS, MEANINGS, NOT_COUNTED, WRONG_CLASS
from pipeline.evaluation.metrics.bootstrap import MIN_BLOCKS
from pipeline.evaluation.records import METRICS, EvaluationReport, Kind, SceneEvaluation
from pipeline.mosaic import read_mask
from pipeline.storage import atomic_write
from pipeline.text import printable_lines

if TYPE_CHECKING:
    from jinja2 import Environment

PAGE, JSON = "evaluation.html", "evaluation.json"
TITLES = {
    "iou": "IoU",
    "f1": "F1 (Dice)",
    "precision": "Precision",
    "recall": "Recall",
    "accuracy": "Accuracy",
    "boundary_iou": "Boundary IoU",
    "object_f1": "Object F1",
    "object_precision": "Object precision",
    "object_recall": "Object recall",
    "object_f1_mean": "Object F1, average",
}
HEADLINE = ("iou", "f1", "boundary_iou", "object_f1")
PER_SCENE = ("iou", "f1", "precision", "recall", "boundary_iou", "object_f1")
"""Columns of the table of scenes."""
COMPARED: Mapping[Kind, str] = {"model": "Model", "mosaics": "Mosaics", "polygons": "Polygons"}
MAX_MAPS = 24
"""At most this number of error maps is shown, lowest IoU first; bounds the size of the page."""
MAP_SIDE_PX = 480
"""Longer side of a shown error map, screen pixels."""


def write_page(out: Path, report: EvaluationReport) -> None:
    """Write `evaluation.json` and `evaluation.html` into the evaluation's folder, each atomically."""
    atomic_write(out / JSON, json.dumps(asdict(report), indent=2) + "\n")
    try:
        page = render_page(out, report)
    except OSError as error:
        raise TransientError(f"{out}: its pictures cannot be read back: {error}; evaluate again") from error
    atomic_write(out / PAGE, page)


def render_page(out: Path, report: EvaluationReport) -> str:
    """The page as HTML, without external resources or scripts; pictures and error maps are in the folder `out`."""
    template = page_environment().from_string((files("pipeline") / "data" / PAGE).read_text(encoding="utf-8"))
    done = [scene for scene in report.scenes if scene.scores is not None]
    bins = report.overall.calibration if report.overall else None
    return template.render(
        report=report,
        name=", ".join(Path(each).name or each for each in report.compared.split(", ")),
        what=COMPARED[report.kind],
        done=done,
        models=sorted({scene.model for scene in done if scene.model not in ("", "function")}),
        notes=[*_notes(report)],
        metrics=METRICS,
        titles=TITLES,
        headline=HEADLINE,
        per_scene=PER_SCENE,
        reliability=[pair for pair in zip(bins.confidence, bins.accuracy, strict=True) if None not in pair]
        if bins
        else [],
        most=max(bins.count) if bins else 1,
        pictures={window.image: _inline((out / window.image).read_bytes()) for window in report.worst if window.image},
        maps=[(scene, _thumbnail(out / str(scene.errors), scene.shape)) for scene in _lowest_iou(done)],
        legend=[(_css(COLOURS[code]), meaning) for code, meaning in MEANINGS.items() if _is_used(code, report)],
        settings=json.dumps({**report.settings, "versions": report.versions}, indent=2),
        **_bootstrap_values(report),
    )


def page_environment() -> Environment:
    """The template engine: HTML in texts is escaped, and so is what cannot be printed."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters |= {"score": "{:.3f}".format, "count": _count, "millions": _millions}
    return environment


def _shown(value: object) -> object:
    """A value of the template; texts with escapes for what cannot be printed, and HTML as it is."""
    return printable_lines(value) if type(value) is str else value


def _notes(report: EvaluationReport) -> list[str]:
    """Warnings above the tables."""
    notes = []
    if report.overall is None:
        notes.append("No scene could be evaluated; the reasons are below.")
    elif report.overall.blocks < MIN_BLOCKS:
        notes.append(
            f"Only {report.overall.blocks} blocks of ground were resampled, fewer than {MIN_BLOCKS}: take the "
            "intervals as a guess, commonly too narrow."
        )
    elif few := [s.scene for s in report.scenes if s.scores is not None and s.scores.blocks < MIN_BLOCKS]:
        named = ", ".join(few[:6]) + (f" and {len(few) - 6} more" if len(few) > 6 else "")
        notes.append(
            f"These scenes have fewer than {MIN_BLOCKS} blocks, so take their own intervals as a guess: {named}."
        )
    if report.failed and report.overall is not None:
        notes.append(f"{len(report.failed)} of {len(report.scenes)} scenes could not be evaluated and count nowhere.")
    return notes


def _bootstrap_values(report: EvaluationReport) -> dict[str, object]:
    bootstrap = report.settings["bootstrap"]
    assert isinstance(bootstrap, Mapping)
    return {
        "block_size": bootstrap["block_size"],
        "resamples": bootstrap["resamples"],
        "confidence": f"{100 * bootstrap['confidence']:g} %",
    }


def _lowest_iou(scenes: Sequence[SceneEvaluation]) -> list[SceneEvaluation]:
    """The scenes whose maps are shown, lowest IoU first; scenes without an IoU last."""

    def key(scene: SceneEvaluation) -> float:
        value = scene.scores.mean["iou"].value if scene.scores else None
        return 2.0 if value is None else value

    return sorted(scenes, key=key)[:MAX_MAPS]


def _thumbnail(path: Path, shape: tuple[int, int]) -> str:
    """An error map at screen size."""
    ratio = min(1.0, MAP_SIDE_PX / max(shape))
    size = max(1, round(shape[0] * ratio)), max(1, round(shape[1] * ratio))
    codes, colours = read_mask(path, size)
    table = np.zeros((256, 4), np.uint8)
    for code, colour in colours.items():
        table[code] = colour
    table[NOT_COUNTED] = COLOURS[NOT_COUNTED]
    file = io.BytesIO()
    Image.fromarray(table[codes]).save(file, "png", optimize=True)
    return _inline(file.getvalue())


def _is_used(code: int, report: EvaluationReport) -> bool:
    return code != WRONG_CLASS or (report.planes is not None and len(report.planes.classes) > 1)


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _css(colour: tuple[int, int, int, int]) -> str:
    red, green, blue, alpha = colour
    return f"rgba({red}, {green}, {blue}, {alpha / 255:g})"


def _count(value: int) -> str:
    """A number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")


def _millions(value: int) -> str:
    return f"{value / 1e6:,.3g} M" if value >= 100_000 else _count(value)
