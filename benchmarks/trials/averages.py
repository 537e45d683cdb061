"""Accuracy of test-time augmentation and ensembles on synthetic towns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import get_args

from benchmarks.demo_model import CHECKPOINT
from benchmarks.trials.records import Options, Table
from benchmarks.trials.towns import TEST, draw, learn
from pipeline.config import build_settings
from pipeline.evaluation import EvaluateSpec, EvaluationRequest, evaluate
from pipeline.model.predictor.ensemble import SYMMETRIES
from pipeline.model.predictor.protocol import Augment

SEEDS = range(3)
"""The members of the ensemble differ in nothing but the seed of weights and windows."""
TOWNS = f"towns {TEST.start} to {TEST.stop - 1}, never seen"
METRICS = {
    **{"IoU": "iou", "precision": "precision", "recall": "recall"},
    **{"boundary IoU": "boundary_iou", "object F1": "object_f1"},
}
COVERS = {"0": "none", "1": "building", **{str(value): "none" for value in range(2, 6)}}


def run(out: Path, options: Options) -> list[Table]:
    """Buildings in invented towns: the demo network and three seeds, alone and averaged, with augmentation."""
    return [turned(out), together(out, options)]


def turned(out: Path) -> Table:
    """The network of the demo with every setting of `inference.augment`."""
    rows = [_scores(out, "demo", [CHECKPOINT], augment, threshold=None) for augment in get_args(Augment)]
    return Table(title=f"The demo's network on {TOWNS}, by symmetries", rows=rows)


def together(out: Path, options: Options) -> Table:
    """Networks of different seeds, and all of them as one; thresholds are the mean of those that validation chose."""
    reports = {f"seed {seed}": [learn("losses.yaml", out / f"seed-{seed}", options, f"seed={seed}")] for seed in SEEDS}
    reports["all three"] = [report for (report,) in reports.values()]
    rows = []
    for name, members in reports.items():
        threshold = mean(report.card.threshold for report in members)
        models = [report.checkpoint for report in members]
        rows += [_scores(out, name, models, augment, threshold=threshold) for augment in ("none", "all")]
    return Table(title=f"Small networks on {TOWNS}, alone and together", rows=rows)


def _scores(
    out: Path, name: str, models: Sequence[Path], augment: Augment, *, threshold: float | None
) -> Mapping[str, object]:
    """A row: what is averaged, at how many passes, and the scores on the test towns."""
    images, covers = draw(out.parent / "towns-drawn")
    segment = {"inference": {"augment": augment}, "polygons": {"threshold": threshold}}
    settings = {"segment": segment, "class_map": COVERS, "bootstrap": {"resamples": 0}}
    request = EvaluationRequest(
        images=[images / f"town{seed}.tif" for seed in TEST],
        labels=covers,
        out=out / "evaluation" / f"{name}-{augment}".replace(" ", "-"),
        model=models,
    )
    report = evaluate(request, build_settings(EvaluateSpec, settings, place="the trial of averages"))
    assert report.overall is not None, "every town has buildings"
    (building,) = report.overall.classes
    scores = {title: building.metrics[metric].value for title, metric in METRICS.items()}
    return {"models": name, "augment": augment, "passes": len(models) * len(SYMMETRIES[augment]), **scores}
