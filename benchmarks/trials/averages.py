"""Whether several looks at a tile, or several models, find more: means of probabilities on invented towns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import get_args

from benchmarks.trials.records import Options, Table
from benchmarks.trials.towns import TEST, draw, learn
from pipeline.averaging import SYMMETRIES
from pipeline.config import build_settings
from pipeline.evaluation.evaluate import EvaluateSpec, evaluate
from pipeline.predictor import Augment
from pipeline.training.records import TrainReport

SEEDS = range(3)
"""The members of the ensemble differ in nothing but the seed of weights and windows."""
COVERS = {"0": "none", "1": "building", **{str(value): "none" for value in range(2, 6)}}


def run(out: Path, options: Options) -> list[Table]:
    """Buildings in invented towns: three networks alone and together, with and without turned tiles."""
    reports = {f"seed {seed}": [learn("losses.yaml", out / f"seed-{seed}", options, f"seed={seed}")] for seed in SEEDS}
    reports["all three"] = [report for (report,) in reports.values()]
    rows = []
    for models, members in reports.items():
        for augment in get_args(Augment):
            found = _scores(out / "evaluation" / f"{models}-{augment}".replace(" ", "-"), members, augment)
            passes = len(members) * len(SYMMETRIES[augment])
            rows.append({"models": models, "augment": augment, "passes per tile": passes, **found})
    return [Table(title=f"Buildings of towns {TEST.start} to {TEST.stop - 1} by what is averaged", rows=rows)]


def _scores(out: Path, members: Sequence[TrainReport], augment: Augment) -> Mapping[str, float | None]:
    """Scores on the test towns; the threshold is the mean of those that validation chose for the models."""
    images, covers = draw(out.parents[2] / "towns-drawn")
    threshold = mean(report.card.threshold for report in members)
    segment = {"inference": {"augment": augment}, "polygons": {"threshold": threshold}}
    spec = build_settings(
        EvaluateSpec, {"segment": segment, "class_map": COVERS, "bootstrap": {"resamples": 0}}, place=str(out)
    )
    scenes, models = [images / f"town{seed}.tif" for seed in TEST], [report.checkpoint for report in members]
    report = evaluate(scenes, covers, out, model=models, spec=spec)
    assert report.overall is not None, "every town has buildings"
    (building,) = report.overall.classes
    names = {"IoU": "iou", "precision": "precision", "recall": "recall", "boundary IoU": "boundary_iou"}
    return {title: building.metrics[name].value for title, name in {**names, "object F1": "object_f1"}.items()}
