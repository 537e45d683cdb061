"""DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611): atrous convolutions keep resolution, a decoder sharpens edges.

    image - stem - pool - stage 0 - stage 1 - stage 2 - stage 3 - ASPP
              /2     /4      | /4      /8     /16 or /8    same      |
                          48 channels --------- concat <- bilinear --+
                                                  |
                                        3x3, 3x3, 1x1 head, 4x bilinear -> logits

The backbone is a ResNet trained from scratch (the paper's are pretrained), whose last stages trade their
stride for dilation until the output stride is reached. Atrous spatial pyramid pooling (ASPP) looks at its
output through a 1x1 convolution, three dilated 3x3 ones and, if wished, the mean of the whole tile. The
depthwise separable convolutions of the paper's fastest model are an option for ASPP and decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pipeline.model.networks.layers import Norm, initialize, interpolate, normalized, same_convolution
from pipeline.model.networks.receptive_field import (
    Span,
    aligned_halo,
    before_convolution,
    before_interpolation,
    widest_reach,
)
from pipeline.model.networks.resnet import (
    LOW_LEVEL_STRIDE,
    Backbone,
    OutputStride,
    ResNet,
    ResNetShape,
    before_backbone,
)
from pipeline.model.networks.rules import check_settings, check_size

WIDTH = 4
"""Channels of pyramid and decoder, in multiples of `base_channels`: the paper's 256."""
RATES = (6, 12, 18)
"""Dilations of ASPP at output stride 16; doubled at 8 (Chen et al. 2017, arXiv:1706.05587, section 4.1)."""


@dataclass(frozen=True, kw_only=True)
class DeepLabSpec:
    """The shape of a DeepLabV3+; the defaults are the paper's, on the deepest backbone there is here."""

    bands: int
    """Input channels, at least 1."""
    classes: int
    """Output channels, at least 1."""
    backbone: Backbone = "resnet50"
    """The ResNet in it: two 3x3 convolutions per block in 18 and 34 layers, bottlenecks in 50."""
    output_stride: OutputStride = 16
    """Input pixels per pixel of the deepest features: 8 is finer, and costs about three times as much."""
    base_channels: int = 64
    """Channels of the first stage, 8 to 128; ResNet's 64 gives ASPP and decoder the paper's 256 (48 low-level)."""
    norm: Norm = "batch"
    """Normalisation after each convolution but the head; `group` makes the receptive field unbounded."""
    dropout: float = 0.1
    """Share of ASPP's output dropped while training, 0 to 0.5."""
    image_pooling: bool = True
    """True: ASPP also sees the mean of the whole tile, which makes the receptive field unbounded."""
    separable: bool = False
    """True: 3x3 convolutions of ASPP and decoder are split into a depthwise and a 1x1 one (section 3.1)."""

    def __post_init__(self) -> None:
        choices = {"backbone": Backbone, "output_stride": OutputStride, "norm": Norm}
        check_settings(self, ranges={}, choices=choices)

    @property
    def stride(self) -> int:
        """Input sizes must be multiples of this; shifting the input by it shifts the output by it."""
        return int(self.output_stride)

    @property
    def size_offset(self) -> int:
        """0: see `UNetSpec.size_offset`."""
        return 0

    @property
    def margin(self) -> int:
        """0: the output has the input's size."""
        return 0

    @property
    def receptive_field(self) -> int | None:
        """Side of the centred input square that decides an output pixel, exact; None = unbounded."""
        return None if self._unbounded else widest_reach(lambda position: _reach(self, position), self.stride)

    @property
    def aligned_halo(self) -> int | None:
        """Pixels around a core whose edges are multiples of `stride` that decide the core; None = all."""
        return None if self._unbounded else aligned_halo(lambda position: _reach(self, position), self.stride)

    @property
    def resnet(self) -> ResNetShape:
        """The shape of its backbone."""
        return ResNetShape(
            bands=self.bands,
            backbone=self.backbone,
            output_stride=self.output_stride,
            base_channels=self.base_channels,
            norm=self.norm,
        )

    @property
    def _unbounded(self) -> bool:
        return self.norm == "group" or self.image_pooling


def _rates(spec: DeepLabSpec) -> tuple[int, ...]:
    return tuple(rate * 16 // spec.output_stride for rate in RATES)


def _reach(spec: DeepLabSpec, position: int) -> Span:
    """The input pixels of one axis that affect the output pixel at `position`.

    Follows the path through the widest branch of ASPP, which reads more than the low-level features do.
    """
    span = before_interpolation((position, position), LOW_LEVEL_STRIDE)
    span = before_convolution(span, reach=2)
    span = before_interpolation(span, spec.output_stride // LOW_LEVEL_STRIDE)
    span = before_convolution(span, reach=max(_rates(spec)))
    return before_backbone(spec.resnet, span)


class DeepLabV3Plus(nn.Module):
    """`(N, bands, H, W) -> (N, classes, H, W)` logits."""

    def __init__(self, spec: DeepLabSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = ResNet(spec.resnet)
        self.aspp = PyramidPooling(spec, self.backbone.deep_channels)
        wide, low_level = spec.base_channels * WIDTH, spec.base_channels * 3 // 4
        self.low_level = nn.Sequential(*_pointwise(spec, self.backbone.low_level_channels, low_level))
        self.decoder = nn.Sequential(*_mixing(spec, wide + low_level, wide), *_mixing(spec, wide, wide))
        self.head = nn.Conv2d(wide, spec.classes, 1)
        initialize(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of normalised pixels.

        Args:
            pixels: `(N, bands, H, W)`; H and W are multiples of `output_stride`.
        """
        check_size(self.spec, pixels)
        low_level, deep = self.backbone(pixels)
        deep = interpolate(self.aspp(deep), self.spec.output_stride // LOW_LEVEL_STRIDE)
        features = self.decoder(torch.cat([self.low_level(low_level), deep], dim=1))
        return interpolate(self.head(features), LOW_LEVEL_STRIDE)


class PyramidPooling(nn.Module):
    """ASPP: dilated convolutions side by side, joined by a 1x1 convolution; `(N, C, h, w) -> (N, 4 base, h, w)`.

    The mean of the tile goes through a 1x1 convolution with a bias, but without normalisation: over a
    single pixel, batch statistics of a batch of one do not exist.
    """

    def __init__(self, spec: DeepLabSpec, channels: int) -> None:
        super().__init__()
        wide = spec.base_channels * WIDTH
        pointwise = nn.Sequential(*_pointwise(spec, channels, wide))
        dilated = (nn.Sequential(*_mixing(spec, channels, wide, dilation=rate)) for rate in _rates(spec))
        self.branches = nn.ModuleList([pointwise, *dilated])
        self.image = nn.Sequential(nn.Conv2d(channels, wide, 1), nn.ReLU(inplace=True)) if spec.image_pooling else None
        joined = wide * (len(self.branches) + spec.image_pooling)
        self.project = nn.Sequential(*_pointwise(spec, joined, wide), nn.Dropout(spec.dropout))

    def forward(self, features: Tensor) -> Tensor:
        """Features at all dilation rates."""
        branches = [branch(features) for branch in self.branches]
        if self.image is not None:
            # Added to zeros rather than expanded, so that the memory format stays that of its neighbours.
            branches.append(torch.zeros_like(branches[0]) + self.image(features.mean((2, 3), keepdim=True)))
        joined: Tensor = self.project(torch.cat(branches, dim=1))
        return joined


def _mixing(spec: DeepLabSpec, inner: int, outer: int, *, dilation: int = 1) -> list[nn.Module]:
    """A 3x3 convolution with normalisation and ReLU, or the depthwise separable pair that stands for it."""
    if not spec.separable:
        return normalized(same_convolution(inner, outer, 3, norm=spec.norm, dilation=dilation), spec.norm)
    depthwise = nn.Conv2d(inner, inner, 3, padding=dilation, dilation=dilation, groups=inner, bias=spec.norm == "none")
    return [*normalized(depthwise, spec.norm), *_pointwise(spec, inner, outer)]


def _pointwise(spec: DeepLabSpec, inner: int, outer: int) -> list[nn.Module]:
    return normalized(same_convolution(inner, outer, 1, norm=spec.norm), spec.norm)
