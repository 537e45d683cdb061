"""Neurons in electron microscopy: the task of the U-Net paper (Ronneberger et al. 2015, section 4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.trials.chips import predict, read_picture
from benchmarks.trials.records import CONFIGS, DATA, Options, Table, show, skipped
from pipeline.config import load_settings
from pipeline.model import load_predictor
from pipeline.model.predictor import LoadedPredictor
from pipeline.training import TrainSpec, train

FOLDER = DATA / "isbi2012_em"
TRAINING, CHOOSING, SCORED = range(21), range(21, 24), range(24, 30)
"""Sections to learn from, to choose epoch and threshold by, and to score; neighbours resemble each other."""


def run(out: Path, options: Options) -> list[Table]:
    """Membranes in 30 sections: learned from 0 to 23, scored on 24 to 29."""
    if not FOLDER.is_dir():
        return skipped(FOLDER)
    named = f"split.validation=[{', '.join(repr(f'{section:02d}') for section in CHOOSING)}]"
    spec = load_settings(TrainSpec, CONFIGS / "membranes.yaml", (named, *options.overrides))
    images = [FOLDER / "image" / f"{section:02d}.png" for section in (*TRAINING, *CHOOSING)]
    out.mkdir(parents=True, exist_ok=True)
    report = train(images, FOLDER / "label", out / "membranes.safetensors", spec=spec, progress=show)
    predictor = load_predictor(report.checkpoint)
    choosing = [compare(predictor, section) for section in CHOOSING]
    threshold = min(THRESHOLDS, key=lambda t: float(np.mean([rand_error(truth, p >= t) for truth, p in choosing])))
    rows = [_row(section, *compare(predictor, section), predictor.card.threshold, threshold) for section in SCORED]
    mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key != "section"}
    paper = {"section": "paper, hidden test set", "pixel error": 0.0611, "Rand-type error": 0.0382}
    title = f"EM sections {SCORED.start} to {SCORED.stop - 1}; {report.seconds / 60:.1f} minutes of training"
    return [Table(title=title, rows=[*rows, {"section": "mean", **mean}, paper])]


THRESHOLDS = tuple(np.linspace(0.3, 0.95, 14).round(2).tolist())
"""Candidates for cutting cells apart, chosen on the sections that chose the epoch."""


def compare(predictor: LoadedPredictor, section: int) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Truth, True inside cells, and the probability of it."""
    truth = read_picture(FOLDER / "label" / f"{section:02d}.png")[0] > 127
    return truth, predict(predictor, read_picture(FOLDER / "image" / f"{section:02d}.png"))[0]


def rand_error(truth: NDArray[np.bool_], cells: NDArray[np.bool_]) -> float:
    """One minus the foreground-restricted Rand F-score (Arganda-Carreras et al. 2015, section 2.3.1).

    Cells are 4-connected parts; pixels of true membranes are left out. With `p(i, j)` the share of pixels in
    true cell `i` and found cell `j`: `F = 2 sum(p_ij^2) / (sum(p_i^2) + sum(p_j^2))`; found membrane pixels
    inside a true cell count as parts of one pixel each.
    """
    true, _ = ndimage.label(truth)
    found, _ = ndimage.label(cells)
    inside = true > 0
    true, found = true[inside], found[inside]
    alone = int((found == 0).sum())
    pairs = np.unique(np.stack([true, found])[:, found > 0], axis=1, return_counts=True)[1].astype(float)
    both = (pairs**2).sum() + alone
    of_true = (np.bincount(true).astype(float) ** 2).sum()
    of_found = (np.bincount(found[found > 0]).astype(float) ** 2).sum() + alone
    return float(1 - 2 * both / (of_true + of_found))


def _row(
    section: int, truth: NDArray[np.bool_], probability: NDArray[np.float32], decided: float, cutting: float
) -> dict[str, object]:
    return {
        "section": section,
        "pixel error": float(((probability >= decided) != truth).mean()),
        "Rand-type error": rand_error(truth, probability >= cutting),
    }
