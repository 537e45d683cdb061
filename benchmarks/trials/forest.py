"""Forest in Sentinel-2 chips of the Amazon, against published figures (John & Zhang 2022, JAG 107:102685)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.trials.chips import predict, read_picture
from benchmarks.trials.records import CONFIGS, DATA, Options, Table, show, skipped
from pipeline.config import load_settings
from pipeline.model import load_predictor
from pipeline.training import TrainSpec, train
from pipeline.training.validation.metrics import Confusion, average_scores, weighted_scores

FOLDER = DATA / "amazon_forest"
SIDE = 512
FOREST = 1
"""Value in the masks; 2 is land without forest."""
PUBLISHED = (
    {"network": "U-Net, published", "accuracy": 0.9473, "F1": 0.9522, "Jaccard": 0.8888},
    {"network": "Attention U-Net, published", "accuracy": 0.9526, "F1": 0.9550, "Jaccard": 0.9028},
    {"network": "ResNet50-SegNet, published", "accuracy": 0.9470, "F1": 0.9495, "Jaccard": 0.9025},
    {"network": "FCN32-VGG16, published", "accuracy": 0.8978, "F1": 0.8983, "Jaccard": 0.8198},
)
NETWORKS: dict[str, tuple[str, ...]] = {
    "U-Net": (),
    "Attention U-Net": ("network.attention=true",),
    "FCN-8s": ("network.name=fcn8s",),
    "DeepLabV3+ (ResNet-18)": ("network.name=deeplabv3plus", "network.backbone=resnet18"),
}
THRESHOLDS = tuple(np.arange(0.05, 1.0, 0.05).round(2).tolist())
"""Candidates for the second table."""


def run(out: Path, options: Options) -> list[Table]:
    """Amazon forest, 30 chips to learn from and 15 to score: four networks with the same windows."""
    if not FOLDER.is_dir():
        return skipped(FOLDER)
    masks = crop_masks(out)
    strict: list[Mapping[str, object]] = []
    tuned: list[Mapping[str, object]] = []
    for name, changes in NETWORKS.items():
        print(f"{name}:", flush=True)
        spec = load_settings(TrainSpec, CONFIGS / "forest.yaml", (*changes, *options.overrides))
        target = out / f"{name.split(' (')[0]}.safetensors"
        report = train([FOLDER / "train" / "images"], masks, target, spec=spec, progress=show)
        scored = [*predict_scored(report.checkpoint)]
        minutes = round(report.seconds / 60, 1)
        strict.append({"network": name, **score(scored, report.card.threshold), "minutes": minutes})
        tuned.append({"network": name, **max((score(scored, t) for t in THRESHOLDS), key=lambda row: row["F1"])})
    return [
        Table(title="Amazon forest, the 15 chips: threshold chosen on three training chips", rows=strict),
        Table(title="The same, threshold chosen on the scored chips, and what is published", rows=[*tuned, *PUBLISHED]),
    ]


def crop_masks(out: Path) -> Path:
    """The training masks cut to 512 px: one is larger than its image, and the published code cuts it too."""
    masks = out / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    for mask in sorted((FOLDER / "train" / "masks").iterdir()):
        target = masks / f"{mask.stem}.png"
        if not target.exists():  # a rewritten file counts as another label file, and its training would start again
            Image.fromarray(read_picture(mask)[0, :SIDE, :SIDE]).save(target)
    return masks


def predict_scored(checkpoint: Path) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Probability of forest and the truth, of each scored chip."""
    predictor = load_predictor(checkpoint)
    for image in sorted((FOLDER / "val" / "images").iterdir()):
        (mask,) = (FOLDER / "val" / "masks").glob(f"{image.stem}*")
        yield predict(predictor, read_picture(image))[0], read_picture(mask)[0] == FOREST


def score(chips: Sequence[tuple[NDArray[np.float32], NDArray[np.bool_]]], threshold: float) -> dict[str, float]:
    """The metric of the published code: weighted by class within an image, averaged over images."""
    confusions = [
        Confusion.of_index((forest >= threshold).astype(np.intp), truth.astype(np.intp), classes=2)
        for forest, truth in chips
    ]
    scores = average_scores([weighted_scores(confusion) for confusion in confusions])
    return {"accuracy": scores.accuracy, "F1": scores.f1, "Jaccard": scores.jaccard, "threshold": threshold}
