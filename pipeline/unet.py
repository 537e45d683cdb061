"""The U-Net (Ronneberger, Fischer & Brox 2015, arXiv:1505.04597): nn.Modules and their geometry, nothing else.

An encoder halves the pixels and doubles the channels `depth` times, a decoder undoes it, and each decoder
level sees the encoder's features of its size by concatenation. The network returns logits.

    level 0   block -> ............ skip ............ -> concat -> block -> 1x1 head
                 pool                                upsample
    level 1        block -> ....... skip ....... -> concat -> block
                      pool                      upsample
    level 2             block -> .. and so on .. -> block
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.errors import ModelError, SettingsError

Norm = Literal["batch", "group", "none"]
Padding = Literal["same", "valid"]
Upsampling = Literal["transposed", "bilinear"]

DEPTHS = (2, 5)
BASE_CHANNELS = (8, 128)
MOST_DROPOUT = 0.5
MOST_GROUPS = 8
"""Group norm uses this many groups, or the largest common divisor with the channels."""


@dataclass(frozen=True, kw_only=True)
class UNetSpec:
    """The shape of a U-Net; the defaults are the 2015 paper's with batch norm and padded convolutions."""

    bands: int
    """Input channels, at least 1."""
    classes: int
    """Output channels, at least 1."""
    depth: int = 4
    """Times the pixels are halved, 2 to 5."""
    base_channels: int = 64
    """Channels of level 0, 8 to 128; they double with every level."""
    norm: Norm = "batch"
    """Normalisation after each 3x3 convolution, which then has no bias; `group` makes the receptive field unbounded."""
    dropout: float = 0.0
    """Share of activations dropped after the two deepest encoder blocks (as in the paper) while training, 0 to 0.5."""
    padding: Padding = "same"
    """`same` keeps the size (zeros around); `valid` is the paper's: the output loses `margin` pixels on each side."""
    upsampling: Upsampling = "transposed"
    """`transposed`: the paper's 2x2 transposed convolution; `bilinear`: 1x1 convolution, then interpolation."""

    def __post_init__(self) -> None:
        bounds = {"bands": (1, 2**16), "classes": (1, 254), "depth": DEPTHS, "base_channels": BASE_CHANNELS}
        for key, (low, high) in bounds.items():
            value = getattr(self, key)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise SettingsError(f"{key} must be a whole number from {low} to {high}, not {value!r}")
        if not 0 <= self.dropout <= MOST_DROPOUT:
            raise SettingsError(f"dropout must be from 0 to {MOST_DROPOUT}, not {self.dropout!r}")
        for key, allowed in (("norm", Norm), ("padding", Padding), ("upsampling", Upsampling)):
            if getattr(self, key) not in get_args(allowed):
                raise SettingsError(f"{key} must be one of {', '.join(get_args(allowed))}, not {getattr(self, key)!r}")

    @property
    def stride(self) -> int:
        """Input sizes must be `size_offset` modulo this; shifting the input by it shifts the output by it."""
        return int(2**self.depth)

    @property
    def size_offset(self) -> int:
        """`height % stride == width % stride == size_offset`: every pooled size is then even."""
        return 0 if self.padding == "same" else -4 % self.stride

    @property
    def margin(self) -> int:
        """Pixels the output loses on each side: `output size == input size - 2 * margin`; 92 for the paper's network.

        With unpadded convolutions, level `l` loses `2 * 2**l` pixels per block, of which there are two per
        level and one at the bottom; bilinear upsampling loses one pixel more at each level it leads to.
        """
        if self.padding == "same":
            return 0
        trimmed = self.stride - 1 if self.upsampling == "bilinear" else 0
        return 6 * self.stride - 4 + trimmed

    @property
    def receptive_field(self) -> int | None:
        """Side of the centred input square that decides an output pixel; see `receptive_field`."""
        return receptive_field(self)

    @property
    def aligned_halo(self) -> int | None:
        """Pixels around a core whose edges are multiples of `stride` that decide the core; None = all.

        Less than `receptive_field // 2`, because the widest reach belongs to pixels inside a stride cell:
        94 instead of 107 for depth 4. An unpadded network needs its `margin`: every pixel it returns is exact.
        """
        if self.norm == "group":
            return None
        if self.padding == "valid":
            return self.margin
        last = self.stride - 1
        return max(0 - _reach(self, 0)[0], _reach(self, last)[1] - last)


def receptive_field(spec: UNetSpec) -> int | None:
    """Side in pixels of the centred square outside of which no input pixel affects an output pixel.

    `max(abs(input - output)) <= receptive_field // 2` over all pairs that affect each other, rows and
    columns alike, and some pair attains it. An output pixel of an unpadded network lies `margin` pixels
    into the input. The reach depends on the position modulo `stride`; this is the largest.

    Returns:
        An odd number (215 for depth 4), or None for group norm, whose statistics span the whole input.
    """
    if spec.norm == "group":
        return None
    reaches = [(position, *_reach(spec, position)) for position in range(spec.stride)]
    return 2 * max(max(position - low, high - position) for position, low, high in reaches) + 1


def _reach(spec: UNetSpec, position: int) -> tuple[int, int]:
    """First and last input pixel of one axis that affect the output pixel at `position`, both inclusive."""
    low = high = position
    for _ in range(spec.depth):
        low, high = low - 2, high + 2
        low, high = (low // 2, high // 2) if spec.upsampling == "transposed" else ((low - 1) // 2, (high + 1) // 2)
    low, high = low - 2, high + 2
    for _ in range(spec.depth):
        low, high = 2 * low - 2, 2 * high + 1 + 2
    return low, high


class UNet(nn.Module):
    """`(N, bands, H, W) -> (N, classes, H - 2 * margin, W - 2 * margin)` logits."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = [spec.base_channels * 2**level for level in range(spec.depth + 1)]
        self.encoder = nn.ModuleList(
            _block(spec, inner, outer) for inner, outer in zip([spec.bands, *channels], channels, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(spec.dropout)
        self.upsample = nn.ModuleList(_upsample(spec, c) for c in reversed(channels[1:]))
        self.decoder = nn.ModuleList(_block(spec, c, c // 2) for c in reversed(channels[1:]))
        self.head = nn.Conv2d(channels[0], spec.classes, 1)
        self.apply(_initialize)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of normalised pixels.

        Args:
            pixels: `(N, bands, H, W)`; H and W are `size_offset` modulo `stride` and above `2 * margin`.

        Raises:
            ModelError: when H or W does not fit.
        """
        self._check_size(pixels)
        skips: list[Tensor] = []
        features = pixels
        for level, block in enumerate(self.encoder):
            features = block(features if level == 0 else self.pool(features))
            if level >= self.spec.depth - 1:
                features = self.dropout(features)
            skips.append(features)
        skips.pop()
        for upsample, block in zip(self.upsample, self.decoder, strict=True):
            features = upsample(features)
            skip = _centre(skips.pop(), features.shape[-2:])
            features = block(torch.cat([skip, features], dim=1))
        logits: Tensor = self.head(features)
        return logits

    def _check_size(self, pixels: Tensor) -> None:
        spec = self.spec
        for size in pixels.shape[-2:]:
            if size % spec.stride != spec.size_offset or size <= 2 * spec.margin:
                raise ModelError(
                    f"this network takes heights and widths that are {spec.size_offset} modulo {spec.stride} "
                    f"and above {2 * spec.margin}, not {tuple(pixels.shape[-2:])}"
                )


class BilinearUpsample(nn.Module):
    """Twice the size, half the channels: a 1x1 convolution, then bilinear interpolation.

    The two commute (each interpolation weight set sums to 1), so the convolution runs on a quarter of the
    pixels; a 3x3 one would cost 36 times as much, and the block that follows mixes neighbours anyway.
    Unpadded networks drop the outermost pixel, whose value interpolation must invent.
    """

    def __init__(self, channels: int, *, trim: bool) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, channels // 2, 1)
        self.trim = trim

    def forward(self, features: Tensor) -> Tensor:
        """`(N, C, H, W) -> (N, C / 2, 2H, 2W)`, or `(N, C / 2, 2H - 2, 2W - 2)` when trimmed."""
        upsampled = functional.interpolate(self.reduce(features), scale_factor=2, mode="bilinear", align_corners=False)
        return upsampled[..., 1:-1, 1:-1] if self.trim else upsampled


def _upsample(spec: UNetSpec, channels: int) -> nn.Module:
    if spec.upsampling == "bilinear":
        return BilinearUpsample(channels, trim=spec.padding == "valid")
    return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)


def _block(spec: UNetSpec, inner: int, outer: int) -> nn.Sequential:
    """Two times: 3x3 convolution, normalisation, ReLU."""
    return nn.Sequential(*_convolution(spec, inner, outer), *_convolution(spec, outer, outer))


def _convolution(spec: UNetSpec, inner: int, outer: int) -> list[nn.Module]:
    padding = 1 if spec.padding == "same" else 0
    layers: list[nn.Module] = [nn.Conv2d(inner, outer, 3, padding=padding, bias=spec.norm == "none")]
    if spec.norm == "batch":
        layers.append(nn.BatchNorm2d(outer))
    elif spec.norm == "group":
        layers.append(nn.GroupNorm(math.gcd(MOST_GROUPS, outer), outer))
    return [*layers, nn.ReLU(inplace=True)]


def _centre(skip: Tensor, size: tuple[int, ...]) -> Tensor:
    """The centre of `skip` with the given height and width; the whole of it in padded networks."""
    row, col = (skip.shape[-2] - size[0]) // 2, (skip.shape[-1] - size[1]) // 2
    return skip[..., row : row + size[0], col : col + size[1]]


def _initialize(module: nn.Module) -> None:
    """He et al. 2015 for what a ReLU follows, unit gain for what none follows; the paper asks for the former."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if module.kernel_size == (3, 3) else "linear")
    elif isinstance(module, nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=module.in_channels**-0.5)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
