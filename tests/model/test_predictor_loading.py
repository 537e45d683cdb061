"""A network on one device: folded, in the fastest number format that is harmless, and the same in every process."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import write_checkpoint, write_gentle_checkpoint
from torch import Tensor

from pipeline.errors import ModelError, SettingsError
from pipeline.model.card import ModelCard
from pipeline.model.checkpoint import load_checkpoint
from pipeline.model.networks.unet import UNetSpec
from pipeline.model.predictor import precision as formats
from pipeline.model.predictor.compiled import BatchShape, activate
from pipeline.model.predictor.devices import resolve_device
from pipeline.model.predictor.loading import load_predictor
from pipeline.model.predictor.protocol import InferenceSpec, LoadedModel, Runnable

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


def test_a_loaded_predictor_equals_the_plain_network(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors", classes=("a", "b"))
    tiles = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = load_checkpoint(path).network(tiles).sigmoid()
    predictor = load_predictor(path, "cpu", precision="float32")
    assert (predictor(tiles) - expected).abs().max() < 1e-5
    assert predictor(tiles).dtype == torch.float32


# Number formats


@pytest.fixture
def bfloat16_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "fastest_precision", lambda device: "bfloat16")


def some_tiles(side: int = 64) -> Tensor:
    return torch.randn((1, 3, side, side), generator=torch.Generator().manual_seed(1))


def test_what_is_loaded_is_prepared_and_hands_out_what_is_ready(tmp_path: Path) -> None:
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu")
    assert isinstance(predictor, LoadedModel)
    assert predictor.members == (predictor,)
    form = predictor.runnable(BatchShape(precision="float32"))
    assert isinstance(form, Runnable)
    assert form is predictor.runnable(BatchShape(precision="float32"))
    assert (form.dtype, form.layout, form.device.type) == (torch.float32, torch.channels_last, "cpu")


@pytest.mark.usefixtures("bfloat16_is_fast")
def test_auto_takes_the_lower_precision_where_it_is_harmless(tmp_path: Path) -> None:
    predictor = load_predictor(write_gentle_checkpoint(tmp_path / "m.safetensors"), "cpu")
    check = predictor.check_precision(some_tiles())
    assert (check.precision, check.note) == ("bfloat16", "")
    assert 0 < check.change <= 0.01
    change = predictor(some_tiles()) - predictor.runnable(BatchShape(precision="float32"))(some_tiles())
    assert float(change.abs().max()) == check.change


@pytest.mark.usefixtures("bfloat16_is_fast")
def test_auto_steps_back_to_float32_where_probabilities_would_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors")
    predictor, exact = load_predictor(path, "cpu"), load_predictor(path, "cpu", precision="float32")
    changes = {
        precision: load_predictor(path, "cpu", precision=precision).check_precision(some_tiles()).change
        for precision in ("bfloat16", "mixed")
    }
    check = predictor.check_precision(some_tiles())
    assert (check.precision, check.change) == ("float32", changes["mixed"])
    assert check.note == (
        f"a probability would change by more than 0.01 ({changes['bfloat16']:.3g} in bfloat16, "
        f"{changes['mixed']:.3g} in mixed): float32 is used"
    )
    assert torch.equal(predictor(some_tiles()), exact(some_tiles()))
    assert [record.getMessage() for record in caplog.records] == [f"{path}: {check.note}"]


@pytest.mark.usefixtures("bfloat16_is_fast")
def test_auto_computes_early_blocks_in_float32_where_that_is_enough(tmp_path: Path) -> None:
    """A dark scene: the mean that is taken away leaves differences as small as the rounding of the input."""
    tiles = 8 + some_tiles() / 2
    for seed in range(20):
        predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors", seed=seed), "cpu")
        check = predictor.check_precision(tiles)
        if check.precision == "mixed":
            break
    assert check.change <= 0.01
    assert check.note.endswith("in bfloat16): mixed is used")
    form = predictor.runnable(BatchShape(precision="mixed"))
    assert form.dtype == torch.float32
    change = float((form(tiles) - predictor.runnable(BatchShape(precision="float32"))(tiles)).abs().max())
    assert check.change == pytest.approx(change, abs=1e-5)


@pytest.mark.usefixtures("bfloat16_is_fast")
def test_the_first_batch_decides_for_all_that_follow(tmp_path: Path) -> None:
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu")
    blank = torch.zeros((1, 3, 64, 64))
    chosen = predictor.check_precision(blank).precision
    predictor(blank)
    assert torch.equal(predictor(some_tiles()), predictor.runnable(BatchShape(precision=chosen))(some_tiles()))


def test_exact_is_float32_on_a_cpu(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors")
    exact, plain = (load_predictor(path, "cpu", precision=p)(some_tiles()) for p in ("exact", "float32"))  # type: ignore[arg-type]
    assert torch.equal(exact, plain)


@pytest.mark.usefixtures("bfloat16_is_fast")
def test_the_identity_is_known_before_any_work_and_holds_the_request(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors")
    predictor = load_predictor(path, "cpu")
    before = predictor.identity
    assert before == f"{predictor.sha256} auto-bfloat16 cpu"
    predictor(some_tiles())
    assert predictor.identity == before
    assert load_predictor(path, "cpu", precision="bfloat16").identity == f"{predictor.sha256} bfloat16 cpu"


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


# Devices and processes


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "cpu:x", "", "meta"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(SettingsError, match=r"inference\.device = .* is not usable here"):
        resolve_device(device)
    with pytest.raises(SettingsError, match=r"^learning\.device = .* is not usable here"):
        resolve_device(device, key="learning.device")


def test_auto_finds_a_device() -> None:
    assert resolve_device("auto").type in ("cuda", "mps", "cpu")


@pytest.mark.parametrize("key", ["batch_size", "threads"])
def test_a_negative_count_is_refused(key: str) -> None:
    with pytest.raises(SettingsError, match=f"{key} must be at least 0, not -1"):
        InferenceSpec(**{key: -1})  # type: ignore[arg-type]


def test_unpickling_loads_the_file_once_per_process(tmp_path: Path) -> None:
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")
    message = pickle.dumps(predictor)
    assert len(message) < 1000
    first, second = pickle.loads(message), pickle.loads(message)
    assert first is second
    assert (first.identity, first.card) == (predictor.identity, predictor.card)


def test_a_worker_that_finds_another_checkpoint_reports_it(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "m.safetensors")
    message = pickle.dumps(load_predictor(path, "cpu", precision="float32"))
    write_checkpoint(path, seed=1)
    with pytest.raises(ModelError, match=r"differs between client .* and worker"):
        pickle.loads(message)
    path.unlink()
    with pytest.raises(ModelError, match="no such checkpoint"):
        pickle.loads(message)


@pytest.mark.gpu
def test_the_gpu_gives_the_result_of_the_cpu(tmp_path: Path) -> None:
    path = write_gentle_checkpoint(tmp_path / "m.safetensors")
    tiles = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    exact = load_predictor(path, "cpu", precision="float32")(tiles)
    there = load_predictor(path, "cuda")
    assert there.check_precision(tiles).precision == "float16"
    assert (there(tiles).cpu() - exact).abs().max() < 0.01
