"""Every network keeps the one interface: sizes, reach, files, and what inference does to it."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from support.drawing import seen_rows, transparent
from support.networks import SHAPES, make_network, pixels_for
from torch import nn

from pipeline.config import build_settings
from pipeline.errors import ModelError, SettingsError
from pipeline.model.networks.deeplab import DeepLabSpec, DeepLabV3Plus
from pipeline.model.networks.fcn import FCN8s, FCNSpec
from pipeline.model.networks.layers import AttentionGate, bilinear_kernel, interpolate
from pipeline.model.networks.registry import NetworkSpec, Shape, architecture_of, build_network, network_from
from pipeline.model.networks.unet import UNetSpec
from pipeline.model.predictor.optimize import fold_batch_norm, pin_convolution_kernels

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


# One interface


@each_shape
def test_the_output_has_the_input_size_less_the_margin(shape: Shape) -> None:
    pixels = pixels_for(shape, 2)
    with torch.device("meta"):
        network = build_network(shape)
    height, width = (size - 2 * shape.margin for size in pixels.shape[-2:])
    assert network(pixels.to("meta")).shape == (2, 2, height, width)
    assert network.spec == shape


@each_shape
def test_a_size_that_does_not_fit_is_refused(shape: Shape) -> None:
    with torch.device("meta"):
        network = build_network(shape)
    with pytest.raises(ModelError, match=rf"{shape.size_offset} modulo {shape.stride} and above {2 * shape.margin}"):
        network(pixels_for(shape)[..., 1:].to("meta"))


@each_shape
def test_a_network_is_built_again_from_its_architecture(shape: Shape) -> None:
    with torch.device("meta"):
        network = build_network(shape)
        again = network_from(architecture_of(network))
    assert again.spec == shape
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


def test_an_unknown_network_or_an_unfit_fact_is_named() -> None:
    facts = architecture_of(build_network(SHAPES["unet"]))
    with pytest.raises(ModelError, match="'vgg' is not one of: unet, fcn8s, deeplabv3plus"):
        network_from(facts | {"name": "vgg"})
    with pytest.raises(ModelError, match=r"fcn8s: .*'depth'"):
        network_from(facts | {"name": "fcn8s"})
    with pytest.raises(ModelError, match="unet: depth must be"):
        network_from(facts | {"depth": 9})
    with pytest.raises(ModelError, match=r"only a network of pipeline\.model\.networks\.registry .* not Conv2d"):
        architecture_of(nn.Conv2d(1, 1, 1))


@each_shape
def test_every_weight_learns_from_a_batch_of_one(shape: Shape) -> None:
    """A step from the start changes every weight; twice, because scores that start at 0 block the first."""
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(shape, dropout=0.0)).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-3)
    for _ in range(2):
        logits = network(pixels_for(shape))
        assert logits.isfinite().all()
        optimiser.zero_grad()
        (logits.square().mean() + logits.mean()).backward()
        optimiser.step()
    useless = {name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()}
    assert useless == set()


@each_shape
def test_activations_neither_vanish_nor_explode_at_the_start(shape: Shape) -> None:
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(shape, dropout=0.0)).train()
    assert 0.02 < float(network(pixels_for(shape, 2)).detach().std()) < 5


# What inference does to them


@each_shape
def test_an_optimized_network_equals_the_plain_one(shape: Shape) -> None:
    network, pixels = make_network(shape), pixels_for(shape, 2)
    with torch.inference_mode():
        plain = network(pixels)
        prepared = fold_batch_norm(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        pin_convolution_kernels(prepared)
        fused = prepared(pixels.contiguous(memory_format=torch.channels_last))
        lower = prepared.to(torch.bfloat16)(pixels.to(torch.bfloat16, memory_format=torch.channels_last))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.modules())
    assert float((fused - plain).abs().max()) <= 1e-5 * max(1.0, float(plain.abs().max()))
    assert lower.dtype == torch.bfloat16
    assert float((lower - plain).abs().mean()) <= 0.1 * float(plain.abs().mean())


@each_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_tile_does_not_depend_on_its_neighbours_in_the_batch(shape: Shape, dtype: torch.dtype) -> None:
    network = fold_batch_norm(make_network(shape)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pin_convolution_kernels(network)
    tiles = pixels_for(shape, 4).to(dtype, memory_format=torch.channels_last)
    others = torch.cat([tiles[:1], tiles[1:].flip(0) * 3]).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        network.to(dtype)
        assert torch.equal(network(tiles)[0], network(others)[0])


THREADED = [name for name, shape in SHAPES.items() if isinstance(shape, UNetSpec) and shape.norm != "group"]
"""Not group norm, nor maps as small as those of FCN and DeepLab: torch's kernels divide these by threads."""


@pytest.mark.parametrize("name", THREADED)
def test_results_do_not_depend_on_the_number_of_threads(name: str) -> None:
    network = fold_batch_norm(make_network(SHAPES[name]))
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    pin_convolution_kernels(network)
    same_for_all_threads(network, pixels_for(SHAPES[name], 2).contiguous(memory_format=torch.channels_last))


def test_gates_do_not_depend_on_the_number_of_threads() -> None:
    """On so many pixels that torch divides them among three threads, where no vector register ends."""
    torch.manual_seed(0)
    gate = AttentionGate(2, norm="batch", bias=False).eval()
    pin_convolution_kernels(gate)
    skip = torch.randn(1, 2, 250, 267, generator=torch.Generator().manual_seed(0))
    same_for_all_threads(lambda tiles: gate(tiles, -tiles), skip.contiguous(memory_format=torch.channels_last))


def same_for_all_threads(network: Callable[[torch.Tensor], torch.Tensor], tiles: torch.Tensor) -> None:
    usual, results = torch.get_num_threads(), []
    with torch.inference_mode():
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(network(tiles))
    torch.set_num_threads(usual)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", ["unet everything", "deeplab 50", "fcn8s batch"])
def test_features_stay_channels_last_all_the_way(name: str) -> None:
    shape = SHAPES[name]
    network = make_network(shape).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    strayed: list[str] = []

    def record_format(label: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if not all(each.is_contiguous(memory_format=torch.channels_last) for each in inputs):
                strayed.append(label)

        return hook

    for label, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(record_format(label))
    with torch.inference_mode():
        network(pixels_for(shape, 2).contiguous(memory_format=torch.channels_last))
    assert strayed == []


# How far they see

BOUNDED = [
    FCNSpec(bands=1, classes=1, base_channels=8),
    *(
        DeepLabSpec(bands=1, classes=1, base_channels=8, image_pooling=False, **rest)
        for rest in cast(
            "list[dict[str, Any]]",
            [
                {"backbone": "resnet18", "output_stride": 16},
                {"backbone": "resnet18", "output_stride": 8, "separable": True},
                {"backbone": "resnet34", "output_stride": 8},
                {"backbone": "resnet50", "output_stride": 16, "separable": True},
                {"backbone": "resnet50", "output_stride": 8},
            ],
        )
    ),
]


@pytest.mark.parametrize("shape", BOUNDED, ids=str)
def test_the_receptive_field_and_the_halo_are_exact(shape: Shape) -> None:
    """Measured along columns of a scene one cell wide: reaching is separable, and 32 times cheaper so."""
    assert shape.receptive_field is not None
    height = (shape.receptive_field // shape.stride + 4) * shape.stride
    first = height // 2 // shape.stride * shape.stride
    cell = range(first, first + shape.stride)
    network = transparent(build_network(shape))
    spans = seen_rows(network, torch.ones(1, 1, height, shape.stride, dtype=torch.float64), cell)
    reaches = [max(at - low, high - at) for at, (low, high) in zip(cell, spans, strict=True)]
    assert 2 * max(reaches) + 1 == shape.receptive_field
    outside = [reach for low, high in spans for reach in (cell[0] - low, high - cell[-1])]
    assert max(outside) == shape.aligned_halo


@pytest.mark.parametrize("shape", [BOUNDED[0], BOUNDED[1]], ids=str)
def test_a_crop_with_its_halo_equals_the_whole_pass(shape: Shape) -> None:
    assert shape.aligned_halo is not None
    stride = shape.stride
    halo = -(-shape.aligned_halo // stride) * stride
    network = make_network(shape).double()
    pixels = torch.randn(1, 1, 2 * halo + 4 * stride, stride, dtype=torch.float64)
    with torch.inference_mode():
        whole = network(pixels)
        for start in (0, stride, 3 * stride):
            part = network(pixels[:, :, start : start + 2 * halo + stride])
            expected = whole[:, :, start + halo : start + halo + stride]
            assert torch.allclose(part[:, :, halo : halo + stride], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "shape",
    [SHAPES[name] for name in ("unet squeeze", "fcn8s group", "deeplab 34 group", "deeplab 50")],
    ids=str,
)
def test_what_looks_at_the_whole_tile_has_no_bounded_receptive_field(shape: Shape) -> None:
    assert (shape.receptive_field, shape.aligned_halo) == (None, None)
    network, pixels = make_network(shape).double(), pixels_for(shape, min_size=128).double()
    with torch.inference_mode():
        before = network(pixels)[..., 0, 0]
        pixels[..., -1, -1] += 100
        assert not torch.equal(network(pixels)[..., 0, 0], before)


# As published


@pytest.mark.parametrize(
    ("backbone", "parameters"), [("resnet18", 11_176_512), ("resnet34", 21_284_672), ("resnet50", 23_508_032)]
)
def test_backbones_have_the_published_size_without_their_classifier(backbone: Any, parameters: int) -> None:
    with torch.device("meta"):
        network = DeepLabV3Plus(DeepLabSpec(bands=3, classes=1, backbone=backbone))
    assert sum(p.numel() for p in network.backbone.parameters()) == parameters


def test_fcn_has_the_134_million_parameters_of_vgg_and_its_scores() -> None:
    with torch.device("meta"):
        network = FCN8s(FCNSpec(bands=3, classes=21))
    vgg, classifier = 138_357_544, 4096 * 1000 + 1000
    scores = (4096 + 512 + 256 + 3) * 21
    upsampling = (4**2 + 4**2 + 16**2) * 21**2
    assert sum(p.numel() for p in network.parameters()) == vgg - classifier + scores + upsampling == 134_489_759


@pytest.mark.parametrize(("output_stride", "rates"), [(16, {6, 12, 18}), (8, {12, 24, 36})])
def test_the_pyramid_has_the_published_rates_at_the_output_stride(output_stride: Any, rates: set[int]) -> None:
    shape = DeepLabSpec(bands=3, classes=1, base_channels=8, output_stride=output_stride)
    network = make_network(shape)
    assert isinstance(network, DeepLabV3Plus)
    dilations = {m.dilation[0] for m in network.aspp.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
    assert dilations == rates
    assert network.backbone(torch.zeros(1, 3, 64, 64))[1].shape[-1] == 64 // output_stride


def test_output_stride_changes_the_spacing_of_features_and_no_weight() -> None:
    """Atrous convolution computes what the strided network computes, at more positions (Chen et al., section 3.1)."""
    coarse = make_network(DeepLabSpec(bands=1, classes=1, base_channels=8, backbone="resnet18", output_stride=16))
    fine = build_network(DeepLabSpec(bands=1, classes=1, base_channels=8, backbone="resnet18", output_stride=8)).eval()
    assert isinstance(coarse, DeepLabV3Plus)
    assert isinstance(fine, DeepLabV3Plus)
    fine.load_state_dict(coarse.state_dict())
    pixels = torch.randn(1, 1, 128, 128)
    with torch.inference_mode():
        expected, dense = coarse.backbone(pixels)[1], fine.backbone(pixels)[1]
    assert torch.allclose(dense[..., ::2, ::2], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", [2, 8])
def test_learned_upsampling_starts_as_bilinear_interpolation(factor: int) -> None:
    scores = torch.randn(1, 1, 6, 7)
    kernel = bilinear_kernel(factor)[None, None]
    upsampled = nn.functional.conv_transpose2d(scores, kernel, stride=factor, padding=factor // 2)
    inner = slice(factor, -factor)
    assert torch.allclose(upsampled[..., inner, inner], interpolate(scores, factor)[..., inner, inner], atol=1e-6)


def test_fcn_starts_from_the_deepest_scores_alone() -> None:
    torch.manual_seed(0)
    network = FCN8s(FCNSpec(bands=1, classes=2, base_channels=8)).eval()
    pixels = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        deepest = network.score(network.connected(deep_features(network, pixels)))
        expected = network.to_pixels(network.to_pool3(network.to_pool4(deepest)))
        assert torch.allclose(network(pixels), expected, atol=1e-6)
        assert expected.any()


def deep_features(network: FCN8s, pixels: torch.Tensor) -> torch.Tensor:
    for stage in network.stages:
        pixels = network.pool(stage(pixels))
    return pixels


# Settings


def test_settings_give_each_network_its_shape() -> None:
    unet = NetworkSpec(depth=3, attention=True, dropout=0.3).shape(bands=5, classes=4)
    assert unet == UNetSpec(bands=5, classes=4, depth=3, base_channels=32, attention=True, dropout=0.3)
    fcn = NetworkSpec(name="fcn8s", base_channels=16).shape(bands=1, classes=2)
    assert fcn == FCNSpec(bands=1, classes=2, base_channels=16, norm="batch", dropout=0.0)
    deeplab = NetworkSpec(name="deeplabv3plus", backbone="resnet18", output_stride=8).shape(bands=4, classes=1)
    assert deeplab == DeepLabSpec(
        bands=4, classes=1, backbone="resnet18", output_stride=8, base_channels=32, dropout=0.0
    )


def test_every_key_of_a_shape_can_be_set() -> None:
    settable = {each.name for each in dataclasses.fields(NetworkSpec)} - {"name"}
    shapes = {each.name for kind in (UNetSpec, FCNSpec, DeepLabSpec) for each in dataclasses.fields(kind)}
    assert settable == shapes - {"bands", "classes"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "segnet"}, r"network\.name = 'segnet': Input should be 'unet', 'fcn8s' or 'deeplabv3plus'"),
        ({"depth": 7}, r"network\.depth must be a whole number from 2 to 5, not 7"),
        ({"name": "fcn8s", "depth": 3}, r"network\.depth = 3 has no meaning for fcn8s: it belongs to unet; leave"),
        ({"output_stride": 8}, r"network\.output_stride = 8 has no meaning for unet: it belongs to deeplabv3plus"),
        ({"name": "deeplabv3plus", "output_stride": 4}, r"network\.output_stride = 4: Input should be 8 or 16"),
        ({"name": "deeplabv3plus", "attention": True}, r"network\.attention = True has no meaning for deeplabv3plus"),
        ({"dropout": 0.51}, r"network\.dropout must be from 0 to 0\.5, not 0\.51"),
        ({"base_channels": 4}, r"network\.base_channels must be a whole number from 8 to 128, not 4"),
    ],
)
def test_an_unfit_setting_is_refused_with_its_key(values: dict[str, Any], message: str) -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Whole:
        network: NetworkSpec

    Whole.__annotations__["network"] = NetworkSpec
    with pytest.raises(SettingsError, match=message):
        build_settings(Whole, {"network": values}, place="here")


WRONG: Any = "wrong"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FCNSpec(bands=0, classes=1), "bands must be a whole number from 1"),
        (lambda: FCNSpec(bands=1, classes=1, norm=WRONG), "norm must be one of batch, group, none, not 'wrong'"),
        (lambda: DeepLabSpec(bands=1, classes=255), "classes must be a whole number from 1 to 254"),
        (lambda: DeepLabSpec(bands=1, classes=1, backbone=WRONG), "backbone must be one of resnet18, resnet34"),
        (lambda: DeepLabSpec(bands=1, classes=1, output_stride=WRONG), "output_stride must be one of 8, 16, not"),
        (lambda: DeepLabSpec(bands=1, classes=1, separable=WRONG), "separable must be true or false, not 'wrong'"),
        (lambda: UNetSpec(bands=1, classes=1, attention=WRONG), "attention must be true or false, not 'wrong'"),
        (lambda: NetworkSpec(name=WRONG), "name must be one of unet, fcn8s, deeplabv3plus, not 'wrong'"),
    ],
)
def test_a_shape_out_of_bounds_names_the_bound(make: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()
