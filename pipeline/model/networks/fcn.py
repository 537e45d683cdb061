"""FCN-8s (Long, Shelhamer & Darrell 2015, arXiv:1411.4038): a classification network made to score every pixel.

The encoder is VGG-16 (Simonyan & Zisserman 2015, arXiv:1409.1556, configuration D) with its fully connected
layers as convolutions. Scores of three depths are added, each upsampled to the next by a learned
interpolation, and the sum is brought to full size.

    pool1 - pool2 - pool3 ----------- pool4 ----------- pool5 - fc6 - fc7
                      |                 |                              |
                    score    <- 2x -  score    <--------- 2x -------  score
                      8x -> logits

The paper pads its input by 100 pixels, because its 7x7 convolution is not padded, and crops the output.
Here that convolution is padded by 3 as all others are, so for sizes that are multiples of 32 every layer
fits the next, the output has the input's size, and no pixel is computed only to be cropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from pipeline.model.networks.layers import Norm, bilinear_kernel, initialize, normalized, same_convolution
from pipeline.model.networks.receptive_field import (
    Span,
    aligned_halo,
    before_convolution,
    before_interpolation,
    before_pooling,
    widest_reach,
)
from pipeline.model.networks.rules import check_settings, check_size

STAGES = ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8))
"""3x3 convolutions before each pooling, and their channels in multiples of `base_channels`."""
FULLY_CONNECTED = 64
"""Channels of fc6 and fc7 in multiples of `base_channels`."""


@dataclass(frozen=True, kw_only=True)
class FCNSpec:
    """The shape of an FCN-8s; the defaults are the paper's."""

    bands: int
    """Input channels, at least 1."""
    classes: int
    """Output channels, at least 1."""
    base_channels: int = 64
    """Channels of the first stage, 8 to 128; VGG's 64 gives 134 million parameters, most of them in fc6."""
    norm: Norm = "none"
    """Normalisation after each convolution of the encoder; `group` makes the receptive field unbounded."""
    dropout: float = 0.5
    """Share of activations dropped after fc6 and fc7 while training, 0 to 0.5."""

    def __post_init__(self) -> None:
        check_settings(self, ranges={}, choices={"norm": Norm})

    @property
    def stride(self) -> int:
        """Input sizes must be multiples of this; shifting the input by it shifts the output by it."""
        return int(2 ** len(STAGES))

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
        """Side of the centred input square that decides an output pixel, exact; None for group norm."""
        return None if self.norm == "group" else widest_reach(_reach, self.stride)

    @property
    def aligned_halo(self) -> int | None:
        """Pixels around a core whose edges are multiples of `stride` that decide the core; None = all."""
        return None if self.norm == "group" else aligned_halo(_reach, self.stride)


def _reach(position: int) -> Span:
    """The input pixels of one axis that affect the output pixel at `position`.

    Follows the path through fc6; the scores of pool3 and pool4 are read at pixels it reads too.
    """
    span = before_interpolation((position, position), 8)
    for _ in range(2):
        span = before_interpolation(span, 2)
    span = before_convolution(span, reach=3)
    for convolutions, _ in reversed(STAGES):
        span = before_convolution(before_pooling(span), reach=convolutions)
    return span


class FCN8s(nn.Module):
    """`(N, bands, H, W) -> (N, classes, H, W)` logits."""

    def __init__(self, spec: FCNSpec) -> None:
        super().__init__()
        self.spec = spec
        widths = [spec.base_channels * factor for _, factor in STAGES]
        self.stages = nn.ModuleList(
            _stage(spec, inner, outer, convolutions)
            for (convolutions, _), inner, outer in zip(STAGES, [spec.bands, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        wide = spec.base_channels * FULLY_CONNECTED
        self.connected = nn.Sequential(
            *normalized(same_convolution(widths[4], wide, 7, norm=spec.norm), spec.norm),
            nn.Dropout(spec.dropout),
            *normalized(same_convolution(wide, wide, 1, norm=spec.norm), spec.norm),
            nn.Dropout(spec.dropout),
        )
        self.score = nn.Conv2d(wide, spec.classes, 1)
        self.score_pool4 = nn.Conv2d(widths[3], spec.classes, 1)
        self.score_pool3 = nn.Conv2d(widths[2], spec.classes, 1)
        self.to_pool4 = _upsample(spec.classes, 2)
        self.to_pool3 = _upsample(spec.classes, 2)
        self.to_pixels = _upsample(spec.classes, 8)
        self._initialize()

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of normalised pixels.

        Args:
            pixels: `(N, bands, H, W)`; H and W are multiples of 32.
        """
        check_size(self.spec, pixels)
        pooled: list[Tensor] = []
        features = pixels
        for stage in self.stages:
            features = self.pool(stage(features))
            pooled.append(features)
        scores = self.score(self.connected(features))
        scores = self.to_pool4(scores) + self.score_pool4(pooled[3])
        scores = self.to_pool3(scores) + self.score_pool3(pooled[2])
        logits: Tensor = self.to_pixels(scores)
        return logits

    def _initialize(self) -> None:
        """As the paper: upsampling starts as bilinear interpolation, the scores of pool4 and pool3 start at 0.

        The paper goes on to keep the last upsampling fixed; here it learns as the others do.
        """
        initialize(self)
        for score in (self.score_pool4, self.score_pool3):
            nn.init.zeros_(score.weight)
        for upsample in (self.to_pool4, self.to_pool3, self.to_pixels):
            nn.init.zeros_(upsample.weight)
            for channel in range(self.spec.classes):
                upsample.weight.data[channel, channel] = bilinear_kernel(upsample.stride[0])


def _stage(spec: FCNSpec, inner: int, outer: int, convolutions: int) -> nn.Sequential:
    """3x3 convolution, normalisation and ReLU, `convolutions` times."""
    channels = [inner] + [outer] * convolutions
    layers = [normalized(same_convolution(a, b, 3, norm=spec.norm), spec.norm) for a, b in pairwise(channels)]
    return nn.Sequential(*(layer for each in layers for layer in each))


def _upsample(classes: int, factor: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(classes, classes, 2 * factor, stride=factor, padding=factor // 2, bias=False)
