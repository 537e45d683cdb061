"""Every loss on the same windows of the same towns."""

from __future__ import annotations

from pathlib import Path

from benchmarks.trials.records import Options, Table
from benchmarks.trials.towns import TEST, learn, test_scores

LOSSES: dict[str, tuple[str, ...]] = {
    "BCE": ("loss.terms={bce: 1}",),
    "Dice": ("loss.terms={dice: 1}",),
    "BCE + Dice": ("loss.terms={bce: 1, dice: 1}",),
    "focal": ("loss.terms={focal: 1}",),
    "Tversky": ("loss.terms={tversky: 1}",),
    "focal Tversky": ("loss.terms={focal_tversky: 1}",),
    "Lovász": ("loss.terms={lovasz: 1}",),
    "BCE + 0.1 Lovász": ("loss.terms={bce: 1, lovasz: 0.1}",),
    "BCE, balanced weights": ("loss.terms={bce: 1}", "loss.class_weights=balanced"),
    "BCE, smoothed labels": ("loss.terms={bce: 1}", "loss.label_smoothing=0.1"),
    "cross-entropy": ("loss.terms={cross_entropy: 1}", "activation=softmax"),
}


def run(out: Path, options: Options) -> list[Table]:
    """Buildings in invented towns with every loss: the same windows, seed and steps."""
    rows = []
    for name, changes in LOSSES.items():
        print(f"{name}:", flush=True)
        report = learn("losses.yaml", out / name.replace(" ", "-"), options, *changes)
        building, part = test_scores(report)["building"], report.test
        row = {"loss": name, "IoU": building["iou"], "precision": building["precision"], "recall": building["recall"]}
        row |= {"threshold": report.card.threshold, "temperature": report.card.temperature}
        row |= {"ECE before": part.ece_before, "ECE after": part.ece} if part else {}
        rows.append(row | {"minutes": round(report.seconds / 60, 1)})
    return [Table(title=f"Buildings of towns {TEST.start} to {TEST.stop - 1} by loss", rows=rows)]
