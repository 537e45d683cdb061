"""Layers shared by several networks, arranged so that inference can fuse them.

Batch norm directly follows its convolution inside a Sequential everywhere, so that
`pipeline.model.predictor.optimize.fold_batch_norm` merges the two.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

import pipeline.model.networks.vector_math  # noqa: F401, before the first use of exp

Norm = Literal["batch", "group", "none"]

MAX_GROUPS = 8
"""Groups of a group norm, or their greatest common divisor with the channels."""
SQUEEZE = 16
"""Squeeze-excitation narrows channels by this factor, the paper's choice ..."""
MIN_SQUEEZED = 8
"""... but not below this: of few channels behind a ReLU, all may be dead from the start."""


def same_convolution(
    inner: int, outer: int, kernel: int, *, norm: Norm, stride: int = 1, dilation: int = 1
) -> nn.Conv2d:
    """A convolution padded so that the size stays, or is divided by the stride; biased only if no norm follows."""
    padding = kernel // 2 * dilation
    return nn.Conv2d(inner, outer, kernel, stride, padding=padding, dilation=dilation, bias=norm == "none")


def normalized(convolution: nn.Conv2d, norm: Norm, *, relu: bool = True) -> list[nn.Module]:
    """A convolution, its normalisation and ReLU, as layers for a Sequential."""
    layers: list[nn.Module] = [convolution]
    channels = convolution.out_channels
    if norm == "batch":
        layers.append(nn.BatchNorm2d(channels))
    elif norm == "group":
        layers.append(nn.GroupNorm(math.gcd(MAX_GROUPS, channels), channels))
    return [*layers, nn.ReLU(inplace=True)] if relu else layers


class ConcatSkip(nn.Module):
    """Skip and signal side by side, `(N, 2 C, H, W)`; a module, so that inference can replace it."""

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """The skip's channels first."""
        return torch.cat([skip, signal], dim=1)


class Residual(nn.Module):
    """`relu(body(x) + shortcut(x))` (He et al. 2016, arXiv:1512.03385, eq. 1 and 2).

    The shortcut is the identity, or a 1x1 convolution where the body changes channels or size. Where the
    body is unpadded, the shortcut is cropped to its centre.
    """

    def __init__(self, body: nn.Sequential, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, features: Tensor) -> Tensor:
        """`(N, C, H, W) -> (N, C', H', W')`, as the body does."""
        change = self.body(features)
        return functional.relu(change + centre(self.shortcut(features), change.shape[-2:]), inplace=True)


class SqueezeExcitation(nn.Module):
    """Scale each channel by `sigmoid(W2 relu(W1 mean(x)))` (Hu et al. 2018, arXiv:1709.01507, eq. 2 to 4).

    The mean runs over the whole tile, so the receptive field is unbounded.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(MIN_SQUEEZED, channels // SQUEEZE)
        self.excite = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1), nn.ReLU(inplace=True), nn.Conv2d(squeezed, channels, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """`(N, C, H, W) -> (N, C, H, W)`."""
        return features * logistic(self.excite(features.mean((2, 3), keepdim=True)))


class AttentionGate(nn.Module):
    """Additive attention (Oktay et al. 2018, arXiv:1804.03999, eq. 1 and 2) on the pixels of a skip.

    `skip * sigmoid(psi(relu(Wx skip + Wg signal)))`, where the coarser level is the gating signal. The paper
    compares both at the coarse size and interpolates the sigmoid. Here, as in the widely used implementation
    whose parameter count we keep (LeeJunHyun/Image_Segmentation), the signal is the upsampled one that is
    concatenated next, and normalisation follows each of the three 1x1 convolutions. The gate is then
    pointwise: it sees no further than the network without it, and fits unpadded networks.
    """

    def __init__(self, channels: int, *, norm: Norm, bias: bool) -> None:
        super().__init__()
        inner = channels // 2
        self.of_skip = nn.Sequential(*normalized(nn.Conv2d(channels, inner, 1, bias=bias), norm, relu=False))
        self.of_signal = nn.Sequential(*normalized(nn.Conv2d(channels, inner, 1, bias=bias), norm, relu=False))
        self.psi = nn.Sequential(*normalized(nn.Conv2d(inner, 1, 1, bias=bias), norm, relu=False))

    def forward(self, skip: Tensor, signal: Tensor) -> Tensor:
        """Two `(N, C, H, W) -> (N, C, H, W)`: the skip, each pixel scaled by 0 to 1."""
        joined = functional.relu(self.of_skip(skip) + self.of_signal(signal), inplace=True)
        return skip * logistic(self.psi(joined))


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
        upsampled = interpolate(self.reduce(features), 2)
        return upsampled[..., 1:-1, 1:-1] if self.trim else upsampled


def logistic(features: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))`; the last bit of torch.sigmoid depends on the CPU on where a vector register ends."""
    return torch.reciprocal(1 + torch.exp(-features))


def centre(features: Tensor, size: tuple[int, ...]) -> Tensor:
    """The centre with the given height and width; the whole of it in padded networks."""
    row, col = (features.shape[-2] - size[0]) // 2, (features.shape[-1] - size[1]) // 2
    return features[..., row : row + size[0], col : col + size[1]]


def initialize(network: nn.Module) -> None:
    """Initialize weights so that the variance of activations stays the same from layer to layer.

    A convolution that a ReLU follows gets twice the variance (He et al. 2015, arXiv:1502.01852, eq. 10),
    any other one unit gain; the latter also suits the two branches of a residual sum, whose variances add
    up before the ReLU halves them. Biases start at 0.
    """
    if all(weights.is_meta for weights in network.parameters()):
        return  # weights are loaded next; drawing none saves torch the import of its compiler
    rectified = {
        id(layer) for each in network.modules() if isinstance(each, nn.Sequential) for layer in _rectified(each)
    }
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu" if id(module) in rectified else "linear")
        elif isinstance(module, nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=module.in_channels**-0.5)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _rectified(layers: nn.Sequential) -> list[nn.Module]:
    """The convolutions whose output goes into a ReLU, through nothing but a normalisation."""
    found: list[nn.Module] = []
    last: nn.Module | None = None
    for layer in layers:
        if isinstance(layer, nn.ReLU) and isinstance(last, nn.Conv2d):
            found.append(last)
        if not isinstance(layer, nn.BatchNorm2d | nn.GroupNorm):
            last = layer
    return found


def interpolate(features: Tensor, factor: int) -> Tensor:
    """Bilinear interpolation by a whole factor; pixel areas coincide, as `align_corners=False` means."""
    return functional.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)


def bilinear_kernel(factor: int) -> Tensor:
    """`(2 factor, 2 factor)` weights with which a transposed convolution of that stride interpolates.

    Long et al. 2015, section 3.3; with padding `factor / 2` it equals `interpolate` but at the border,
    where it fades into the zeros outside.
    """
    ramp = 1 - (torch.arange(2 * factor, dtype=torch.float32) - factor + 0.5).abs() / factor
    return torch.outer(ramp, ramp)
