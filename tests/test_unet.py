"""The U-Net has the published sizes, and its geometry is what its spec says, to the pixel."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import ModelError, SettingsError
from pipeline.unet import UNet, UNetSpec, receptive_field


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


def fitting(spec: UNetSpec, least: int) -> int:
    """The smallest input size that the network takes and that is not below `least`."""
    return least + (spec.size_offset - least) % spec.stride


def count(spec: UNetSpec) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in UNet(spec).parameters())


GEOMETRIES = [
    make_spec(depth=depth, padding=padding, upsampling=upsampling, norm=norm)
    for depth, padding, upsampling, norm in [
        (2, "same", "transposed", "batch"),
        (2, "same", "bilinear", "none"),
        (3, "same", "transposed", "none"),
        (3, "same", "bilinear", "batch"),
        (2, "valid", "transposed", "batch"),
        (2, "valid", "bilinear", "none"),
        (3, "valid", "transposed", "none"),
    ]
]


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
    "spec", [make_spec(depth=d, padding=p, upsampling=u) for d, p, u in itertools.product(
        (2, 3, 4, 5), ("same", "valid"), ("transposed", "bilinear"))],
    ids=lambda spec: f"{spec.depth}-{spec.padding}-{spec.upsampling}",
)  # fmt: skip
def test_output_size_is_input_size_less_two_margins(spec: UNetSpec) -> None:
    smallest = fitting(spec, 2 * spec.margin + 1)
    with torch.device("meta"):
        network = UNet(spec)
        for size in (smallest, smallest + spec.stride):
            output = network(torch.zeros(2, 1, size, smallest))
            assert output.shape == (2, 1, size - 2 * spec.margin, smallest - 2 * spec.margin)


@pytest.mark.parametrize("spec", GEOMETRIES, ids=str)
def test_the_receptive_field_is_exact(spec: UNetSpec) -> None:
    """`d output / d input` is non-zero at distance `receptive_field // 2`, for some position, and nowhere beyond."""
    network = UNet(spec).double().eval()
    for module in network.modules():  # positive weights cannot cancel, and averages let every pixel through
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.constant_(module.weight, 0.1)
    setattr(network, "pool", nn.AvgPool2d(2))  # noqa: B010
    size = fitting(spec, 2 * spec.margin + 16 * spec.stride)
    pixels = torch.ones(1, 1, size, size, dtype=torch.float64, requires_grad=True)
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


def crop_and_whole(spec: UNetSpec, halo: int, dtype: torch.dtype) -> Iterator[tuple[Tensor, Tensor]]:
    """Some cores of crops with `halo` at stride-aligned offsets, each beside the same pixels of a whole pass."""
    network = make_network(spec).to(dtype)
    halo = -(-halo // spec.stride) * spec.stride
    core = 2 * spec.stride
    pixels = torch.randn(1, 1, 2 * halo + 8 * spec.stride, 2 * halo + 8 * spec.stride, dtype=dtype)
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
    for part, whole in crop_and_whole(spec, halo, torch.float64):
        assert torch.allclose(part, whole, rtol=0, atol=1e-12)
    for part, whole in crop_and_whole(spec, halo, torch.float32):
        assert torch.allclose(part.sigmoid(), whole.sigmoid(), rtol=0, atol=1e-6)


def test_a_halo_one_cell_short_is_not_exact() -> None:
    spec = make_spec(depth=3)
    assert spec.aligned_halo is not None
    pairs = list(crop_and_whole(spec, spec.aligned_halo - spec.stride, torch.float64))
    assert not all(torch.allclose(part, whole, rtol=0, atol=1e-12) for part, whole in pairs)


@pytest.mark.parametrize("spec", UNPADDED, ids=str)
def test_every_pixel_of_an_unpadded_network_equals_the_whole_pass(spec: UNetSpec) -> None:
    network = make_network(spec).double()
    size = fitting(spec, 2 * spec.margin + 1)
    pixels = torch.randn(1, 1, size + 4 * spec.stride, size + 4 * spec.stride, dtype=torch.float64)
    with torch.inference_mode():
        whole = network(pixels)
        for row, col in ((0, 0), (spec.stride, 3 * spec.stride), (4 * spec.stride, 2 * spec.stride)):
            part = network(pixels[..., row : row + size, col : col + size])
            expected = whole[..., row : row + part.shape[-2], col : col + part.shape[-1]]
            assert torch.allclose(part, expected, rtol=0, atol=1e-12)


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
@pytest.mark.parametrize("upsampling", ["transposed", "bilinear"])
def test_activations_neither_vanish_nor_explode_at_the_start(norm: str, upsampling: str) -> None:
    torch.manual_seed(0)
    network = UNet(make_spec(norm=norm, upsampling=upsampling, depth=4, bands=3, base_channels=16)).train()
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
    ("changes", "said"),
    [
        ({"depth": 1}, "depth must be a whole number from 2 to 5, not 1"),
        ({"depth": 6}, "not 6"),
        ({"base_channels": 4}, "base_channels must be a whole number from 8 to 128"),
        ({"bands": 0}, "bands must be"),
        ({"dropout": 0.6}, r"dropout must be from 0 to 0\.5, not 0\.6"),
        ({"norm": "layer"}, "norm must be one of batch, group, none"),
        ({"padding": "reflect"}, "padding must be one of same, valid"),
        ({"upsampling": "nearest"}, "upsampling must be one of"),
    ],
)
def test_a_spec_out_of_bounds_says_which_bound(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        make_spec(**changes)
