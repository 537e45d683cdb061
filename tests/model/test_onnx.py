"""An ONNX file gives the probabilities of the checkpoint that it was made of, judged by onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.models import write_checkpoint

from pipeline.errors import ModelError, SettingsError
from pipeline.model.card import ModelCard
from pipeline.model.networks.unet import UNetSpec
from pipeline.model.predictor import onnx as exporter
from pipeline.model.predictor.loading import load_predictor
from pipeline.model.predictor.onnx import export_onnx

runtime = pytest.importorskip("onnxruntime")
PAPER = UNetSpec(bands=3, classes=2, depth=2, base_channels=8, padding="valid", upsampling="bilinear")


def run(path: Path, tiles: torch.Tensor) -> NDArray[Any]:
    (result,) = runtime.InferenceSession(path).run(None, {"tiles": tiles.numpy()})
    return np.asarray(result)


@pytest.mark.parametrize(
    ("facts", "shapes"),
    [
        ({"classes": ("roof",), "temperature": 1.7}, [(1, 32, 48), (3, 64, 64), (2, 4, 4)]),
        pytest.param({"classes": ("a", "b"), "network": PAPER}, [(1, 64, 72)], marks=pytest.mark.slow),
    ],
)
def test_probabilities_are_the_same_for_any_batch_height_and_width(
    tmp_path: Path, facts: dict[str, Any], shapes: list[tuple[int, int, int]]
) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", **facts)
    predictor = load_predictor(path, "cpu", precision="float32")
    written = export_onnx(path, tmp_path / "m.onnx")
    assert (written.tile_size, written.sha256) == (None, predictor.sha256)
    for count, height, width in shapes:
        offset = predictor.card.size_offset
        tiles = torch.randn((count, 3, height + offset, width + offset))
        assert np.abs(run(written.path, tiles) - predictor(tiles).numpy()).max() < 1e-4


@pytest.mark.parametrize("tile_size", [None, 52])
def test_a_file_of_one_tile_size_takes_that_one_and_any_batch(tmp_path: Path, tile_size: int | None) -> None:
    """An unpadded network with exclusive classes; the size is the card's, or the one asked for."""
    facts = {"classes": ("a", "b"), "activation": "softmax", "network": PAPER, "temperature": 0.5}
    path = write_checkpoint(tmp_path / "m.safetensors", **facts, tile_size=None if tile_size else 60)
    written = export_onnx(path, tmp_path / "m.onnx", tile_size=tile_size)
    side = tile_size or 60
    assert written.tile_size == side
    tiles = torch.randn((3, 3, side, side))
    expected = load_predictor(path, "cpu", precision="float32")(tiles).numpy()
    assert np.abs(run(written.path, tiles) - expected).max() < 1e-4


def test_the_card_travels_in_the_metadata(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", tile_size=32)
    written = export_onnx(path, tmp_path / "m.onnx")
    session = runtime.InferenceSession(written.path)
    facts = session.get_modelmeta().custom_metadata_map
    predictor = load_predictor(path, "cpu", precision="float32")
    assert ModelCard.from_json(facts["scenemill.card"]) == predictor.card
    assert facts["scenemill.sha256"] == predictor.sha256
    assert [each.name for each in (*session.get_inputs(), *session.get_outputs())] == ["tiles", "probabilities"]
    assert [each.name for each in tmp_path.iterdir() if each.name != path.name] == ["m.onnx"]


@pytest.mark.parametrize(
    ("change", "tile_size", "message"),
    [
        ({}, 33, r"--tile-size must be 0 modulo 4 and above 0 px for this network, not 33"),
        ({"tile_size": 64}, 32, r"--tile-size must be 64 px for this network, not 32"),
    ],
)
def test_a_tile_size_that_the_network_does_not_take_is_refused(
    tmp_path: Path, change: dict[str, Any], tile_size: int, message: str
) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", **change)
    with pytest.raises(SettingsError, match=message):
        export_onnx(path, tmp_path / "m.onnx", tile_size=tile_size)


def test_wrong_paths_are_refused(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors")
    with pytest.raises(SettingsError, match=r"must end in \.onnx and lie in a folder that exists"):
        export_onnx(path, tmp_path / "m.pb")
    with pytest.raises(SettingsError, match="export the original module with"):
        export_onnx(tmp_path / "m.pt2", tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="no such checkpoint"):
        export_onnx(tmp_path / "n.safetensors", tmp_path / "m.onnx")


def test_missing_packages_are_named_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"onnx, onnxscript: pip install scenemill\[onnx\]"):
        export_onnx(write_checkpoint(tmp_path / "m.safetensors"), tmp_path / "m.onnx")


def test_an_unsupported_network_is_reported_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise torch.onnx.errors.OnnxExporterError("no translation\nfor this")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(ModelError, match=r"cannot be written as ONNX \(no translation\); name a --tile-size"):
        export_onnx(write_checkpoint(tmp_path / "m.safetensors"), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()
