"""The precision of a scene is proven on its own pixels, once, and everybody runs in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from conftest import MakeScene
from distributed import Client, LocalCluster
from support.models import ROOF, brightness, write_checkpoint, write_gentle_checkpoint
from torch import Tensor

from pipeline.config import SegmentSpec
from pipeline.distribute.spec import DistributeSpec
from pipeline.inference.precision_check import TRIAL_SIDE, choose_precision
from pipeline.inference.tiling.tiles import TilingSpec, plan_tiles, resolve_tiling
from pipeline.model.predictor import loading as predictors
from pipeline.model.predictor import precision as formats
from pipeline.model.predictor.ensemble import EnsemblePredictor
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.model.predictor.precision import Precision, PrecisionCheck
from pipeline.model.predictor.protocol import InferenceSpec
from pipeline.scene.describe import describe_scene
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene

RGB = ["red", "green", "blue"]
SPEC = SegmentSpec(tiling=TilingSpec(tile_size=64, overlap=16), reading=ReadingSpec(threads=1))


@pytest.fixture(autouse=True)
def bfloat16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "fastest_precision", lambda device: "bfloat16")


@pytest.fixture
def scene(make_scene: MakeScene) -> Path:
    return make_scene(name="town.tif", descriptions=RGB, height=300, width=280)


class RecordingPredictor(LoadedPredictor):
    """Keeps the tiles that it is tried on."""

    tried: Tensor

    def check_precision(self, tiles: Tensor) -> PrecisionCheck:
        self.tried = tiles
        return super().check_precision(tiles)


def tried_on(scene: Path, model: Path, tile_size: int = 64) -> Tensor:
    """The tiles on which a model proves its precision."""
    predictor = RecordingPredictor(predictors.open_model(model), device="cpu", precision="auto")
    _choose(scene, predictor, tile_size)
    return predictor.tried


def _choose(path: Path, predictor: predictors.LoadedModel, tile_size: int = 64) -> PrecisionCheck:
    scene = describe_scene(path, card=predictor.card)
    tiling = resolve_tiling(TilingSpec(tile_size=tile_size), predictor.card, exact=False)
    return choose_precision(scene, plan_tiles(scene.grid.shape, tiling), predictor.card, predictor)


# What it is proven on


def test_it_is_proven_on_the_middle_of_the_scene_as_the_engine_would_see_it(scene: Path, tmp_path: Path) -> None:
    tiles = tried_on(scene, write_checkpoint(tmp_path / "m.safetensors"))
    with rasterio.open(scene) as dataset:
        pixels = dataset.read()[:, 22 : 22 + TRIAL_SIDE, 12 : 12 + TRIAL_SIDE]
    assert tiles.shape == (1, 3, TRIAL_SIDE, TRIAL_SIDE)
    assert np.allclose(tiles[0], (pixels.astype(np.float32) - 128) / 64, atol=1e-6)


def test_a_scene_smaller_than_a_tile_is_mirrored_as_its_tiles_are(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(descriptions=RGB, height=41, width=50)
    tiles = tried_on(scene, write_checkpoint(tmp_path / "m.safetensors"))
    assert tiles.shape == (1, 3, 44, 52)
    assert torch.equal(tiles[..., 41, :], tiles[..., 39, :])
    assert torch.equal(tiles[..., 50], tiles[..., 48])


def test_nodata_in_the_middle_sends_the_trial_to_another_place(make_scene: MakeScene, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (3, 1200, 1200), np.uint8)
    pixels[:, 400:800, 400:800] = 0
    scene = make_scene(pixels, descriptions=RGB, nodata=0)
    tiles = tried_on(scene, write_checkpoint(tmp_path / "m.safetensors"))
    expected = (pixels[:, 72 : 72 + TRIAL_SIDE, 72 : 72 + TRIAL_SIDE].astype(np.float32) - 128) / 64
    assert np.allclose(tiles[0], expected, atol=1e-6)


def test_a_middle_with_a_few_valid_pixels_sends_the_trial_to_another_place(
    make_scene: MakeScene, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (3, 1200, 1200), np.uint8)
    pixels[:, 400:800, 400:800] = 0
    pixels[:, 590:610, 590:610] = 9
    tiles = tried_on(make_scene(pixels, descriptions=RGB, nodata=0), write_checkpoint(tmp_path / "m.safetensors"))
    expected = (pixels[:, 72 : 72 + TRIAL_SIDE, 72 : 72 + TRIAL_SIDE].astype(np.float32) - 128) / 64
    assert np.allclose(tiles[0], expected, atol=1e-6)


def test_where_no_window_is_half_valid_the_fullest_is_taken(make_scene: MakeScene, tmp_path: Path) -> None:
    pixels = np.zeros((3, 1200, 1200), np.uint8)
    pixels[:, 1000:1040, 1000:1040] = 200
    tiles = tried_on(make_scene(pixels, descriptions=RGB, nodata=0), write_checkpoint(tmp_path / "m.safetensors"))
    assert int((tiles != 0).sum()) == 3 * 40 * 40


def test_a_scene_of_nodata_is_proven_on_noise(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(np.zeros((3, 100, 100), np.uint8), descriptions=RGB, nodata=0)
    assert tried_on(scene, write_checkpoint(tmp_path / "m.safetensors")).std() > 0.5


def test_a_model_of_one_tile_size_is_tried_on_that_size(make_scene: MakeScene, tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m.safetensors", tile_size=32)
    for side in (20, 300):
        scene = make_scene(descriptions=RGB, height=side, width=side)
        assert tried_on(scene, model, 32).shape == (1, 3, 32, 32)


# What comes of it


def test_a_plain_function_runs_as_it_is(make_scene: MakeScene) -> None:
    scene = describe_scene(make_scene(bands=1, descriptions=["red"]), card=ROOF)
    plan = plan_tiles(scene.grid.shape, resolve_tiling(TilingSpec(tile_size=32), ROOF, exact=False))
    assert choose_precision(scene, plan, ROOF, brightness) == PrecisionCheck(precision="float32")


@pytest.mark.parametrize(("write", "precision"), [(write_gentle_checkpoint, "bfloat16"), (write_checkpoint, "float32")])
def test_the_report_records_the_choice_and_its_reason(
    scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, write: Callable[[Path], Path], precision: str
) -> None:
    predictor = load_predictor(write(tmp_path / "m.safetensors"), "cpu")
    with caplog.at_level(logging.WARNING):
        report = segment_scene(scene, tmp_path / "out", predictor=predictor, spec=SPEC)
    stored = json.loads((Path(report.folder) / "report.json").read_text())
    assert stored["precision"] == report.statistics.precision == precision
    assert 0 < report.statistics.precision_change == stored["precision_change"]
    assert (report.statistics.precision_change > 0.01) == (precision == "float32")
    stepped_back = precision == "float32"
    assert (
        (": float32 is used" in report.statistics.precision_note)
        == bool(report.statistics.precision_note)
        == stepped_back
    )
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ([f"{scene}: {report.statistics.precision_note}"] if stepped_back else [])


def test_a_scene_that_stepped_back_is_that_of_float32(scene: Path, tmp_path: Path) -> None:
    model, written = write_checkpoint(tmp_path / "m.safetensors"), []
    for precision in ("auto", "float32"):
        predictor = load_predictor(model, "cpu", precision=precision)
        spec = replace(SPEC, inference=InferenceSpec(precision=precision))
        folder = Path(segment_scene(scene, tmp_path / precision, predictor=predictor, spec=spec).folder)
        with rasterio.open(folder / "probability.tif") as dataset:
            written.append(dataset.read())
    assert np.array_equal(*written)


def test_a_named_precision_is_used_whatever_it_changes(scene: Path, tmp_path: Path) -> None:
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="bfloat16")
    check = _choose(scene, predictor)
    assert (check.precision, check.note) == ("bfloat16", "")
    assert check.change > 0.01


def test_one_member_that_steps_back_takes_all_along(scene: Path, tmp_path: Path) -> None:
    gentle = load_predictor(write_gentle_checkpoint(tmp_path / "a.safetensors"), "cpu")
    strong = load_predictor(write_checkpoint(tmp_path / "b.safetensors"), "cpu")
    assert _choose(scene, EnsemblePredictor([gentle, gentle])).precision == "bfloat16"
    check = _choose(scene, EnsemblePredictor([gentle, strong]))
    assert (check.precision, bool(check.note)) == ("float32", True)


# Everybody runs in it


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with (
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=":0") as local,
        Client(local, set_as_default=False) as client,
    ):
        yield client


@pytest.mark.parametrize("write", [write_gentle_checkpoint, write_checkpoint])
def test_regions_and_workers_agree_where_auto_decides(
    scene: Path, tmp_path: Path, client: Client, write: Callable[[Path], Path]
) -> None:
    """The upper half of the scene is gray, the lower full of contrast: each half by itself might decide otherwise."""
    with rasterio.open(scene, "r+") as dataset:
        pixels = dataset.read()
        pixels[:, :150] = 128
        dataset.write(pixels)
    predictor = load_predictor(write(tmp_path / "m.safetensors"), "cpu")
    written, reports = [], []
    for regions, at in ((1, None), (3, None), (4, client)):
        spec = replace(SPEC, distribute=DistributeSpec(regions=regions))
        report = segment_scene(scene, tmp_path / f"{regions}", predictor=predictor, spec=spec, client=at)
        reports.append((report.statistics.precision, report.statistics.precision_change, report.inputs.content_key))
        written.append((Path(report.folder) / "probability.tif").read_bytes())
    assert len(set(reports)) == 1
    assert len(set(written)) == 1


@pytest.mark.parametrize("precision", ["float32", "mixed", "bfloat16"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_bytes_do_not_depend_on_batches_or_threads_in_any_precision(
    scene: Path, tmp_path: Path, precision: Precision, batch_size: int
) -> None:
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision=precision)
    written = []
    for name, inference in (
        ("one", InferenceSpec(precision=precision, batch_size=2, threads=1)),
        ("other", InferenceSpec(precision=precision, batch_size=batch_size, threads=3)),
    ):
        report = segment_scene(scene, tmp_path / name, predictor=predictor, spec=replace(SPEC, inference=inference))
        written.append((Path(report.folder) / "probability.tif").read_bytes())
    assert len(set(written)) == 1
