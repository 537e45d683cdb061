"""Training uses only training pixels, and writes a checkpoint with honest metrics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED_DATA, MakeScene
from support.labelled import ORIGIN, SMALL, UTM, Town

from pipeline.errors import DivergedError, LabelError, SettingsError
from pipeline.inference.normalize import InputTransform
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.networks.registry import NetworkSpec
from pipeline.model.networks.unet import UNet, UNetSpec
from pipeline.model.predictor.compiled import activate
from pipeline.scene.describe import describe_scene
from pipeline.training.artifacts.write import write_artifacts
from pipeline.training.loop import train
from pipeline.training.losses.loss import make_loss
from pipeline.training.records import TrainProgress
from pipeline.training.settings.artifacts import ArtifactsSpec
from pipeline.training.settings.data import SamplesSpec, SplitSpec
from pipeline.training.settings.learning import OptimizationSpec
from pipeline.training.settings.spec import TrainSpec


@pytest.fixture(autouse=True)
def lean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread, and no pictures, which take longer than these runs."""
    monkeypatch.setattr("pipeline.training.finish.write_artifacts", lambda *_, **__: ())
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_network_learns_bright_squares_and_the_checkpoint_records_how(town: Town, tmp_path: Path) -> None:
    updates: list[TrainProgress] = []
    out = tmp_path / "new" / "model.safetensors"
    report = train([town.image], town.labels, out, spec=SMALL, progress=updates.append)
    assert report.best_iou > 0.8
    assert report.stopped == "finished"
    assert len(report.history) == 4
    assert [(p.epoch, p.step) for p in updates] == list(itertools.product(range(1, 5), range(1, 9)))
    assert report.pixels_per_second > 0

    checkpoint = load_checkpoint(out)
    card = checkpoint.card
    assert (checkpoint.sha256, card) == (report.sha256, report.card)
    assert (card.classes, card.outputs, card.activation, card.dtype) == (("roof",), "logits", "sigmoid", "uint8")
    assert card.bands == describe_scene(town.image).bands
    assert card.resolution_m == pytest.approx(0.5, abs=2e-3)
    assert (card.stride, card.margin) == (4, 0)
    facts: Any = card.training
    assert facts["scenes"] == ["town"]
    assert (facts["validation"]["kind"], facts["validation"]["scenes"]) == ("blocks", ["town"])
    assert facts["validation"]["parts"] >= 1
    assert facts["metrics"]["epoch"] == report.best_epoch
    assert report.validation is not None
    assert facts["metrics"]["validation"]["iou"] == pytest.approx(report.best_iou, abs=1e-6)
    assert report.validation.iou == report.best_iou
    assert facts["calibration"]["temperature"] == card.temperature != 1
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["settings"]["network"]["depth"] == 2

    pixels = InputTransform(gain=card.normalization.gain, bias=card.normalization.bias).apply(
        town.pixels, np.ones((96, 96), bool)
    )
    with torch.inference_mode():
        roofs = activate(checkpoint.network(torch.from_numpy(pixels)[None]), card)[0, 0].numpy() >= card.threshold
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


def test_a_run_writes_history_pictures_and_a_page(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.training.finish.write_artifacts", write_artifacts)
    spec = replace(QUICK, artifacts=ArtifactsSpec(overlays=1), learning=replace(QUICK.learning, ema_decay=0.5))
    report = train([town.image], town.labels, tmp_path / "m.safetensors", spec=spec)
    assert report.folder == tmp_path / "m.run"
    names = {path.relative_to(report.folder).as_posix() for path in report.folder.rglob("*") if path.is_file()}
    assert {"history.csv", "curves.png", "reliability.png", "card.md", "report.json"} <= names
    assert len([name for name in names if name.startswith("overlays/")]) == 1
    assert not any("state" in name or "partial" in name for name in names)
    assert len((report.folder / "history.csv").read_text().splitlines()) == 1 + len(report.history)


def test_tensorboard_gets_every_epoch(town: Town, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    spec = replace(QUICK, artifacts=ArtifactsSpec(tensorboard=True))
    report = train([town.image], town.labels, tmp_path / "m.safetensors", spec=spec)
    (events,) = (report.folder / "tensorboard").iterdir()
    assert events.stat().st_size > 200


def test_exclusive_classes_come_with_a_background(town: Town, tmp_path: Path, make_scene: MakeScene) -> None:
    classes = town.mask * np.where(np.arange(96) < 48, 1, 2).astype(np.uint8)
    pixels = np.where(classes == 2, town.pixels // 4, town.pixels)  # roofs in the east are dark
    image = make_scene(pixels, name="scene.tif", crs=UTM, transform=ORIGIN)
    mask = make_scene(classes, name="classes.tif", crs=UTM, transform=ORIGIN)
    split = replace(SMALL.split, block_size=24, test_share=0.2)
    spec = replace(SMALL, classes=("west", "east"), activation="softmax", split=split)
    report = train([image], mask, tmp_path / "m.safetensors", spec=spec)
    card = report.card
    assert (card.classes, card.background, card.activation) == (("background", "west", "east"), "background", "softmax")
    assert card.threshold == 0.5
    assert list(report.history[0].classes) == ["background", "west", "east"]
    assert report.test is not None
    assert report.test.iou > 0.5


CASES: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "c": {"cache_mb": 0, "threads": 3}}


@pytest.mark.parametrize(
    "changes",
    [
        {"network": NetworkSpec(depth=2, base_channels=8, padding="valid"), "tile": 44},
        {"network": NetworkSpec(depth=2, base_channels=8, norm="group", upsampling="bilinear", dropout=0.2)},
        {"learning": OptimizationSpec(epochs=1, precision="bfloat16", schedule="constant")},
        {"resolution_m": 0.75, "block": 16},
    ],
    ids=["unpadded", "group-bilinear", "bfloat16", "resampled"],
)
def test_every_kind_of_network_trains(town: Town, tmp_path: Path, changes: dict[str, Any]) -> None:
    tile = changes.pop("tile", 32)
    samples = replace(SMALL.samples, tile_size=tile, windows_per_epoch=8)
    split = SplitSpec(block_size=changes.pop("block", 24))
    spec = replace(SMALL, samples=samples, split=split, learning=OptimizationSpec(epochs=1)) if changes else SMALL
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
    assert by_mask.card.training["validation"] == {"kind": "scenes", "scenes": ["other"], "share": 0.5, "parts": 1}


def test_an_epochs_loss_is_the_mean_of_its_batches(town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []

    def make(*args: Any, **kwargs: Any) -> Any:
        def loss(*tensors: Any) -> torch.Tensor:
            found: torch.Tensor = plain(*tensors)
            losses.append(float(found.detach()))
            return found

        plain = make_loss(*args, **kwargs)
        return loss

    monkeypatch.setattr("pipeline.training.setup.make_loss", make)
    report = train([town.image], town.labels, tmp_path / "m.safetensors", spec=QUICK)
    means = np.array(losses).reshape(2, 8).mean(axis=1)
    assert [record.loss for record in report.history] == pytest.approx(means)


def test_the_weights_kept_are_the_best_epochs_not_the_last(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*args: Any, **kwargs: Any) -> Any:
        loss, count = make_loss(*args, **kwargs), itertools.count(1)
        return lambda *tensors: loss(*tensors) * (-1 if next(count) > 16 else 1)  # unlearns from the third epoch on

    monkeypatch.setattr("pipeline.training.setup.make_loss", make)
    report = train([town.image], town.labels, tmp_path / "m.safetensors", spec=SMALL)
    assert report.best_epoch <= 2
    assert report.validation is not None
    assert report.validation.iou == report.best_iou > report.history[-1].iou


def nan_after(calls: int) -> Any:
    """`make_loss` of losses that are NaN after so many calls."""
    count = itertools.count(1)

    def make(*args: Any, **kwargs: Any) -> Any:
        loss = make_loss(*args, **kwargs)
        return lambda *tensors: loss(*tensors) * (math.nan if next(count) > calls else 1.0)

    return make


def test_a_diverging_run_keeps_the_last_good_checkpoint(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "m.safetensors"
    monkeypatch.setattr("pipeline.training.setup.make_loss", nan_after(19))  # 8 steps an epoch: in the third
    report = train([town.image], town.labels, out, spec=SMALL)
    assert report.stopped == "diverged"
    assert len(report.history) == 2
    assert load_checkpoint(report.checkpoint).sha256 == report.sha256
    assert "the loss became NaN or infinite in epoch 3, step 4; epoch 2 is kept; lower learning" in caplog.text
    monkeypatch.setattr("pipeline.training.setup.make_loss", nan_after(3))
    with pytest.raises(
        DivergedError,
        match=r"in epoch 1, step 4, before the first checkpoint was written; lower learning.learning_rate",
    ):
        train([town.image], town.labels, tmp_path / "n.safetensors", spec=SMALL)
    assert not (tmp_path / "n.safetensors").exists()


def test_weights_that_diverge_in_the_last_step_of_an_epoch_are_not_validated(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*args: Any, **kwargs: Any) -> Any:
        loss, count = make_loss(*args, **kwargs), itertools.count(1)
        # at 0 the root is finite and its gradient is not
        return lambda *tensors: loss(*tensors) + ((tensors[0] * 0).sum().abs().sqrt() if next(count) == 16 else 0)

    monkeypatch.setattr("pipeline.training.setup.make_loss", make)
    report = train([town.image], town.labels, tmp_path / "m.safetensors", spec=SMALL)
    assert (report.stopped, report.best_epoch) == ("diverged", 1)
    assert [record.epoch for record in report.history] == [1]


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
    no_device = replace(QUICK, learning=OptimizationSpec(device="cuda:9"))
    cases: list[tuple[type[Exception], str, Any]] = [
        (SettingsError, "out must end in .safetensors, not 'm.pt'", lambda: train([town.image], town.labels, "m.pt")),
        (SettingsError, "images must name at least one", lambda: train([], town.labels, out)),
        (SettingsError, "no such file", lambda: train([tmp_path / "none.tif"], town.labels, out)),
        (LabelError, "no such label file", lambda: train([town.image], tmp_path / "none.gpkg", out)),
        (SettingsError, "device = 'cuda:9' is not usable here",
         lambda: train([town.image], town.labels, out, spec=no_device)),
    ]  # fmt: skip
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()
    assert not out.exists()


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
        learning=OptimizationSpec(epochs=3, learning_rate=1e-3),
    )
    labels = folder / "labels" / "banepa.geojson"
    report = train([folder / "images" / "banepa_north.tif"], labels, tmp_path / "m.safetensors", spec=spec)
    assert report.best_iou > 0.514  # the pixel-wise gradient-boosting floor of the data set


def test_the_last_epoch_is_kept_when_set(town: Town, tmp_path: Path) -> None:
    spec = replace(SMALL, learning=replace(SMALL.learning, keep="last", learning_rate=0.03))
    last = train([town.image], town.labels, tmp_path / "last.safetensors", spec=spec)
    spec = replace(spec, learning=replace(spec.learning, keep="best"))
    best = train([town.image], town.labels, tmp_path / "best.safetensors", spec=spec)
    assert [record.iou for record in last.history] == [record.iou for record in best.history]
    assert last.best_epoch == len(last.history) == 4
    assert best.best_epoch == max(best.history, key=lambda record: record.iou).epoch
    assert last.card.training["metrics"]["epoch"] == 4
