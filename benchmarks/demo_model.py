"""Training of the checkpoint that ships with the demo, on towns whose seeds the demo never uses.

    python -m benchmarks.demo_model        about 10 minutes on 2 CPU cores; writes pipeline/data/demo.safetensors

The demo's own town is seed 7; these are seeds 100 to 111 for training and 120 to 121 for validation.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from pipeline.model import NetworkSpec
from pipeline.training import TrainProgress, TrainSpec, train
from pipeline.training.settings.data import SamplesSpec, SplitSpec
from pipeline.training.settings.learning import OptimizationSpec
from pipeline.training.synthetic import BANDS, write_town

CHECKPOINT = Path(__file__).parents[1] / "pipeline" / "data" / "demo.safetensors"
TRAINING, VALIDATION = range(100, 112), range(120, 122)


def main() -> None:
    """Generate the towns, train, and print the scores."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0, help="training time")
    parser.add_argument("--out", type=Path, default=CHECKPOINT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scenes, labels = draw_towns(Path(folder))
        spec = TrainSpec(
            classes=("building",),
            bands=BANDS,
            split=SplitSpec(validation=tuple(f"town{seed}" for seed in VALIDATION)),
            network=NetworkSpec(depth=3, base_channels=16),
            samples=SamplesSpec(windows_per_epoch=384),
            learning=OptimizationSpec(epochs=24, learning_rate=2e-3, patience=0, max_minutes=arguments.minutes),
        )
        report = train([scenes], labels, arguments.out, spec=spec, progress=show)
    print(f"\n{report.checkpoint}: validation IoU {report.best_iou:.3f} in epoch {report.best_epoch}")


def draw_towns(folder: Path) -> tuple[Path, Path]:
    """Write the scenes and the true buildings of every town; returns the two folders."""
    scenes, labels = folder / "scenes", folder / "labels"
    scenes.mkdir()
    labels.mkdir()
    for seed in (*TRAINING, *VALIDATION):
        town = write_town(scenes / f"town{seed}.tif", seed, height=1280, width=1280)
        town.write_truth(labels / f"town{seed}.geojson")
    return scenes, labels


def show(progress: TrainProgress) -> None:
    """One line, rewritten after every step."""
    best = f", best IoU {progress.best_iou:.3f}" if progress.best_iou is not None else ""
    where = f"epoch {progress.epoch}/{progress.epochs} step {progress.step}/{progress.steps}"
    print(f"\r{where} loss {progress.loss:.3f}{best}", end="", flush=True)


if __name__ == "__main__":
    main()
