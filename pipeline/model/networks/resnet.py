"""ResNet backbone of DeepLab (He et al. 2016, arXiv:1512.03385): features of two depths, dilated at the end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pipeline.model.networks.layers import Norm, Residual, normalized, same_convolution
from pipeline.model.networks.receptive_field import Span, before_convolution

Backbone = Literal["resnet18", "resnet34", "resnet50"]
OutputStride = Literal[8, 16]

BLOCKS: Mapping[Backbone, tuple[int, int, int, int]] = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
}
"""Residual blocks of each stage (He et al. 2016, table 1)."""
BOTTLENECK = 4
"""Channels that a bottleneck block returns, per channel of its 3x3 convolution."""
LOW_LEVEL_STRIDE = 4
"""Input pixels per pixel of the first stage's features."""


@dataclass(frozen=True, kw_only=True)
class ResNetShape:
    """Settings of a backbone; validated by the network that has it."""

    bands: int
    """Input channels."""
    backbone: Backbone
    """Two 3x3 convolutions per block in 18 and 34 layers, bottlenecks in 50."""
    output_stride: OutputStride
    """Input pixels per pixel of the deepest features."""
    base_channels: int
    """Channels of the stem; 64 in the paper."""
    norm: Norm
    """Normalisation after each convolution."""

    @property
    def has_bottlenecks(self) -> bool:
        """Blocks are 1x1, 3x3, 1x1 instead of 3x3, 3x3."""
        return self.backbone == "resnet50"


@dataclass(frozen=True, kw_only=True)
class Block:
    """One residual block."""

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
    """Dilation of its second one, if it has two: of the features it returns."""


def plan_blocks(shape: ResNetShape) -> Iterator[Block]:
    """The blocks in order.

    A stage that may not stride any more doubles the dilation instead of halving the size, so that the
    features at every second pixel are those of the network that strides (Chen et al. 2017,
    arXiv:1706.05587, section 3.1).
    """
    inner, reached, dilation = shape.base_channels, LOW_LEVEL_STRIDE, 1
    for stage, count in enumerate(BLOCKS[shape.backbone]):
        width = shape.base_channels * 2**stage
        outer = width * (BOTTLENECK if shape.has_bottlenecks else 1)
        halving = stage > 0
        stride = 2 if halving and reached < shape.output_stride else 1
        reached *= stride
        spacing, dilation = dilation, dilation * (2 if halving and stride == 1 else 1)
        for index in range(count):
            yield Block(
                stage=stage, inner=inner, width=width, outer=outer,
                stride=1 if index else stride, spacing=dilation if index else spacing, dilation=dilation,
            )  # fmt: skip
            inner = outer


def before_backbone(shape: ResNetShape, span: Span) -> Span:
    """The input pixels that affect a span of the deepest features; shortcuts read no others."""
    for block in reversed(list(plan_blocks(shape))):
        if not shape.has_bottlenecks:
            span = before_convolution(span, reach=block.dilation)
        span = before_convolution(span, reach=block.spacing, stride=block.stride)
    span = before_convolution(span, reach=1, stride=2)
    return before_convolution(span, reach=3, stride=2)


class ResNet(nn.Module):
    """`(N, bands, H, W)` -> features at a fourth of the size, and at one part in `output_stride`.

    The 3x3 convolution of a bottleneck carries its stride, as in all present implementations; the paper's
    first 1x1 one would drop three of four pixels unseen.
    """

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        blocks = list(plan_blocks(shape))
        self.low_level_channels = next(block.outer for block in blocks if block.stage == 0)
        self.deep_channels = blocks[-1].outer
        self.stem = nn.Sequential(
            *normalized(same_convolution(shape.bands, shape.base_channels, 7, norm=shape.norm, stride=2), shape.norm)
        )
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.stages = nn.ModuleList(
            nn.Sequential(*(_residual(shape, block) for block in blocks if block.stage == stage)) for stage in range(4)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the first stage, and of the last."""
        low_level = self.stages[0](self.pool(self.stem(pixels)))
        deep = low_level
        for stage in self.stages[1:]:
            deep = stage(deep)
        return low_level, deep


def _residual(shape: ResNetShape, block: Block) -> Residual:
    """A block and its shortcut (He et al. 2016, figure 5; a 1x1 convolution where the shape changes, option B)."""
    norm = shape.norm
    *first, last = _convolutions(shape, block)
    layers = [layer for each in first for layer in normalized(each, norm)]
    body = nn.Sequential(*layers, *normalized(last, norm, relu=False))
    if block.inner == block.outer and block.stride == 1:
        return Residual(body, nn.Identity())
    shortcut = same_convolution(block.inner, block.outer, 1, norm=norm, stride=block.stride)
    return Residual(body, nn.Sequential(*normalized(shortcut, norm, relu=False)))


def _convolutions(shape: ResNetShape, block: Block) -> list[nn.Conv2d]:
    norm, stride, spacing = shape.norm, block.stride, block.spacing
    if shape.has_bottlenecks:
        return [
            same_convolution(block.inner, block.width, 1, norm=norm),
            same_convolution(block.width, block.width, 3, norm=norm, stride=stride, dilation=spacing),
            same_convolution(block.width, block.outer, 1, norm=norm),
        ]
    return [
        same_convolution(block.inner, block.width, 3, norm=norm, stride=stride, dilation=spacing),
        same_convolution(block.width, block.outer, 3, norm=norm, dilation=block.dilation),
    ]
