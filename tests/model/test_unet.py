"""The U-Net has the published sizes, and its geometry is what its spec says, to the pixel."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.drawing import transparent
from torch import Tensor, nn

from pipeline.errors import ModelError, SettingsError
from pipeline.model.networks.layers import Residual, SqueezeExcitation
from pipeline.model.networks.unet import UNet, UNetSpec, receptive_field


def make_spec(**changes: Any) -> UNetSpec:
    return UNetSpec(**({"bands": 1, "classes": 1, "depth": 2, "base_channels": 8} | changes))


def make_network(spec: UNetSpec, seed: int = 0) -> UNet:
    torch.manual_seed(seed)
    network = UNet(spec).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) * 0.1
            module.running_var = torch.rand(module.num_features) + 0.5
    return network


def fitting(spec: UNetSpec, min_size: int) -> int:
    """The smallest input size that the network takes and that is not below `least`."""
    return min_size + (spec.size_offset - min_size) % spec.stride


def count(spec: UNetSpec) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(spec).parameters())


GEOMETRIES = [
    make_spec(depth=2),
    make_spec(depth=2, upsampling="bilinear", norm="none"),
    make_spec(depth=3, norm="none"),
    make_spec(depth=3, upsampling="bilinear", attention=True),
    make_spec(depth=3, upsampling="convolution", residual=True),
    make_spec(depth=2, upsampling="convolution", attention=True, residual=True, bands=8),
    make_spec(depth=2, padding="valid"),
    make_spec(depth=2, padding="valid", upsampling="bilinear", norm="none", residual=True),
    make_spec(depth=2, padding="valid", upsampling="convolution", attention=True, residual=True),
    make_spec(depth=3, padding="valid", norm="none"),
]

ANY_SPEC = st.builds(
    make_spec,
    depth=st.integers(2, 3),
    bands=st.integers(1, 9),
    classes=st.integers(1, 3),
    norm=st.sampled_from(["batch", "none", "group"]),
    padding=st.sampled_from(["same", "valid"]),
    upsampling=st.sampled_from(["transposed", "bilinear", "convolution"]),
    dropout=st.floats(0, 0.5),
    attention=st.booleans(),
    residual=st.booleans(),
    squeeze_excitation=st.booleans(),
    convolution_bias=st.booleans(),
)
"""Every combination of the family's parts."""
BOUNDED_SPEC = ANY_SPEC.filter(lambda spec: spec.receptive_field is not None)


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 31_037_633),  # the count published for milesial/Pytorch-UNet without convolution biases
        ({"classes": 2}, 31_037_698),
        ({"norm": "none"}, 31_031_745),  # 11,776 scales and shifts less, 5,888 biases more
        ({"norm": "group"}, 31_037_633),
        ({"bands": 4}, 31_038_209),
        (
            {"upsampling": "bilinear"},
            28_948_673,
        ),  # 1x1 instead of 2x2 kernels: 3 / 2 * (1024**2 + ... + 128**2) weights less
        ({"padding": "valid"}, 31_037_633),
        ({"upsampling": "convolution", "convolution_bias": True}, 34_527_041),  # LeeJunHyun's U_Net ...
        ({"upsampling": "convolution", "convolution_bias": True, "classes": 2}, 34_527_106),
        ({"upsampling": "convolution", "convolution_bias": True, "attention": True}, 34_878_573),  # ... and AttU_Net
        ({"residual": True}, 32_436_353),  # 1,392,832 weights of 1x1 shortcuts, 5,888 scales and shifts behind them
        ({"squeeze_excitation": True}, 31_259_905),  # 2 c s + c + s for c channels squeezed to s, nine times
    ],
)
def test_parameter_counts_are_the_published_ones(changes: dict[str, Any], parameters: int) -> None:
    assert count(UNetSpec(**({"bands": 3, "classes": 1} | changes))) == parameters


def test_biases_before_batch_norm_would_give_the_other_published_count() -> None:
    spec = UNetSpec(bands=3, classes=1)
    with torch.device("meta"):
        convolutions = [m for m in UNet(spec).modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert count(spec) + sum(c.out_channels for c in convolutions) == 31_043_521


def test_the_2015_network_maps_572_pixels_to_388() -> None:
    spec = UNetSpec(bands=1, classes=2, padding="valid")
    assert (spec.stride, spec.size_offset, spec.margin) == (16, 12, 92)
    with torch.device("meta"):
        assert UNet(spec)(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)


@pytest.mark.parametrize(
    "spec", [make_spec(depth=d, padding=p, upsampling=u, attention=True, residual=True) for d, p, u in
        itertools.product((2, 3, 4, 5), ("same", "valid"), ("transposed", "bilinear", "convolution"))],
    ids=lambda spec: f"{spec.depth}-{spec.padding}-{spec.upsampling}",
)  # fmt: skip
def test_output_size_is_input_size_less_two_margins(spec: UNetSpec) -> None:
    smallest = fitting(spec, 2 * spec.margin + 1)
    with torch.device("meta"):
        network = UNet(spec)
        for size in (smallest, smallest + spec.stride):
            output = network(torch.zeros(2, 1, size, smallest))
            assert output.shape == (2, 1, size - 2 * spec.margin, smallest - 2 * spec.margin)


@settings(max_examples=25)
@given(spec=ANY_SPEC)
def test_any_combination_gives_logits_of_its_size_and_learns(spec: UNetSpec) -> None:
    side = fitting(spec, 2 * spec.margin + 8)
    network = UNet(spec).train()
    logits = network(torch.randn(2, spec.bands, side, side + spec.stride))
    height, width = side - 2 * spec.margin, side + spec.stride - 2 * spec.margin
    assert logits.shape == (2, spec.classes, height, width)
    logits.mean().backward()
    assert all(value.grad is not None for value in network.parameters())
    assert (spec.receptive_field is None) == (spec.norm == "group" or spec.squeeze_excitation)


@pytest.mark.parametrize("spec", GEOMETRIES, ids=str)
def test_the_receptive_field_is_exact(spec: UNetSpec) -> None:
    """`d output / d input` is non-zero at distance `receptive_field // 2`, for some position, and nowhere beyond."""
    check_receptive_field(spec)


@settings(max_examples=12)
@given(spec=BOUNDED_SPEC)
def test_the_receptive_field_of_any_combination_is_exact(spec: UNetSpec) -> None:
    check_receptive_field(spec)


def check_receptive_field(spec: UNetSpec) -> None:
    network = transparent(UNet(spec))
    assert spec.receptive_field is not None
    size = fitting(spec, 2 * spec.margin + spec.receptive_field + 2 * spec.stride)
    pixels = torch.ones(1, spec.bands, size, size, dtype=torch.float64, requires_grad=True)
    output = network(pixels)
    first = (output.shape[-1] // 2) // spec.stride * spec.stride
    reaches, beyond_cell = [], []
    for position in range(first, first + spec.stride):
        (gradient,) = torch.autograd.grad(output[0, 0, position, position], pixels, retain_graph=True)
        touched = gradient[0, 0].nonzero() - spec.margin
        assert torch.equal(touched.amin(0), touched.amin().expand(2))  # rows and columns alike
        reaches.append(int((touched - position).abs().max()))
        beyond_cell += [first - int(touched.min()), int(touched.max()) - (first + spec.stride - 1)]
    assert 2 * max(reaches) + 1 == receptive_field(spec) == spec.receptive_field
    assert spec.padding == "valid" or max(beyond_cell) == spec.aligned_halo


PADDED = [spec for spec in GEOMETRIES if spec.padding == "same"]
UNPADDED = [spec for spec in GEOMETRIES if spec.padding == "valid"]


def crop_pairs(spec: UNetSpec, halo: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Some cores of crops with `halo` at stride-aligned offsets, each beside the same pixels of a whole pass."""
    network = make_network(spec).to(dtype)
    halo = -(-halo // spec.stride) * spec.stride
    core = 2 * spec.stride
    side = 2 * halo + 8 * spec.stride
    pixels = torch.randn(1, spec.bands, side, side, dtype=dtype)
    with torch.inference_mode():
        whole = network(pixels)
        for row, col in ((0, 0), (spec.stride, 3 * spec.stride), (6 * spec.stride, 5 * spec.stride)):
            part = network(pixels[..., row : row + core + 2 * halo, col : col + core + 2 * halo])
            inner = slice(halo, halo + core)
            yield part[..., inner, inner], whole[..., row:, col:][..., inner, inner]


@pytest.mark.parametrize("spec", PADDED, ids=str)
@pytest.mark.parametrize("halo_of", ["receptive_field", "aligned_halo"])
def test_a_crop_with_its_halo_equals_the_whole_pass(spec: UNetSpec, halo_of: str) -> None:
    halo = int(getattr(spec, halo_of)) // (2 if halo_of == "receptive_field" else 1)
    for part, whole in crop_pairs(spec, halo, torch.float64):
        assert torch.allclose(part, whole, rtol=0, atol=1e-12)
    for part, whole in crop_pairs(spec, halo, torch.float32):
        assert torch.allclose(part.sigmoid(), whole.sigmoid(), rtol=0, atol=4e-6)


def test_a_halo_one_cell_short_is_not_exact() -> None:
    spec = make_spec(depth=3)
    assert spec.aligned_halo is not None
    pairs = list(crop_pairs(spec, spec.aligned_halo - spec.stride, torch.float64))
    assert not all(torch.allclose(part, whole, rtol=0, atol=1e-12) for part, whole in pairs)


@pytest.mark.parametrize("spec", UNPADDED, ids=str)
def test_every_pixel_of_an_unpadded_network_equals_the_whole_pass(spec: UNetSpec) -> None:
    network = make_network(spec).double()
    size = fitting(spec, 2 * spec.margin + 1)
    pixels = torch.randn(1, spec.bands, size + 4 * spec.stride, size + 4 * spec.stride, dtype=torch.float64)
    with torch.inference_mode():
        whole = network(pixels)
        for row, col in ((0, 0), (spec.stride, 3 * spec.stride), (4 * spec.stride, 2 * spec.stride)):
            part = network(pixels[..., row : row + size, col : col + size])
            expected = whole[..., row : row + part.shape[-2], col : col + part.shape[-1]]
            assert torch.allclose(part, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_gate_scales_the_skip_and_nothing_else(padding: str) -> None:
    """A gate held open is the network without it; held shut, the network without that skip."""
    plain, gated = make_spec(padding=padding), make_spec(padding=padding, attention=True)
    network, other = make_network(plain), make_network(gated)
    other.load_state_dict(network.state_dict(), strict=False)
    pixels = torch.randn(1, 1, *[fitting(plain, 64)] * 2)
    with torch.inference_mode():
        results = {bias: with_gates(other, bias)(pixels) for bias in (-100.0, 0.0, 100.0)}
        assert torch.allclose(results[100.0], network(pixels), atol=1e-6)
        for block, upsample in zip(network.decoder, network.upsample, strict=True):
            assert isinstance(upsample, nn.ConvTranspose2d)
            block[0].weight[:, : upsample.out_channels] = 0  # type: ignore[index]
        assert torch.allclose(results[-100.0], network(pixels), atol=1e-6)
    assert not torch.allclose(results[0.0], results[100.0])


def with_gates(network: UNet, bias: float) -> UNet:
    """Set the last term before every gate's sigmoid."""
    for gate in network.gates:
        normalisation = gate.get_submodule("psi.1")
        assert isinstance(normalisation, nn.BatchNorm2d)
        nn.init.constant_(normalisation.bias, bias)
    return network


def test_a_shortcut_carries_the_input_past_a_silent_block() -> None:
    network = make_network(make_spec(bands=8, residual=True))
    block = network.encoder[0]
    assert isinstance(block, Residual)
    last = block.body[-1]
    assert isinstance(last, nn.BatchNorm2d)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    features = torch.randn(1, 8, 8, 8)
    assert torch.equal(block(features), features.relu())


def test_squeeze_excitation_follows_its_formula() -> None:
    torch.manual_seed(0)
    layer, features = SqueezeExcitation(32).double(), torch.randn(2, 32, 5, 6, dtype=torch.float64)
    first, second = layer.excite[0], layer.excite[2]
    squeezed = features.flatten(2).mean(2)
    hidden = (squeezed @ first.weight.flatten(1).T + first.bias).relu()  # type: ignore[operator]
    scale = 1 / (1 + torch.exp(-(hidden @ second.weight.flatten(1).T + second.bias)))  # type: ignore[operator]
    assert first.out_channels == 8
    assert torch.allclose(layer(features), features * scale[:, :, None, None])


def test_an_offset_off_the_stride_is_not_exact() -> None:
    network = make_network(make_spec(depth=3)).double()
    pixels = torch.randn(1, 1, 160, 160, dtype=torch.float64)
    with torch.inference_mode():
        whole = network(pixels)[..., 65:73, 65:73]
        part = network(pixels[..., 1:137, 1:137])[..., 64:72, 64:72]
    assert not torch.allclose(part, whole, rtol=0, atol=1e-6)


def test_group_norm_has_no_bounded_receptive_field() -> None:
    spec = make_spec(norm="group")
    assert spec.receptive_field is None
    assert spec.aligned_halo is None


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize(
    "changes",
    [
        {"upsampling": "transposed"},
        {"upsampling": "bilinear"},
        {"upsampling": "convolution", "attention": True},
        {"residual": True},
        {"squeeze_excitation": True},
    ],
    ids=str,
)
def test_activations_neither_vanish_nor_explode_at_the_start(norm: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = UNet(make_spec(norm=norm, depth=4, bands=3, base_channels=16, **changes)).train()
    logits = network(torch.randn(2, 3, 64, 64))
    assert 0.05 < float(logits.detach().std()) < 5


def test_dropout_acts_in_training_only() -> None:
    network = make_network(make_spec(dropout=0.5))
    pixels = torch.randn(1, 1, 16, 16)
    assert torch.equal(network(pixels), network(pixels))
    network.train()
    assert not torch.equal(network(pixels), network(pixels))


@pytest.mark.parametrize("shape", [(15, 16), (16, 18), (0, 16)])
def test_a_size_that_does_not_fit_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ModelError, match=r"0 modulo 4 and above 0, not"):
        make_network(make_spec())(torch.zeros(1, 1, *shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 1}, "depth must be a whole number from 2 to 5, not 1"),
        ({"depth": 6}, "not 6"),
        ({"base_channels": 4}, "base_channels must be a whole number from 8 to 128"),
        ({"bands": 0}, "bands must be"),
        ({"dropout": 0.6}, r"dropout must be from 0 to 0\.5, not 0\.6"),
        ({"norm": "layer"}, "norm must be one of batch, group, none"),
        ({"padding": "reflect"}, "padding must be one of same, valid"),
        ({"upsampling": "nearest"}, "upsampling must be one of transposed, bilinear, convolution, not 'nearest'"),
        ({"residual": "yes"}, "residual must be true or false, not 'yes'"),
    ],
)
def test_a_spec_out_of_bounds_names_the_bound(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_spec(**changes)
