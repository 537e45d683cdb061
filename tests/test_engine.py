"""Batches in, probabilities out: full batches only, outputs checked, the fastest harmless number format."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ROOF, write_checkpoint
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import predictor as predictors
from pipeline.batches import RawStrip
from pipeline.card import ModelCard
from pipeline.checkpoint import load_checkpoint
from pipeline.engine import Engine, resolve_batch_size
from pipeline.errors import ModelError, SettingsError
from pipeline.normalize import InputTransform
from pipeline.predictor import InferenceSpec, activate, fold_batch_norm, load_predictor, resolve_device
from pipeline.unet import UNet, UNetSpec

CPU = torch.device("cpu")
PLAIN = InputTransform(gain=(1.0,), bias=(0.0,), clip=None)


def strip_of(pixels: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> RawStrip:
    return RawStrip(row=0, left=0, pixels=pixels, valid=np.ones(pixels.shape[1:], bool) if valid is None else valid)


def run(
    predictor: Any,
    strip: RawStrip,
    lefts: Sequence[int],
    *,
    card: ModelCard = ROOF,
    transform: InputTransform = PLAIN,
    batch_size: int = 2,
    most: int = 100,
) -> dict[int, Tensor]:
    side = strip.valid.shape[0]
    machine = Engine(predictor, card, transform, device=CPU, batch_size=batch_size)
    return dict(machine.run_strip(strip, lefts, (side, side), most=most))


# Batches


@pytest.mark.parametrize(("tiles", "batch_size", "most", "sizes"), [
    (5, 2, 100, [2, 2, 2]),   # the last is padded
    (4, 2, 100, [2, 2]),
    (1, 4, 100, [4]),
    (3, 8, 3, [3]),           # no batch is larger than a strip of the scene
    (2, 8, 3, [3]),           # though this region's strip is shorter
])  # fmt: skip
def test_every_batch_is_full(tiles: int, batch_size: int, most: int, sizes: list[int]) -> None:
    seen: list[int] = []

    def predictor(batch: NDArray[Any]) -> NDArray[Any]:
        seen.append(len(batch))
        return batch

    pixels = np.random.default_rng(0).random((1, 4, 4 * tiles), np.float32)
    results = run(predictor, strip_of(pixels), range(0, 4 * tiles, 4), batch_size=batch_size, most=most)
    assert seen == sizes
    assert [*results] == [*range(tiles)]
    for k, result in results.items():
        assert (result.numpy() == pixels[:, :, 4 * k : 4 * k + 4]).all()


def test_a_tile_gives_the_same_bits_whoever_shares_its_batch(tmp_path: Path) -> None:
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")
    tiles = torch.randn((4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    together, turned = predictor(tiles), predictor(tiles.flip(0)).flip(0)
    assert torch.equal(together, turned)


def test_tiles_without_a_valid_pixel_are_not_run() -> None:
    pixels = np.ones((1, 4, 16), np.float32)
    valid = np.zeros((4, 16), bool)
    valid[2, 5] = True
    results = run(lambda batch: batch, strip_of(pixels, valid), [0, 4, 8, 12])
    assert [*results] == [1]
    assert not run(lambda batch: 1 / 0, strip_of(pixels, valid & False), [0, 4])


def test_left_of_a_strip_is_where_its_columns_begin() -> None:
    pixels = np.arange(8, dtype=np.float32)[None, None].repeat(4, axis=1) / 10
    strip = RawStrip(row=0, left=-2, pixels=pixels, valid=np.ones((4, 8), bool))
    assert run(lambda batch: batch, strip, [-2, 2])[1][0, 0, 0] == np.float32(0.4)


def test_input_is_scaled_then_clipped_and_zero_where_invalid() -> None:
    transform = InputTransform(gain=(0.01,), bias=(-0.5,), clip=(0.0, 1.0))
    pixels = np.array([[[0, 100], [120, 250]]], np.uint8)
    valid = np.array([[True, True], [False, True]])
    (result,) = run(lambda batch: batch, strip_of(pixels, valid), [0], transform=transform).values()
    assert np.allclose(result[0], [[0, 0.5], [0, 1]])


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64"]
)
def test_every_real_pixel_type_reaches_the_network_with_its_values(dtype: str) -> None:
    pixels = np.array([[[0, 1], [100, 127]]], dtype)
    (result,) = run(lambda batch: batch / 127, strip_of(pixels), [0]).values()
    assert np.allclose(result[0], pixels[0].astype(float) / 127)


@pytest.mark.parametrize(
    ("device", "side", "size"),
    [("cpu", 512, 1), ("cpu", 128, 16), ("cuda", 512, 16), ("cuda", 4096, 1), ("xpu", 512, 1)],
)
def test_batches_suit_the_device_and_the_tile(device: str, side: int, size: int) -> None:
    assert resolve_batch_size(torch.device(device), side * side) == size


def test_outputs_may_leave_the_range_by_rounding_only() -> None:
    strip = strip_of(np.ones((1, 4, 4), np.float32))
    assert run(lambda batch: batch + 5e-5, strip, [0])
    with pytest.raises(ModelError, match="values from"):
        run(lambda batch: batch + 5e-4, strip, [0])
    with pytest.raises(ModelError, match="values from"):
        run(lambda batch: batch - 1.001, strip, [0])
    with pytest.raises(ModelError, match="NaN"):
        run(lambda batch: np.where(np.indices(batch.shape)[3] == 2, np.nan, batch), strip, [0])
    with pytest.raises(ModelError, match="to inf"):
        run(lambda batch: batch * np.inf, strip, [0])


def test_the_margin_of_unpadded_networks_is_expected_of_the_output() -> None:
    card = ModelCard(bands=("red",), classes=("roof",), margin=1)
    strip = strip_of(np.ones((1, 6, 6), np.float32))
    assert run(lambda batch: batch[:, :, 1:-1, 1:-1], strip, [0], card=card)[0].shape == (1, 4, 4)
    with pytest.raises(ModelError, match="margin 1"):
        run(lambda batch: batch, strip, [0], card=card)


# Networks


@pytest.mark.parametrize("outputs", ["logits", "probabilities"])
def test_only_logits_are_activated(outputs: Any) -> None:
    scores = torch.tensor([[-1.0, 2.0, 0.0]])[:, :, None, None]
    sigmoid = ModelCard(bands=("red",), classes=("a", "b", "c"), outputs=outputs)
    softmax = ModelCard(bands=("red",), classes=("a", "b", "c"), outputs=outputs, activation="softmax")
    expected = (scores.sigmoid(), scores.softmax(1)) if outputs == "logits" else (scores, scores)
    assert torch.equal(activate(scores, sigmoid), expected[0])
    assert torch.equal(activate(scores, softmax), expected[1])


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_a_temperature_divides_logits_before_the_activation(activation: Any) -> None:
    """Guo et al. 2017, section 4: `softmax(z / T)`; above 1 it draws probabilities together, below 1 apart."""
    scores = torch.randn((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    cards = [
        ModelCard(bands=("red",), classes=("a", "b", "c"), outputs="logits", activation=activation, temperature=t)
        for t in (0.5, 1.0, 2.0)
    ]
    sharp, plain, soft = (activate(scores, card) for card in cards)
    assert torch.equal(soft, activate(scores / 2, cards[1]))
    assert sharp.std() > plain.std() > soft.std()


def test_a_temperature_in_the_checkpoint_reaches_the_probabilities(tmp_path: Path) -> None:
    tiles = torch.randn((1, 3, 32, 32))
    plain, warm = (
        load_predictor(write_checkpoint(tmp_path / f"{t}.safetensors", temperature=t), "cpu", precision="float32")(
            tiles
        )
        for t in (1.0, 4.0)
    )
    assert (warm.logit() - plain.logit() / 4).abs().max() < 1e-4


def test_a_checkpoint_of_one_tile_size_proves_its_precision_on_that_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictors, "_fast_type", lambda device: torch.bfloat16)
    path, seen, forward = write_checkpoint(tmp_path / "m.safetensors", tile_size=32), [], UNet.forward

    def watched(self: UNet, pixels: Tensor) -> Tensor:
        seen.append(tuple(pixels.shape[-2:]))
        return forward(self, pixels)

    monkeypatch.setattr(UNet, "forward", watched)
    load_predictor(path, "cpu")
    assert set(seen) == {(32, 32)}


def test_folded_batch_norm_changes_rounding_only() -> None:
    torch.manual_seed(0)
    network = UNet(UNetSpec(bands=3, classes=2, depth=3, base_channels=8)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value, low, high in (
                (module.running_mean, -1, 1), (module.running_var, 0.2, 4), (module.weight, -2, 2), (module.bias, -1, 1)
            ):  # fmt: skip
                assert value is not None
                nn.init.uniform_(value, low, high)
    tiles = torch.randn((2, 3, 48, 48))
    with torch.inference_mode():
        before = network(tiles)
        fold_batch_norm(network)
        after = network(tiles)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()


def test_networks_without_batch_norm_are_left_as_they_are() -> None:
    torch.manual_seed(0)
    network = UNet(UNetSpec(bands=3, classes=1, depth=2, base_channels=8, norm="group")).eval()
    tiles = torch.randn((1, 3, 32, 32))
    with torch.inference_mode():
        before = network(tiles)
        assert torch.equal(fold_batch_norm(network)(tiles), before)


def test_a_loaded_predictor_says_what_the_plain_network_says(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", classes=("a", "b"))
    tiles = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = load_checkpoint(path).network(tiles).sigmoid()
    predictor = load_predictor(path, "cpu", precision="float32")
    assert (predictor(tiles) - expected).abs().max() < 1e-5
    assert predictor(tiles).dtype == torch.float32


# Number formats


def gentle(tmp_path: Path) -> Path:
    """A checkpoint whose logits stay so small that a lower precision hardly shows."""
    checkpoint = load_checkpoint(write_checkpoint(tmp_path / "strong.safetensors"))
    with torch.no_grad():
        checkpoint.network.get_submodule("head").weight.mul_(0.02)
    from pipeline.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "gentle.safetensors", checkpoint.network, checkpoint.card)
    return tmp_path / "gentle.safetensors"


def test_auto_takes_the_lower_precision_where_it_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictors, "_fast_type", lambda device: torch.bfloat16)
    predictor = load_predictor(gentle(tmp_path), "cpu")
    assert predictor.precision == torch.bfloat16
    tiles = torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    exact = load_predictor(gentle(tmp_path), "cpu", precision="float32")
    assert 0 < (predictor(tiles) - exact(tiles)).abs().max() < 0.01


def test_auto_steps_back_to_float32_where_probabilities_would_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictors, "_fast_type", lambda device: torch.bfloat16)
    path = write_checkpoint(tmp_path / "m.safetensors")
    predictor, exact = load_predictor(path, "cpu"), load_predictor(path, "cpu", precision="float32")
    assert (predictor.precision, predictor.identity) == (torch.float32, exact.identity)
    tiles = torch.randn((1, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    assert torch.equal(predictor(tiles), exact(tiles))


@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_probabilities_do_not_depend_on_the_number_of_threads(tmp_path: Path, upsampling: str) -> None:
    spec = UNetSpec(bands=3, classes=1, depth=2, base_channels=8, upsampling=upsampling)  # type: ignore[arg-type]
    write_checkpoint(tmp_path / "model.safetensors", network=spec)
    predictor = load_predictor(tmp_path / "model.safetensors", "cpu", precision="float32")
    tiles, usual = torch.randn(2, 3, 64, 64), torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(predictor(tiles))
    torch.set_num_threads(usual)
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_precision_asked_for_is_kept_and_part_of_the_identity(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors")
    predictor = load_predictor(path, "cpu", precision="bfloat16")
    assert predictor.precision == torch.bfloat16
    assert predictor.identity != load_predictor(path, "cpu", precision="float32").identity


# Devices and processes


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cpu:x", "", "meta"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(SettingsError, match=r"inference\.device = .* is not usable here"):
        resolve_device(device)
    with pytest.raises(SettingsError, match=r"^learning\.device = .* is not usable here"):
        resolve_device(device, key="learning.device")


def test_auto_finds_a_device() -> None:
    assert resolve_device("auto").type in ("cuda", "mps", "cpu")


def test_a_negative_batch_size_is_refused() -> None:
    with pytest.raises(SettingsError, match="batch_size must be at least 0, not -1"):
        InferenceSpec(batch_size=-1)


def test_unpickling_loads_the_file_once_per_process(tmp_path: Path) -> None:
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")
    message = pickle.dumps(predictor)
    assert len(message) < 1000
    first, second = pickle.loads(message), pickle.loads(message)
    assert first is second
    assert (first.identity, first.card) == (predictor.identity, predictor.card)


def test_a_worker_that_finds_another_checkpoint_there_says_so(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors")
    message = pickle.dumps(load_predictor(path, "cpu", precision="float32"))
    write_checkpoint(path, seed=1)
    with pytest.raises(ModelError, match=r"differs between client .* and worker"):
        pickle.loads(message)
    path.unlink()
    with pytest.raises(ModelError, match="no such checkpoint"):
        pickle.loads(message)


@pytest.mark.gpu
def test_the_gpu_says_what_the_cpu_says(tmp_path: Path) -> None:
    path = gentle(tmp_path)
    tiles = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    exact = load_predictor(path, "cpu", precision="float32")(tiles)
    there = load_predictor(path, "cuda")
    assert there.precision == torch.float16
    assert (there(tiles).cpu() - exact).abs().max() < 0.01
