"""DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611): atrous convolutions keep resolution, a decoder sharpens edges.

    image - stem - pool - stage 0 - stage 1 - stage 2 - stage 3 - ASPP
              /2     /4      | /4      /8     /16 or /8    same      |
                          48 channels --------- concat <- bilinear --+
                                                  |
                                        3x3, 3x3, 1x1 head, 4x bilinear -> logits

The backbone is a ResNet (He et al. 2016, arXiv:1512.03385) trained from scratch, whose last stages trade
their stride for dilation until the output stride is reached. Atrous spatial pyramid pooling (ASPP) looks at
its output through a 1x1 convolution, three dilated 3x3 ones and, if wished, the mean of the whole tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.networks_geometry import (
    Span,
    aligned_halo,
    before_convolution,
    before_interpolation,
    widest_reach,
)
from pipeline.networks_layers import Norm, Residual, initialize, interpolate, normalized
from pipeline.networks_rules import check_settings, check_size

Backbone = Literal["resnet18", "resnet34", "resnet50"]
OutputStride = Literal[8, 16]

BLOCKS: Mapping[Backbone, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
"""Residual blocks of each stage (He et al. 2016, table 1)."""
WIDEST = 4
"""Channels of a bottleneck block's output per channel inside it; also of ASPP and decoder per base channel."""
RATES = (6, 12, 18)
"""Dilations of ASPP at output stride 16; doubled at 8 (Chen et al. 2017, arXiv:1706.05587, section 4.1)."""
LOW_LEVEL_STRIDE = 4
"""Input pixels per pixel of the features that the decoder adds."""


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
    """True: 3x3 convolutions of ASPP and decoder are split into a depthwise and a 1x1 one."""

    def __post_init__(self) -> None:
        choices = {"backbone": Backbone, "output_stride": OutputStride, "norm": Norm}
        check_settings(self, whole={}, choices=choices)

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
    def _unbounded(self) -> bool:
        return self.norm == "group" or self.image_pooling


@dataclass(frozen=True, kw_only=True)
class _Block:
    """One residual block of the backbone."""

    stage: int
    """0 to 3."""
    inner: int
    """Channels it takes."""
    width: int
    """Channels of its 3x3 convolutions."""
    outer: int
    """Channels it returns."""
    stride: int
    """1 or 2."""
    spacing: int
    """Dilation of its first 3x3 convolution: of the features it takes."""
    dilation: int
    """Dilation of any further one: of the features it returns, at stride 1."""


def _blocks(spec: DeepLabSpec) -> Iterator[_Block]:
    """The backbone's blocks in order.

    A stage that may not stride any more doubles the dilation instead of halving the size, so that the
    features at every second pixel are those of the network that strides.
    """
    inner, reached, dilation = spec.base_channels, LOW_LEVEL_STRIDE, 1
    for stage, count in enumerate(BLOCKS[spec.backbone]):
        width = spec.base_channels * 2**stage
        outer = width * (WIDEST if _is_bottleneck(spec) else 1)
        halving = stage > 0
        stride = 2 if halving and reached < spec.output_stride else 1
        reached *= stride
        spacing, dilation = dilation, dilation * (2 if halving and stride == 1 else 1)
        for index in range(count):
            yield _Block(
                stage=stage, inner=inner, width=width, outer=outer,
                stride=1 if index else stride, spacing=dilation if index else spacing, dilation=dilation,
            )  # fmt: skip
            inner = outer


def _is_bottleneck(spec: DeepLabSpec) -> bool:
    return spec.backbone == "resnet50"


def _rates(spec: DeepLabSpec) -> tuple[int, ...]:
    return tuple(rate * 16 // spec.output_stride for rate in RATES)


def _reach(spec: DeepLabSpec, position: int) -> Span:
    """The input pixels of one axis that affect the output pixel at `position`.

    Followed is the way through the widest branch of ASPP, which reads more than the low-level features do.
    """
    span = before_interpolation((position, position), LOW_LEVEL_STRIDE)
    span = before_convolution(span, reach=2)
    span = before_interpolation(span, spec.output_stride // LOW_LEVEL_STRIDE)
    span = before_convolution(span, reach=max(_rates(spec)))
    for block in reversed(list(_blocks(spec))):
        if not _is_bottleneck(spec):
            span = before_convolution(span, reach=block.dilation)
        span = before_convolution(span, reach=block.spacing, stride=block.stride)
    span = before_convolution(span, reach=1, stride=2)
    return before_convolution(span, reach=3, stride=2)


class DeepLabV3Plus(nn.Module):
    """`(N, bands, H, W) -> (N, classes, H, W)` logits."""

    def __init__(self, spec: DeepLabSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = ResNet(spec)
        self.aspp = PyramidPooling(spec, self.backbone.deep_channels)
        wide, low_level = spec.base_channels * WIDEST, spec.base_channels * 3 // 4
        self.low_level = nn.Sequential(
            *normalized(_convolution(spec, self.backbone.low_level_channels, low_level, 1), spec.norm)
        )
        self.decoder = nn.Sequential(*_mixing(spec, wide + low_level, wide), *_mixing(spec, wide, wide))
        self.head = nn.Conv2d(wide, spec.classes, 1)
        initialize(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of normalised pixels.

        Args:
            pixels: `(N, bands, H, W)`; H and W are multiples of `output_stride`.

        Raises:
            ModelError: when H or W does not fit.
        """
        check_size(self.spec, pixels)
        low_level, deep = self.backbone(pixels)
        deep = interpolate(self.aspp(deep), self.spec.output_stride // LOW_LEVEL_STRIDE)
        features = self.decoder(torch.cat([self.low_level(low_level), deep], dim=1))
        return interpolate(self.head(features), LOW_LEVEL_STRIDE)


class ResNet(nn.Module):
    """Features of two depths; batch norm follows every convolution, and 3x3 ones carry the strides."""

    def __init__(self, spec: DeepLabSpec) -> None:
        super().__init__()
        blocks = list(_blocks(spec))
        self.low_level_channels = next(block.outer for block in reversed(blocks) if block.stage == 0)
        self.deep_channels = blocks[-1].outer
        stem = nn.Conv2d(spec.bands, spec.base_channels, 7, stride=2, padding=3, bias=spec.norm == "none")
        self.stem = nn.Sequential(*normalized(stem, spec.norm))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_residual(spec, block) for block in blocks if block.stage == stage)) for stage in range(4)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """`(N, bands, H, W)` -> features at a fourth of the size, and at one part in `output_stride`."""
        low_level = self.stages[0](self.pool(self.stem(pixels)))
        deep = low_level
        for stage in self.stages[1:]:
            deep = stage(deep)
        return low_level, deep


class PyramidPooling(nn.Module):
    """ASPP: dilated convolutions side by side, joined by a 1x1 convolution; `(N, C, h, w) -> (N, 4 base, h, w)`.

    The mean of the tile goes through a 1x1 convolution with a bias, but without normalisation: over a
    single pixel, batch statistics of a batch of one do not exist.
    """

    def __init__(self, spec: DeepLabSpec, channels: int) -> None:
        super().__init__()
        wide = spec.base_channels * WIDEST
        pointwise = nn.Sequential(*normalized(_convolution(spec, channels, wide, 1), spec.norm))
        dilated = (nn.Sequential(*_mixing(spec, channels, wide, dilation=rate)) for rate in _rates(spec))
        self.branches = nn.ModuleList([pointwise, *dilated])
        self.image = nn.Sequential(nn.Conv2d(channels, wide, 1), nn.ReLU(inplace=True)) if spec.image_pooling else None
        joined = wide * (len(self.branches) + spec.image_pooling)
        project = normalized(_convolution(spec, joined, wide, 1), spec.norm)
        self.project = nn.Sequential(*project, nn.Dropout(spec.dropout))

    def forward(self, features: Tensor) -> Tensor:
        """Features seen at all rates at once."""
        seen = [branch(features) for branch in self.branches]
        if self.image is not None:
            # Added to zeros rather than expanded, so that the memory format stays that of its neighbours.
            seen.append(torch.zeros_like(seen[0]) + self.image(features.mean((2, 3), keepdim=True)))
        joined: Tensor = self.project(torch.cat(seen, dim=1))
        return joined


def _residual(spec: DeepLabSpec, block: _Block) -> Residual:
    """Two 3x3 convolutions, or a bottleneck of 1x1, 3x3, 1x1 (He et al. 2016, figure 5), and its shortcut."""
    if _is_bottleneck(spec):
        convolutions = [
            _convolution(spec, block.inner, block.width, 1),
            _convolution(spec, block.width, block.width, 3, stride=block.stride, dilation=block.spacing),
            _convolution(spec, block.width, block.outer, 1),
        ]
    else:
        convolutions = [
            _convolution(spec, block.inner, block.width, 3, stride=block.stride, dilation=block.spacing),
            _convolution(spec, block.width, block.outer, 3, dilation=block.dilation),
        ]
    *first, last = convolutions
    layers = [layer for each in first for layer in normalized(each, spec.norm)]
    body = nn.Sequential(*layers, *normalized(last, spec.norm, relu=False))
    if block.inner == block.outer and block.stride == 1:
        return Residual(body, nn.Identity())
    shortcut = _convolution(spec, block.inner, block.outer, 1, stride=block.stride)
    return Residual(body, nn.Sequential(*normalized(shortcut, spec.norm, relu=False)))


def _mixing(spec: DeepLabSpec, inner: int, outer: int, *, dilation: int = 1) -> list[nn.Module]:
    """A 3x3 convolution with normalisation and ReLU, or the depthwise separable pair that stands for it."""
    if not spec.separable:
        return normalized(_convolution(spec, inner, outer, 3, dilation=dilation), spec.norm)
    depthwise = _convolution(spec, inner, inner, 3, dilation=dilation, groups=inner)
    return [*normalized(depthwise, spec.norm), *normalized(_convolution(spec, inner, outer, 1), spec.norm)]


def _convolution(
    spec: DeepLabSpec, inner: int, outer: int, kernel: int, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = kernel // 2 * dilation
    bias = spec.norm == "none"
    return nn.Conv2d(inner, outer, kernel, stride, padding=padding, dilation=dilation, groups=groups, bias=bias)
