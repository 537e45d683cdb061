"""Every architecture at a small size, with weights and pixels that exercise each of its layers."""

from typing import Any

import torch
from torch import nn

from pipeline.model.networks.deeplab import DeepLabSpec
from pipeline.model.networks.fcn import FCNSpec
from pipeline.model.networks.registry import Shape, build_network
from pipeline.model.networks.unet import UNetSpec

SMALL: dict[str, Any] = {"bands": 3, "classes": 2, "base_channels": 8}
EVERYTHING: dict[str, Any] = {"attention": True, "residual": True, "squeeze_excitation": True}

SHAPES: dict[str, Shape] = {
    "unet": UNetSpec(**SMALL, depth=2),
    "unet attention": UNetSpec(**SMALL, depth=3, attention=True),
    "unet residual": UNetSpec(**SMALL, depth=2, residual=True, upsampling="bilinear"),
    "unet squeeze": UNetSpec(**SMALL, depth=2, squeeze_excitation=True),
    "unet published": UNetSpec(**SMALL, depth=2, upsampling="convolution", convolution_bias=True),
    "unet everything": UNetSpec(**SMALL, depth=2, upsampling="convolution", **EVERYTHING),
    "unet valid everything": UNetSpec(**SMALL, depth=2, padding="valid", upsampling="convolution", **EVERYTHING),
    "unet group everything": UNetSpec(**SMALL, depth=2, norm="group", **EVERYTHING),
    "unet bare everything": UNetSpec(**SMALL, depth=2, norm="none", dropout=0.5, **EVERYTHING),
    "fcn8s": FCNSpec(**SMALL),
    "fcn8s batch": FCNSpec(**SMALL, norm="batch"),
    "fcn8s group": FCNSpec(**SMALL, norm="group"),
    "deeplab 18": DeepLabSpec(**SMALL, backbone="resnet18", image_pooling=False),
    "deeplab 34 group": DeepLabSpec(**SMALL, backbone="resnet34", norm="group"),
    "deeplab 50": DeepLabSpec(**SMALL, backbone="resnet50"),
    "deeplab 50 fine": DeepLabSpec(**SMALL, backbone="resnet50", output_stride=8, separable=True),
    "deeplab 18 bare": DeepLabSpec(**SMALL, backbone="resnet18", output_stride=8, norm="none"),
}


def make_network(shape: Shape, seed: int = 0) -> nn.Module:
    """A network in evaluation mode whose batch statistics and zero-started weights say something."""
    torch.manual_seed(seed)
    network = build_network(shape).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, nn.Conv2d) and not module.weight.any():
            nn.init.kaiming_normal_(module.weight)
    return network


def pixels_for(shape: Shape, count: int = 1, min_size: int = 64) -> torch.Tensor:
    side = max(min_size, 2 * shape.margin + 1)
    side += (shape.size_offset - side) % shape.stride
    return torch.randn((count, shape.bands, side, side + shape.stride), generator=torch.Generator().manual_seed(1))
