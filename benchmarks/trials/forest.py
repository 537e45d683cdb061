"""Forest in Sentinel-2 chips of the Amazon, against published figures (John & Zhang 2022, JAG 107:102685)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.trials.chips import predict, read_picture
from benchmarks.trials.records import CONFIGS, DATA, Options, Table, show, skipped
from pipeline.config import load_settings
from pipeline.predictor import load_predictor
from pipeline.training.metrics import Confusion, average_scores, weighted_scores
from pipeline.training.records import TrainReport
from pipeline.training.settings import TrainSpec
from pipeline.training.train import train

FOLDER = DATA / "amazon_forest"
SIDE = 512
SCORED = str(FOLDER / "val" / "images")
"""The chips that are scored, and by which, as it seems, the published networks chose their epoch."""
FOREST = 1
"""Value in the masks; 2 is land without forest."""
PUBLISHED = (
    {"network": "U-Net, published", "accuracy": 0.9473, "F1": 0.9522, "Jaccard": 0.8888},
    {"network": "Attention U-Net, published", "accuracy": 0.9526, "F1": 0.9550, "Jaccard": 0.9028},
    {"network": "ResNet50-SegNet, published", "accuracy": 0.9470, "F1": 0.9495, "Jaccard": 0.9025},
    {"network": "FCN32-VGG16, published", "accuracy": 0.8978, "F1": 0.8983, "Jaccard": 0.8198},
)
PLAIN, AS_PUBLISHED = "U-Net, last epoch, 3 training chips choose the threshold", "U-Net"
NETWORKS: dict[str, tuple[str, ...]] = {
    AS_PUBLISHED: (),
    "Attention U-Net": ("network.attention=true",),
    "FCN-8s": ("network.name=fcn8s",),
    "DeepLabV3+ (ResNet-18)": ("network.name=deeplabv3plus", "network.backbone=resnet18"),
    PLAIN: ("learning.keep=last",),
}


def run(out: Path, options: Options) -> list[Table]:
    """Amazon forest, 30 chips to learn from and 15 to score: four networks with the same windows."""
    if not FOLDER.is_dir():
        return skipped(FOLDER)
    masks = crop_masks(out)
    rows: list[dict[str, object]] = []
    for name, changes in NETWORKS.items():
        print(f"{name}:", flush=True)
        target = out / f"{name.split(',')[0].split(' (')[0]}{'-strict' * (name == PLAIN)}.safetensors"
        report = learn(masks, target, options, *changes, *(() if name == PLAIN else (f"split.validation=[{SCORED}]",)))
        minutes = round(report.seconds / 60, 1)
        rows.append({"network": name, **score(report.checkpoint), "epoch": report.best_epoch, "minutes": minutes})
    return [Table(title="Amazon forest: the 15 chips of the original validation part", rows=[*rows, *PUBLISHED])]


def learn(masks: Path, target: Path, options: Options, *changes: str) -> TrainReport:
    """Train with our settings file and some changes."""
    spec = load_settings(TrainSpec, CONFIGS / "forest.yaml", (*changes, *options.overrides))
    return train([FOLDER / "train" / "images"], [masks, FOLDER / "val" / "masks"], target, spec=spec, progress=show)


def crop_masks(out: Path) -> Path:
    """The training masks cut to 512 px: one is larger than its image, and the published code cuts it too."""
    masks = out / "masks"
    masks.mkdir(parents=True, exist_ok=True)
    for mask in sorted((FOLDER / "train" / "masks").iterdir()):
        Image.fromarray(read_picture(mask)[0, :SIDE, :SIDE]).save(masks / f"{mask.stem}.png")
    return masks


def score(checkpoint: Path) -> dict[str, object]:
    """The metric of the published code: weighted by class within an image, averaged over images."""
    scores = average_scores([weighted_scores(confusion) for confusion in compare(checkpoint)])
    return {"accuracy": scores.accuracy, "F1": scores.f1, "Jaccard": scores.jaccard}


def compare(checkpoint: Path) -> Iterator[Confusion]:
    """The confusion of forest and other land on each scored chip."""
    predictor = load_predictor(checkpoint)
    for image in sorted((FOLDER / "val" / "images").iterdir()):
        (mask,) = (FOLDER / "val" / "masks").glob(f"{image.stem}*")
        truth = read_picture(mask)[0] == FOREST
        forest = predict(predictor, read_picture(image))[0] >= predictor.card.threshold
        yield Confusion.of_index(forest.astype(np.intp), truth.astype(np.intp), classes=2)
