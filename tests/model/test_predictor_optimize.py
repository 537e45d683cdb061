"""A prepared network says what the plain one says, whatever its batch and threads, on every network there is."""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.models import write_checkpoint
from support.networks import SHAPES, make_network, pixels_for
from torch import Tensor, nn

from pipeline.errors import AccessError
from pipeline.inference.cpu_workers import torch_num_threads
from pipeline.model.networks.deeplab import DeepLabSpec
from pipeline.model.networks.registry import Shape
from pipeline.model.networks.unet import UNet, UNetSpec
from pipeline.model.predictor import compiled as readying
from pipeline.model.predictor import optimize as preparing
from pipeline.model.predictor.compiled import BatchShape
from pipeline.model.predictor.loading import load_predictor
from pipeline.model.predictor.optimize import (
    Arithmetic,
    as_input,
    converted,
    fold_batch_norm,
    is_compilation_worthwhile,
    optimize_network,
    pin_convolution_kernels,
    split_joins,
)
from pipeline.model.predictor.optimized_layers import HalvingMaxPool, OneDnnConvolution, SplitConvolution

CPU = torch.device("cpu")
BFLOAT16 = Arithmetic(device=CPU, dtype=torch.bfloat16)
each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
each_format = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
fused = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_convolution_pointwise"), reason="this torch has no fused convolutions"
)


@pytest.fixture(autouse=True)
def _one_torch_thread() -> Iterator[None]:
    with torch_num_threads(1):
        yield


def folded(shape: Shape) -> nn.Module:
    network = fold_batch_norm(make_network(shape))
    pin_convolution_kernels(network)
    return network


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


@fused
@each_shape
def test_fusing_changes_not_a_bit_in_float32(shape: Shape) -> None:
    network, arithmetic, pixels = folded(shape), Arithmetic(device=CPU), pixels_for(shape, 2)
    prepared = optimize_network(network, arithmetic, pixels)
    assert any(isinstance(module, OneDnnConvolution) for module in prepared.modules())
    tiles = as_input(pixels, arithmetic)
    with torch.inference_mode():
        assert torch.equal(prepared(tiles), converted(network, arithmetic)(tiles))


@fused
@each_shape
def test_fusing_brings_bfloat16_nearer_to_float32(shape: Shape) -> None:
    """Biases are not rounded; early blocks in float32 bring it nearer again."""
    network, pixels = folded(shape), pixels_for(shape, 2)
    plain, mixed = BFLOAT16, dataclasses.replace(BFLOAT16, first_blocks_dtype=torch.float32)
    with torch.inference_mode():
        exact = network(pixels)
        forms = [
            converted(network, plain),
            optimize_network(network, plain, pixels),
            optimize_network(network, mixed, pixels),
        ]
        inputs = [as_input(pixels, arithmetic) for arithmetic in (plain, plain, mixed)]
        errors = [float((form(tiles) - exact).square().mean()) for form, tiles in zip(forms, inputs, strict=True)]
    assert any(isinstance(module, OneDnnConvolution) for form in forms[1:] for module in form.modules())
    assert errors[1] <= 1.2 * errors[0]
    assert errors[2] <= 1.2 * errors[1] or isinstance(shape, DeepLabSpec)


@fused
@each_shape
@each_format
def test_a_tile_gives_the_same_bits_alone_and_in_company(shape: Shape, dtype: torch.dtype) -> None:
    arithmetic, pixels = Arithmetic(device=CPU, dtype=dtype), pixels_for(shape, 3)
    prepared = optimize_network(folded(shape), arithmetic, pixels)
    with torch.inference_mode():
        together = prepared(as_input(pixels, arithmetic))
        alone = [prepared(as_input(tile[None], arithmetic)) for tile in pixels]
    assert torch.equal(together, torch.cat(alone))


THREADED = [name for name, shape in SHAPES.items() if isinstance(shape, UNetSpec) and shape.norm != "group"]
"""Group norm, and maps as small as those of FCN and DeepLab, are divided by threads: lanes have one thread each."""


@fused
@pytest.mark.parametrize("name", THREADED)
@each_format
def test_results_do_not_depend_on_the_number_of_threads(name: str, dtype: torch.dtype) -> None:
    arithmetic, pixels = Arithmetic(device=CPU, dtype=dtype), pixels_for(SHAPES[name], 2)
    prepared, usual, results = optimize_network(folded(SHAPES[name]), arithmetic, pixels), torch.get_num_threads(), []
    with torch.inference_mode():
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(prepared(as_input(pixels, arithmetic)))
    torch.set_num_threads(usual)
    assert all(torch.equal(result, results[0]) for result in results)


@fused
def test_a_form_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(HalvingMaxPool):
        def forward(self, features: Tensor) -> Tensor:
            return super().forward(features) + 1

    monkeypatch.setattr(preparing, "HalvingMaxPool", Wrong)
    prepared = optimize_network(folded(SHAPES["unet"]), Arithmetic(device=CPU), pixels_for(SHAPES["unet"]))
    assert not any(isinstance(module, OneDnnConvolution | Wrong) for module in prepared.modules())


@fused
def test_a_form_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("not on this processor")

    monkeypatch.setattr(OneDnnConvolution, "forward", refuse)
    prepared = optimize_network(folded(SHAPES["unet"]), Arithmetic(device=CPU), pixels_for(SHAPES["unet"]))
    assert not any(isinstance(module, OneDnnConvolution) for module in prepared.modules())


def test_the_network_that_is_prepared_stays_as_it_is() -> None:
    network, pixels = folded(SHAPES["unet"]), pixels_for(SHAPES["unet"])
    before = copy.deepcopy(network.state_dict())
    optimize_network(network, Arithmetic(device=CPU, dtype=torch.bfloat16), pixels)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_halving_by_maxima_is_max_pooling(kind: torch.dtype) -> None:
    features = torch.randn((2, 5, 12, 20)).to(kind)
    features[0, 0, 3, 3] = torch.nan
    pooled, expected = HalvingMaxPool()(features), nn.functional.max_pool2d(features, 2)
    assert torch.equal(pooled.nan_to_num(), expected.nan_to_num())
    assert torch.equal(pooled.isnan(), expected.isnan())


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if isinstance(shape, UNetSpec)])
def test_a_decoder_without_concatenation_gives_the_same_up_to_rounding(name: str) -> None:
    network, pixels = folded(SHAPES[name]), pixels_for(SHAPES[name])
    with torch.inference_mode():
        expected = network(pixels)
        split = split_joins(copy.deepcopy(network))
        assert any(isinstance(module, SplitConvolution) for module in split.modules())
        assert float((split(pixels) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


# Compiling


def test_many_small_runs_repay_a_compilation_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, where a batch of this size would take so long."""
    compiled: list[int] = []
    monkeypatch.setattr(readying.CompiledVariants, "_may_compile", lambda *_: True)
    monkeypatch.setattr(readying, "_seconds_per_batch", lambda *_: 1.0)
    monkeypatch.setattr(
        readying, "compile_network", lambda network, _: lambda tiles: compiled.append(1) or network(tiles)
    )
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")
    shape, fewer = (2, 3, 64, 64), torch.zeros((1, 3, 64, 64))
    enough = next(count for count in range(10_000) if is_compilation_worthwhile(count, 1.0))
    first = predictor.runnable(BatchShape(precision="float32", batches=enough // 2, shape=shape))
    first(torch.zeros(shape))
    assert not compiled
    second = predictor.runnable(BatchShape(precision="float32", batches=enough // 2 + 1, shape=shape))
    tried = len(compiled)
    second(fewer)
    assert len(compiled) == tried == 1
    second(torch.zeros(shape))
    assert len(compiled) == tried + 1
    assert predictor.runnable(BatchShape(precision="float32", shape=shape)) is second


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For batches made in and outside of inference mode, and among batches of another shape."""
    monkeypatch.setattr(readying.CompiledVariants, "_may_compile", lambda *_: True)
    monkeypatch.setattr(readying, "_seconds_per_batch", lambda *_: 1e9)
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")
    form, fused_form = (
        predictor.runnable(BatchShape(precision="float32", batches=1, shape=(2, 3, 64, 64))),
        predictor.runnable(BatchShape(precision="float32")),
    )
    assert form is not fused_form
    torch._dynamo.utils.counters.clear()
    tiles = torch.randn((2, 3, 64, 64))
    for given in (tiles, tiles[:1], tiles):
        assert float((form(given) - fused_form(given)).abs().max()) < 1e-5
    with torch.inference_mode():
        form(tiles.clone())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 0


@pytest.mark.parametrize("failure", ["fails", "differs"])
def test_a_compiled_network_that_fails_or_differs_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, failure: str
) -> None:
    def run(tiles: Tensor) -> Tensor:
        if failure == "fails":
            raise RuntimeError("no compiler here")
        return torch.full((2, 1, 64, 64), 99.0)

    monkeypatch.setattr(readying.CompiledVariants, "_may_compile", lambda *_: True)
    monkeypatch.setattr(readying, "_seconds_per_batch", lambda *_: 1e9)
    monkeypatch.setattr(readying, "compile_network", lambda *_: run)
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")
    form = predictor.runnable(BatchShape(precision="float32", batches=1, shape=(2, 3, 64, 64)))
    assert form is predictor.runnable(BatchShape(precision="float32"))
    assert "compiled" in caplog.text


def test_what_must_repeat_to_the_byte_is_not_compiled() -> None:
    """When a network is compiled depends on measured time."""
    cuda = Arithmetic(device=torch.device("cuda"))
    forms = readying.CompiledVariants(nn.Identity(), None, device=cuda.device, layout=cuda.layout)  # type: ignore[arg-type]
    assert forms._may_compile(cuda)
    assert not forms._may_compile(dataclasses.replace(cuda, deterministic=True))


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["exact", "float32", "float16"])
def test_every_form_agrees_on_cuda(precision: str) -> None:
    cuda, dtype = torch.device("cuda"), torch.float16 if precision == "float16" else torch.float32
    arithmetic = Arithmetic(device=cuda, dtype=dtype, tf32=precision != "exact")
    network, pixels = folded(SHAPES["unet"]), pixels_for(SHAPES["unet"], 2)
    with torch.inference_mode():
        expected = network(pixels)
        forms = [optimize_network(network.to(cuda), arithmetic, pixels), preparing.compile_network(network, arithmetic)]
        with arithmetic.cudnn_flags():
            results = [form(as_input(pixels, arithmetic)).float().cpu() for form in forms]
    bound = 1e-4 if precision == "exact" else 0.02
    assert all(float((result - expected).abs().max()) <= bound * float(expected.abs().max()) for result in results)


# The cache of compiled networks


def test_compiled_networks_are_cached_where_no_other_user_can_put_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    network, arithmetic = folded(SHAPES["unet"]), Arithmetic(device=CPU)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    preparing.compile_network(network, arithmetic)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    preparing.compile_network(network, arithmetic)
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert folder == tmp_path / f"scenemill-{os.geteuid()}" / "torchinductor"
    assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.raises(AccessError, match="is a symbolic link"):
        preparing.compile_network(network, arithmetic)
