"""A class under one percent of the pixels, where plain BCE fails."""

from __future__ import annotations

from pathlib import Path

from benchmarks.trials.records import Options, Table
from benchmarks.trials.towns import TEST, learn, test_scores

CARS = (
    "classes=[car]",
    'class_map={"0": none, "1": none, "2": none, "3": none, "4": none, "5": car}',
    "samples.labelled_share=0",
)
"""Cars, and windows drawn anywhere: nothing but the loss makes up for their rarity."""
LOSSES = {"BCE": "loss.terms={bce: 1}", "focal Tversky": "loss.terms={focal_tversky: 1}"}


def run(out: Path, options: Options) -> list[Table]:
    """Cars, under 1 % of the pixels: BCE alone next to focal Tversky, everything else equal."""
    rows = []
    for name, loss in LOSSES.items():
        print(f"{name}:", flush=True)
        report = learn("losses.yaml", out / name.replace(" ", "-"), options, *CARS, loss)
        car = test_scores(report)["car"]
        rows.append({"loss": name, "share of pixels": report.card.training["class_share"]["car"], **car})
    return [Table(title=f"Cars of towns {TEST.start} to {TEST.stop - 1} by loss", rows=rows)]
