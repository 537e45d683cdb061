"""Training learns from the right pixels only, and leaves an honest checkpoint."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED_DATA, MakeScene
from labelled import (
    SMALL,
    Town,
)

from pipeline.checkpoint import load_checkpoint
from pipeline.errors import LabelError, ModelError, SettingsError
from pipeline.networks import NetworkSpec
from pipeline.normalize import InputTransform
from pipeline.scene import describe_scene
from pipeline.training.learning import LearningSpec, choose_precision, rate_factor
from pipeline.training.losses import segmentation_loss
from pipeline.training.records import TrainProgress
from pipeline.training.settings import TrainSpec
from pipeline.training.splits import SplitSpec
from pipeline.training.train import train
from pipeline.training.windows import SamplesSpec
from pipeline.unet import UNet, UNetSpec


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_network_learns_bright_squares_and_the_checkpoint_says_how(town: Town, tmp_path: Path) -> None:
    told: list[TrainProgress] = []
    out = tmp_path / "new" / "model.safetensors"
    report = train([town.image], town.labels, out, spec=SMALL, progress=told.append)
    assert report.best_iou > 0.8
    assert report.stopped == "finished"
    assert len(report.history) == 4
    assert [(p.epoch, p.step) for p in told] == list(itertools.product(range(1, 5), range(1, 9)))
    assert report.pixels_per_second > 0

    checkpoint = load_checkpoint(out)
    card = checkpoint.card
    assert (checkpoint.sha256, card) == (report.sha256, report.card)
    assert (card.classes, card.outputs, card.activation, card.dtype) == (("roof",), "logits", "sigmoid", "uint8")
    assert card.bands == describe_scene(town.image).bands
    assert card.resolution_m == pytest.approx(0.5, abs=2e-3)
    assert (card.stride, card.margin) == (4, 0)
    facts: Any = card.training
    assert facts["split"]["kind"] == "blocks"
    assert facts["split"]["training"]["scenes"] == ["town"]
    assert facts["metrics"]["epoch"] == report.best_epoch
    assert facts["settings"]["network"]["depth"] == 2

    pixels = InputTransform(gain=card.normalization.gain, bias=card.normalization.bias).apply(
        town.pixels, np.ones((96, 96), bool)
    )
    with torch.inference_mode():
        roofs = checkpoint.network(torch.from_numpy(pixels)[None])[0, 0].numpy() >= 0
    assert (roofs & (town.mask == 1)).sum() / (roofs | (town.mask == 1)).sum() > 0.8


QUICK = replace(SMALL, learning=replace(SMALL.learning, epochs=2))


def test_the_same_seed_gives_the_same_checkpoint_cached_or_not(town: Town, tmp_path: Path) -> None:
    def run(name: str, **changes: Any) -> str:
        samples = replace(QUICK.samples, **changes)
        return train([town.image], town.labels, tmp_path / name, spec=replace(QUICK, samples=samples)).sha256

    before = torch.random.get_rng_state()
    weights = [load_checkpoint(tmp_path / f"{k}.safetensors") for k in "abc" if run(f"{k}.safetensors", **CASES[k])]
    states = [c.network.state_dict() for c in weights]
    assert all(torch.equal(states[0][key], state[key]) for state in states[1:] for key in state)
    assert weights[0].sha256 == weights[1].sha256
    assert torch.equal(before, torch.random.get_rng_state())
    other = replace(QUICK, seed=1)
    assert train([town.image], town.labels, tmp_path / "d.safetensors", spec=other).sha256 != weights[0].sha256


CASES: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "c": {"cache_mb": 0, "threads": 3}}


@pytest.mark.parametrize(
    "changes",
    [
        {"network": NetworkSpec(depth=2, base_channels=8, padding="valid"), "tile": 44},
        {"network": NetworkSpec(depth=2, base_channels=8, norm="group", upsampling="bilinear", dropout=0.2)},
        {"learning": LearningSpec(epochs=1, precision="bfloat16", schedule="constant")},
        {"resolution_m": 0.75, "block": 16},
    ],
    ids=["unpadded", "group-bilinear", "bfloat16", "resampled"],
)
def test_every_kind_of_network_trains(town: Town, tmp_path: Path, changes: dict[str, Any]) -> None:
    tile = changes.pop("tile", 32)
    samples = replace(SMALL.samples, tile_size=tile, windows_per_epoch=8)
    split = SplitSpec(block_size=changes.pop("block", 24))
    spec = replace(SMALL, samples=samples, split=split, learning=LearningSpec(epochs=1)) if changes else SMALL
    report = train([town.image], town.labels, tmp_path / "m.safetensors", spec=replace(spec, **changes))
    assert math.isfinite(report.history[0].loss)
    assert report.card.receptive_field == spec_of(report.checkpoint).receptive_field
    assert report.card.resolution_m == pytest.approx(changes.get("resolution_m", 0.5), abs=2e-3)


def spec_of(path: Path) -> UNetSpec:
    network = load_checkpoint(path).network
    assert isinstance(network, UNet)
    return network.spec


def test_masks_teach_the_same_as_polygons(town: Town, tmp_path: Path, make_scene: MakeScene) -> None:
    other = Town(tmp_path, make_scene, "other", seed=1)
    spec = replace(QUICK, split=SplitSpec(validation=("other",)))
    by_mask = train([town.image, other.image], town.mask_file.parent, tmp_path / "m.safetensors", spec=spec)
    folder = tmp_path / "vectors"
    folder.mkdir()
    town.frame.to_file(folder / "town.gpkg")
    other.frame.to_file(folder / "other.geojson")
    by_polygon = train([town.image, other.image], folder, tmp_path / "p.safetensors", spec=spec)
    assert by_mask.sha256 == by_polygon.sha256
    facts: Any = by_mask.card.training["split"]
    assert facts["kind"] == "scenes"
    assert facts["validation"] == {"scenes": ["other"], "share": 0.5}


def test_a_diverging_run_keeps_the_last_good_checkpoint(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = itertools.count(1)

    def loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        factor = math.nan if next(calls) > 19 else 1.0  # 8 steps an epoch: in the third
        return segmentation_loss(*args, **kwargs) * factor

    monkeypatch.setattr("pipeline.training.train.segmentation_loss", loss)
    report = train([town.image], town.labels, tmp_path / "m.safetensors", spec=SMALL)
    assert report.stopped == "diverged"
    assert len(report.history) == 2
    assert load_checkpoint(report.checkpoint).sha256 == report.sha256
    assert "the loss became NaN or infinite in epoch 3" in caplog.text
    with pytest.raises(ModelError, match=r"in epoch 1, before any checkpoint.*lower learning.learning_rate"):
        train([town.image], town.labels, tmp_path / "n.safetensors", spec=SMALL)
    assert not (tmp_path / "n.safetensors").exists()


def test_training_stops_when_patience_or_time_runs_out(town: Town, tmp_path: Path) -> None:
    def run(**changes: Any) -> Any:
        spec = replace(SMALL, learning=replace(SMALL.learning, **changes))
        return train([town.image], town.labels, tmp_path / "m.safetensors", spec=spec)

    slow = run(epochs=30, patience=2, learning_rate=1e-9, warmup_epochs=0.0)
    assert slow.stopped == "patience"
    assert len(slow.history) == slow.best_epoch + 2
    assert run(max_minutes=1e-6).stopped == "time"


def test_wrong_usage_stops_before_any_work(town: Town, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    cases: list[tuple[type[Exception], str, Any]] = [
        (SettingsError, "out must end in .safetensors, not 'm.pt'", lambda: train([town.image], town.labels, "m.pt")),
        (SettingsError, "images must name at least one", lambda: train([], town.labels, out)),
        (SettingsError, "no such file", lambda: train([tmp_path / "none.tif"], town.labels, out)),
        (LabelError, "no such label file", lambda: train([town.image], tmp_path / "none.gpkg", out)),
        (SettingsError, "device = 'cuda:9' is not usable here",
         lambda: train([town.image], town.labels, out, spec=replace(QUICK, learning=LearningSpec(device="cuda:9")))),
    ]  # fmt: skip
    for error, said, call in cases:
        with pytest.raises(error, match=said):
            call()
    assert not out.exists()


def test_the_learning_rate_rises_and_falls_as_said() -> None:
    spec = LearningSpec(epochs=10, warmup_epochs=2)
    factors = [rate_factor(step, 5, spec) for step in range(51)]
    assert factors[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[30] == pytest.approx(0.5)
    assert factors[50] == pytest.approx(0)
    assert rate_factor(400, 5, replace(spec, schedule="constant")) == 1
    assert max(rate_factor(step, 4, LearningSpec(epochs=1)) for step in range(4)) == 1


def test_precision_is_the_one_named_or_the_native_one() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("float32", cpu) == torch.float32
    assert choose_precision("bfloat16", cpu) == torch.bfloat16
    assert choose_precision("auto", cpu) in (torch.float32, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data set is not here")
def test_a_small_network_learns_real_buildings(tmp_path: Path) -> None:
    folder = SHARED_DATA / "buildings"
    spec = TrainSpec(
        classes=("building",),
        resolution_m=0.3,
        split=SplitSpec(validation=(str(folder / "images" / "banepa_south.tif"),)),
        network=NetworkSpec(depth=3, base_channels=16),
        samples=SamplesSpec(windows_per_epoch=128),
        learning=LearningSpec(epochs=5),
    )
    labels = folder / "labels" / "banepa.geojson"
    report = train([folder / "images" / "banepa_north.tif"], labels, tmp_path / "m.safetensors", spec=spec)
    assert report.best_iou > 0.514  # the pixel-wise gradient-boosting floor of the data set
