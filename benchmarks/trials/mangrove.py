"""Mangrove in four bands of Sentinel-2, the near infrared mistagged as alpha."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.trials.chips import predict, read_picture
from benchmarks.trials.records import CONFIGS, DATA, Options, Table, show, skipped
from pipeline.config import load_settings
from pipeline.evaluation.metrics import PixelScore, score_pixels
from pipeline.model import load_predictor
from pipeline.training import TrainSpec, train

FOLDER = DATA / "mangrove_4band"
FLOOR = 0.801
"""Pooled mangrove IoU of a gradient-boosting model that sees one pixel at a time."""


def run(out: Path, options: Options) -> list[Table]:
    """Mangrove, 9 chips to learn from and 3 to score, with and without the near infrared."""
    if not FOLDER.is_dir():
        return skipped(FOLDER)
    rows: list[dict[str, object]] = []
    bands = {"red, green, blue, nir": (), "red, green, blue": ("bands=[red, green, blue]",)}
    for name, changes in bands.items():
        print(f"{name}:", flush=True)
        spec = load_settings(TrainSpec, CONFIGS / "mangrove.yaml", (*changes, *options.overrides))
        target = out / f"{len(name.split())}-bands.safetensors"
        target.parent.mkdir(parents=True, exist_ok=True)
        report = train([FOLDER / "train" / "images"], FOLDER / "train" / "masks", target, spec=spec, progress=show)
        pooled = score(report.checkpoint)
        row = {"bands": name, "IoU": pooled.iou, "floor": FLOOR, "precision": pooled.precision}
        rows.append(row | {"recall": pooled.recall, "F1": pooled.f1, "minutes": round(report.seconds / 60, 1)})
    return [Table(title="Mangrove: the 3 chips of the validation part, pooled", rows=rows)]


def score(checkpoint: Path) -> PixelScore:
    """Pixels of the scored chips, counted together."""
    predictor, pooled = load_predictor(checkpoint), PixelScore()
    for image in sorted((FOLDER / "val" / "images").iterdir()):
        (mask,) = (FOLDER / "val" / "masks").glob(f"{image.stem}.*")
        pixels = read_picture(image)[: len(predictor.card.bands)]
        found = predict(predictor, pixels)[0] >= predictor.card.threshold
        pooled += score_pixels(read_picture(mask)[0] == 1, np.asarray(found))
    return pooled
