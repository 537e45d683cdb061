"""A checkpoint gives back what was saved, or says what is wrong with the file; it never runs code."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from pipeline.errors import ModelError, TransientError
from pipeline.model.card import ModelCard, Normalization
from pipeline.model.checkpoint import describe_checkpoint, load_checkpoint, save_checkpoint
from pipeline.model.networks.deeplab import DeepLabSpec
from pipeline.model.networks.fcn import FCNSpec
from pipeline.model.networks.registry import Shape, architecture_of, build_network
from pipeline.model.networks.unet import UNet, UNetSpec

DEMO = Path(__file__).parents[2] / "pipeline" / "data" / "demo.safetensors"

SPEC = UNetSpec(bands=3, classes=1, depth=2, base_channels=8)


def make_card(spec: Shape = SPEC, **changes: Any) -> ModelCard:
    facts: dict[str, Any] = {
        "bands": ("red", "green", "blue"),
        "classes": ("building",),
        "outputs": "logits",
        "normalization": Normalization.standard([1, 2, 3], [4, 5, 6]),
        "stride": spec.stride,
        "size_offset": spec.size_offset,
        "margin": spec.margin,
        "receptive_field": spec.receptive_field,
        "aligned_halo": spec.aligned_halo,
        "training": {"seed": 0},
    }
    return ModelCard(**(facts | changes))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    torch.manual_seed(0)
    save_checkpoint(path, UNet(SPEC), make_card())
    return path


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, memory_format: torch.memory_format) -> None:
    torch.manual_seed(1)
    network = UNet(SPEC).to(memory_format=memory_format)  # type: ignore[call-overload]
    path = tmp_path / "model.safetensors"
    sha256 = save_checkpoint(path, network, make_card())
    checkpoint = load_checkpoint(path)
    assert (checkpoint.card, checkpoint.sha256, checkpoint.path) == (make_card(), sha256, path)
    assert not checkpoint.network.training
    pixels = torch.randn(2, 3, 16, 20)
    with torch.inference_mode():
        assert torch.allclose(checkpoint.network(pixels), network.eval()(pixels), rtol=0, atol=1e-5)
    for key, value in network.state_dict().items():
        assert torch.equal(checkpoint.network.state_dict()[key], value)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


NETWORKS: list[Shape] = [
    UNetSpec(
        bands=3, classes=2, depth=2, base_channels=8, attention=True, residual=True, squeeze_excitation=True,
        upsampling="convolution", convolution_bias=True,
    ),
    UNetSpec(bands=3, classes=2, depth=2, base_channels=8, norm="group", attention=True, padding="valid"),
    FCNSpec(bands=3, classes=2, base_channels=8, norm="batch"),
    DeepLabSpec(bands=3, classes=2, base_channels=8, backbone="resnet18", separable=True, output_stride=8),
    DeepLabSpec(bands=3, classes=2, base_channels=8, backbone="resnet50", image_pooling=False),
]  # fmt: skip


@pytest.mark.parametrize("shape", NETWORKS, ids=str)
def test_every_network_comes_back_as_it_was_saved(tmp_path: Path, shape: Shape) -> None:
    torch.manual_seed(1)
    network = build_network(shape).train()
    side = 64 + (shape.size_offset - 64) % shape.stride
    network(torch.randn(2, 3, side, side))  # batch statistics that are not the initial ones
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, network, make_card(shape, classes=("a", "b")))
    again = load_checkpoint(path).network
    assert architecture_of(again) == architecture_of(network)
    assert not again.training
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
    assert not any(value.is_meta for value in [*again.parameters(), *again.buffers()])
    pixels = torch.randn(1, 3, side, side)
    with torch.inference_mode():
        assert torch.equal(again(pixels), network.eval()(pixels))


def test_an_architecture_from_before_a_setting_existed_still_loads(tmp_path: Path, saved: Path) -> None:
    old_architecture = {"name": "unet", "bands": 3, "classes": 1, "depth": 2, "base_channels": 8, "norm": "batch",
              "dropout": 0.0, "padding": "same", "upsampling": "transposed"}  # fmt: skip
    old = rewrite(saved, tmp_path / "old.safetensors", architecture=json.dumps(old_architecture))
    assert load_checkpoint(old).network.spec == SPEC


def test_the_demo_checkpoint_loads() -> None:
    checkpoint = load_checkpoint(DEMO)
    assert isinstance(checkpoint.network, UNet)
    assert checkpoint.sha256 == describe_checkpoint(DEMO).sha256


def test_a_loaded_network_can_be_trained_on(saved: Path) -> None:
    network = load_checkpoint(saved).network.train()
    network(torch.randn(1, 3, 8, 8)).mean().backward()
    assert all(p.requires_grad and p.grad is not None for p in network.parameters())


def test_saving_twice_gives_the_same_bytes(tmp_path: Path, saved: Path) -> None:
    checkpoint = load_checkpoint(saved)
    again = tmp_path / "again.safetensors"
    assert save_checkpoint(again, checkpoint.network, checkpoint.card) == checkpoint.sha256
    assert again.read_bytes() == saved.read_bytes()


def test_the_hash_also_covers_the_card(tmp_path: Path, saved: Path) -> None:
    other = save_checkpoint(tmp_path / "m", load_checkpoint(saved).network, make_card(threshold=0.4))
    assert other != load_checkpoint(saved).sha256
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(saved.read_bytes().replace(b'\\"threshold\\": 0.5', b'\\"threshold\\": 0.6'))
    with pytest.raises(ModelError, match="does not match its SHA-256"):
        load_checkpoint(damaged)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_refused(saved: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(saved.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    damaged = tmp_path_factory.mktemp("flip") / "model.safetensors"
    damaged.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.safetensors: "):
        load_checkpoint(damaged)


@settings(max_examples=15, deadline=None)
@given(share=st.floats(0, 0.999999))
def test_any_truncation_is_refused(saved: Path, tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    content = saved.read_bytes()
    short = tmp_path_factory.mktemp("short") / "model.safetensors"
    short.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ModelError, match=r"truncated|not a safetensors"):
        load_checkpoint(short)


def test_a_pickle_is_named_and_never_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    bare, archive = tmp_path / "bare.pth", tmp_path / "archive.pt"
    bare.write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), archive)
    for path in (bare, archive):
        for read in (load_checkpoint, describe_checkpoint):
            with pytest.raises(ModelError, match=r"never loaded; load its state.*save_checkpoint"):
                read(path)
    assert not (tmp_path / "exploded").exists()


def rewrite(source: Path, target: Path, tensors: dict[str, torch.Tensor] | None = None, **facts: str | None) -> Path:
    """A checkpoint with other tensors or metadata, and a hash that fits them."""
    from safetensors.torch import save

    from pipeline.model.checkpoint import _digest, _split

    header, _ = _split(source.read_bytes(), source)
    metadata = {k: v for k, v in {**header["__metadata__"], **facts}.items() if v is not None and k != "sha256"}  # type: ignore[dict-item]
    tensors = load_file(source) if tensors is None else tensors
    sha256 = _digest(*_split(save(tensors, metadata), target))
    save_file(tensors, target, metadata | {"sha256": sha256})
    return target


def test_foreign_and_unfit_files_are_refused_with_the_reason(tmp_path: Path, saved: Path) -> None:
    weights = load_file(saved)
    bare = tmp_path / "bare.safetensors"
    save_file(weights, bare)
    text = tmp_path / "notes.txt"
    text.write_text("these are not weights, but long enough to have a header")
    reshaped = {**weights, "head.bias": torch.zeros(2)}
    architecture = {"name": "unet", "bands": 3, "classes": 1, "depth": 2, "base_channels": 8}
    cases = {
        bare: "without card, architecture, sha256",
        text: "not a safetensors file; name a checkpoint",
        tmp_path / "none.safetensors": "no such checkpoint",
        tmp_path: "no such checkpoint",
        rewrite(saved, tmp_path / "a", card=None): "without card in its metadata",
        rewrite(saved, tmp_path / "b", card='{"bands": ["x"], "clases": []}'): "unknown key 'clases'",
        rewrite(saved, tmp_path / "c", card=make_card(stride=8).to_json()): "stride 8 instead of 4",
        rewrite(saved, tmp_path / "d", architecture="{}"): "describes no network of ours",
        rewrite(
            saved, tmp_path / "e", architecture=json.dumps(architecture | {"name": "vgg"})
        ): "'vgg' is not one of: unet, fcn8s",
        rewrite(saved, tmp_path / "k", architecture=json.dumps(architecture | {"name": "fcn8s"})): "fcn8s: .*'depth'",
        rewrite(
            saved, tmp_path / "l", architecture=json.dumps(architecture | {"residual": 1})
        ): "residual must be true",
        rewrite(saved, tmp_path / "m", architecture='["unet"]'): "describes no network of ours",
        rewrite(saved, tmp_path / "f", architecture=json.dumps(architecture | {"depth": 9})): "depth must be",
        rewrite(saved, tmp_path / "g", architecture=json.dumps(architecture | {"base_channels": 16})): "do not fit",
        rewrite(saved, tmp_path / "h", reshaped): r"1 tensors do not fit.*head.bias is \(2,\), not \(1,\)",
        rewrite(saved, tmp_path / "i", {k: v for k, v in weights.items() if k != "head.bias"}): "head.bias is missing",
        rewrite(saved, tmp_path / "j", {**weights, "head.bias": torch.tensor([torch.nan])}): "NaN",
    }
    for path, message in cases.items():
        with pytest.raises(ModelError, match=message):
            load_checkpoint(path)


def test_a_card_that_does_not_fit_or_a_network_that_diverged_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(ModelError, match="bands 2 instead of 3"):
        save_checkpoint(path, UNet(SPEC), make_card(bands=("red", "nir"), normalization=Normalization()))
    with pytest.raises(
        ModelError,
        match=r"only a network of pipeline\.model\.networks\.registry \(unet, fcn8s, deeplabv3plus\).*not Conv2d",
    ):
        save_checkpoint(path, nn.Conv2d(3, 1, 1), make_card())
    broken = UNet(SPEC)
    nn.init.constant_(broken.head.weight, torch.inf)
    with pytest.raises(ModelError, match="NaN or infinity"):
        save_checkpoint(path, broken, make_card())
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(saved.read_bytes())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(TransientError, match="No space left"):
        save_checkpoint(path, UNet(SPEC), make_card())
    assert path.read_bytes() == saved.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_describing_needs_no_torch(saved: Path) -> None:
    facts = describe_checkpoint(saved)
    assert facts.card == make_card()
    assert facts.architecture["base_channels"] == 8
    assert facts.sha256 == load_checkpoint(saved).sha256
    assert facts.parameters == sum(v.numel() for v in load_file(saved).values())
    program = (
        "import sys; from pipeline.model.card import ModelCard; "
        "from pipeline.model.checkpoint import describe_checkpoint; "
        f"describe_checkpoint({str(saved)!r}); print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
