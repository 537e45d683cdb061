"""Layers of optimized networks: replacements of convolutions, poolings, concatenations and blocks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class UpcastBlock(nn.Module):
    """A block that computes in a wider number format than its neighbours; `(N, C, H, W) -> (N, C', H', W')`."""

    def __init__(self, block: nn.Module, inside: torch.dtype, outside: torch.dtype) -> None:
        super().__init__()
        self.block, self.inside, self.outside = block, inside, outside

    def forward(self, features: Tensor) -> Tensor:
        """The block's result, rounded once."""
        result: Tensor = self.block(features.to(self.inside))
        return result.to(self.outside)


class OneDnnConvolution(nn.Module):
    """A convolution, and the ReLU behind it if there is one, as one operator; `(N, C, H, W) -> (N, C', H', W')`.

    Its weights are stored in the layout of oneDNN, to which torch otherwise reorders them in every call. It always
    computes with oneDNN, so results do not depend on the number of threads. The bias stays float32 in every number
    format: it is added before the sum is rounded.
    """

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype, *, rectified: bool) -> None:
        super().__init__()
        dilation = [1, 1] if convolution.kernel_size == (1, 1) else [*convolution.dilation]
        self._shape = (_padding(convolution), [*convolution.stride], dilation, convolution.groups)
        weight = convolution.weight.detach().to(dtype).to_mkldnn()
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(weight, *self._shape)
        self._bias = None if convolution.bias is None else convolution.bias.detach().float()
        self._after = "relu" if rectified else "none"

    def forward(self, features: Tensor) -> Tensor:
        """The convolution of the features."""
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            features, self._weight, self._bias, *self._shape, self._after, [], ""
        )
        return result


class OneDnnTransposedConvolution(nn.Module):
    """A transposed convolution that always computes with oneDNN; `(N, C, H, W) -> (N, C', H', W')`.

    torch takes another kernel for one small tile than for several, which rounds differently.
    """

    def __init__(self, convolution: nn.ConvTranspose2d, dtype: torch.dtype) -> None:
        super().__init__()
        self._shape = (
            _padding(convolution),
            [*convolution.output_padding],
            [*convolution.stride],
            [*convolution.dilation],
            convolution.groups,
        )
        reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
        self._weight = reorder(convolution.weight.detach().to(dtype), *self._shape, [])
        self._bias = None if convolution.bias is None else convolution.bias.detach().float()

    def forward(self, features: Tensor) -> Tensor:
        """The transposed convolution of the features."""
        result: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            features, self._weight, self._bias, *self._shape, "none", [], ""
        )
        return result


class CudnnConvolution(nn.Module):
    """A convolution and the ReLU behind it as one operator of cuDNN; `(N, C, H, W) -> (N, C', H', W')`."""

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        dilation = [*convolution.dilation]
        self._shape = ([*convolution.stride], _padding(convolution), dilation, convolution.groups)
        weight = convolution.weight.detach().to(dtype)
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._bias = None if convolution.bias is None else convolution.bias.detach().to(dtype)

    def forward(self, features: Tensor) -> Tensor:
        """The convolution of the features, no value below 0."""
        result: Tensor = torch.cudnn_convolution_relu(features, self._weight, self._bias, *self._shape)
        return result


class HalvingMaxPool(nn.Module):
    """Max pooling by two without the indices that torch's keeps; `(N, C, H, W) -> (N, C, H / 2, W / 2)`, even sizes."""

    def forward(self, features: Tensor) -> Tensor:
        """The largest of each two by two pixels."""
        taller = torch.maximum(features[:, :, ::2], features[:, :, 1::2])
        return torch.maximum(taller[..., ::2], taller[..., 1::2])


class SplitConvolution(nn.Module):
    """The convolution of two concatenated tensors, without concatenating them: `W [a, b] = W_a a + W_b b`."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        half = convolution.in_channels // 2
        self.of_skip, self.of_signal = copy.deepcopy(convolution), copy.deepcopy(convolution)
        for part, weight in (
            (self.of_skip, convolution.weight[:, :half]),
            (self.of_signal, convolution.weight[:, half:]),
        ):
            part.in_channels, part.weight = half, nn.Parameter(weight.detach().clone())
        self.of_skip.bias = None

    def forward(self, both: tuple[Tensor, Tensor]) -> Tensor:
        """Skip and signal, each `(N, C, H, W)` -> `(N, C', H', W')`."""
        skip, signal = both
        joined: Tensor = self.of_skip(skip) + self.of_signal(signal)
        return joined


class SkipPair(nn.Module):
    """Passes skip and signal on as a pair, for split convolutions."""

    def forward(self, skip: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        return skip, signal


def _padding(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[int]:
    assert not isinstance(convolution.padding, str)
    return [*convolution.padding]
