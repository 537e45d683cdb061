"""U-Net and its variants: nn.Modules and their geometry.

The U-Net of Ronneberger, Fischer & Brox 2015 (arXiv:1505.04597): an encoder halves the pixels and doubles the
channels `depth` times, a decoder undoes it, and each decoder level sees the encoder's features of its size by
concatenation. The network returns logits.

    level 0   block -> ............ skip ............ -> concat -> block -> 1x1 head
                 pool                                upsample
    level 1        block -> ....... skip ....... -> concat -> block
                      pool                      upsample
    level 2             block -> .. and so on .. -> block

Its variants change one part each, and can be combined: gates on the skips (Attention U-Net),
residual blocks (ResUNet), squeeze-excitation at the end of each block, three ways of upsampling.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from pipeline.model.networks.layers import (
    AttentionGate,
    BilinearUpsample,
    ConcatSkip,
    Norm,
    Residual,
    SqueezeExcitation,
    centre,
    initialize,
    normalized,
)
from pipeline.model.networks.receptive_field import (
    Span,
    aligned_halo,
    before_convolution,
    before_interpolation,
    before_pooling,
    widest_reach,
)
from pipeline.model.networks.rules import check_settings, check_size

Padding = Literal["same", "valid"]
Upsampling = Literal["transposed", "bilinear", "convolution"]

DEPTHS = (2, 5)


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
    """Normalisation after each convolution but the head; `group` makes the receptive field unbounded."""
    dropout: float = 0.0
    """Share of activations dropped after the two deepest encoder blocks (as in the paper) while training, 0 to 0.5."""
    padding: Padding = "same"
    """`same` keeps the size (zeros around); `valid` is the paper's: the output loses `margin` pixels on each side."""
    upsampling: Upsampling = "transposed"
    """`transposed`: the paper's 2x2 transposed convolution; `bilinear`: 1x1 convolution, then interpolation;
    `convolution`: nearest neighbour, then 3x3 convolution, normalisation, ReLU."""
    attention: bool = False
    """True: an attention gate on every skip."""
    residual: bool = False
    """True: a shortcut around the two convolutions of each block."""
    squeeze_excitation: bool = False
    """True: channels reweighted at the end of each block, which makes the receptive field unbounded."""
    convolution_bias: bool = False
    """True: convolutions before a normalisation keep their bias, which cancels it; only for equal parameter counts."""

    def __post_init__(self) -> None:
        choices = {"norm": Norm, "padding": Padding, "upsampling": Upsampling}
        check_settings(self, ranges={"depth": DEPTHS}, choices=choices)

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
        level and one at the bottom; upsampling other than the paper's loses one pixel more at each level it
        leads to.
        """
        if self.padding == "same":
            return 0
        trimmed = 0 if self.upsampling == "transposed" else self.stride - 1
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
        if _unbounded(self):
            return None
        if self.padding == "valid":
            return self.margin
        return aligned_halo(lambda position: _reach(self, position), self.stride)


def receptive_field(spec: UNetSpec) -> int | None:
    """Side in pixels of the centred square outside of which no input pixel affects an output pixel.

    `max(abs(input - output)) <= receptive_field // 2` over all pairs that affect each other, in rows
    and columns, and some pair attains it. An output pixel of an unpadded network lies `margin` pixels
    into the input. The reach depends on the position modulo `stride`; this is the largest.

    Returns:
        An odd number (215 for depth 4), or None for group norm and squeeze-excitation, whose statistics
        span the whole input.
    """
    return None if _unbounded(spec) else widest_reach(lambda position: _reach(spec, position), spec.stride)


def _unbounded(spec: UNetSpec) -> bool:
    return spec.norm == "group" or spec.squeeze_excitation


def _reach(spec: UNetSpec, position: int) -> Span:
    """The input pixels of one axis that affect the output pixel at `position`.

    The path through the bottom reads the most, so only it is followed. Shortcuts and attention gates add
    nothing: they are pointwise, on features that the block or the concatenation reads at that pixel anyway.
    """
    span = (position, position)
    for _ in range(spec.depth):
        span = before_convolution(span, reach=2)
        # Nearest neighbour and 3x3 convolution read the same pixels as bilinear interpolation.
        span = (span[0] // 2, span[1] // 2) if spec.upsampling == "transposed" else before_interpolation(span, 2)
    span = before_convolution(span, reach=2)
    for _ in range(spec.depth):
        span = before_convolution(before_pooling(span), reach=2)
    return span


class UNet(nn.Module):
    """`(N, bands, H, W) -> (N, classes, H - 2 * margin, W - 2 * margin)` logits."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        channels = [spec.base_channels * 2**level for level in range(spec.depth + 1)]
        upwards = channels[:0:-1]
        self.encoder = nn.ModuleList(
            _block(spec, inner, outer) for inner, outer in zip([spec.bands, *channels], channels, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.dropout = nn.Dropout(spec.dropout)
        self.upsample = nn.ModuleList(_upsample(spec, c) for c in upwards)
        self.decoder = nn.ModuleList(_block(spec, c, c // 2) for c in upwards)
        self.gates = nn.ModuleList(
            AttentionGate(c // 2, norm=spec.norm, bias=_biased(spec)) for c in upwards if spec.attention
        )
        self.join: nn.Module = ConcatSkip()
        self.head = nn.Conv2d(channels[0], spec.classes, 1)
        initialize(self)

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits of normalised pixels.

        Args:
            pixels: `(N, bands, H, W)`; H and W are `size_offset` modulo `stride` and above `2 * margin`.
        """
        check_size(self.spec, pixels)
        skips: list[Tensor] = []
        features = pixels
        for level, block in enumerate(self.encoder):
            features = block(features if level == 0 else self.pool(features))
            if level >= self.spec.depth - 1:
                features = self.dropout(features)
            skips.append(features)
        skips.pop()
        for step, (upsample, block) in enumerate(zip(self.upsample, self.decoder, strict=True)):
            features = upsample(features)
            skip = skips.pop()
            if self.spec.padding == "valid":
                skip = centre(skip, features.shape[-2:])
            if self.spec.attention:
                skip = self.gates[step](skip, features)
            features = block(self.join(skip, features))
        logits: Tensor = self.head(features)
        return logits


def _upsample(spec: UNetSpec, channels: int) -> nn.Module:
    if spec.upsampling == "bilinear":
        return BilinearUpsample(channels, trim=spec.padding == "valid")
    if spec.upsampling == "convolution":
        convolution = _convolution(spec, channels, channels // 2, 3)
        return nn.Sequential(nn.Upsample(scale_factor=2), *normalized(convolution, spec.norm))
    return nn.ConvTranspose2d(channels, channels // 2, 2, stride=2)


def _block(spec: UNetSpec, inner: int, outer: int) -> nn.Module:
    """Two times 3x3 convolution, normalisation, ReLU; with a shortcut around all but the last ReLU if residual.

    The shortcut is that of He et al. 2016, which batch norm can be folded around, in the places where Zhang
    et al. 2018 (ResUNet, arXiv:1711.10684) have theirs. Squeeze-excitation comes before the sum, as in
    SE-ResNet (Hu et al. 2018, figure 3), or last.
    """
    last = SqueezeExcitation(outer) if spec.squeeze_excitation else None
    body = nn.Sequential(
        *normalized(_convolution(spec, inner, outer, 3), spec.norm),
        *normalized(_convolution(spec, outer, outer, 3), spec.norm, relu=not spec.residual),
        *([last] if last else []),
    )
    if not spec.residual:
        return body
    if inner == outer:
        return Residual(body, nn.Identity())
    return Residual(body, nn.Sequential(*normalized(_convolution(spec, inner, outer, 1), spec.norm, relu=False)))


def _convolution(spec: UNetSpec, inner: int, outer: int, kernel: int) -> nn.Conv2d:
    padding = kernel // 2 if spec.padding == "same" else 0
    return nn.Conv2d(inner, outer, kernel, padding=padding, bias=_biased(spec))


def _biased(spec: UNetSpec) -> bool:
    return spec.norm == "none" or spec.convolution_bias
