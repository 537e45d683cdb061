"""A trained network -> the form in which it runs fastest on one device, saying the same.

Batch norm is folded into the convolutions before it, on every device. What more is done depends on the device:

    CPU    each convolution, with the ReLU behind it, is one operator of oneDNN, its weights reordered once;
           2x2 max pooling is two maxima of every second row and column
    CUDA   each convolution, with the ReLU behind it, is one operator of cuDNN; a run that is long enough to
           repay it gets a compiled network, whose decoder convolves skip and signal without joining them

A form is tried against the plain network before it is used, and left where it fails or differs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.external_network import ExportedNetwork
from pipeline.networks_layers import Residual
from pipeline.unet import UNet

log = logging.getLogger(__name__)

ROUNDINGS = 8
"""Roundings of a number format, relative to the largest output, by which a fused form may differ from the plain one."""
COMPILE_S = 20.0
"""What compiling a network costs, s: 5 to 20 on one H200."""
COMPILED_GAIN = 0.11
"""Share of the fused network's time that the compiled one saves: 274 against 309 million pixels a second there."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a network computes."""

    device: torch.device
    """Where."""
    dtype: torch.dtype = torch.float32
    """Number format of weights and features."""
    layout: torch.memory_format = torch.channels_last
    """Memory order of weights and features."""
    tf32: bool = True
    """True: CUDA may round the factors of float32 products to 10 bits (TF32)."""
    deterministic: bool = False
    """True: CUDA takes only algorithms that give the same bytes every time."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have cuDNN compute in this way inside the body; the former way comes back after it.

        cuDNN's settings belong to the process, so one thread at a time may be inside; a CPU knows none of them.
        """
        if self.device.type != "cuda":
            yield
            return
        chosen = {"deterministic": self.deterministic, "benchmark": not self.deterministic}
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=self.tf32, **chosen):
            yield


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold each batch norm that directly follows a convolution in a Sequential into it, in place.

    Exact in real arithmetic: `gamma (W x + b - mean) / sigma + beta` is one convolution (Jacob et al.
    2018, Quantization and Training of Neural Networks, section 3.2).
    """
    for module in network.modules():
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            first, second = module[index], module[index + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                module[index] = fuse_conv_bn_eval(first, second)
                module[index + 1] = nn.Identity()
    return network


def settle_convolutions(network: nn.Module) -> None:
    """Make results independent of the number of CPU threads, in place.

    torch gives float32 1x1 convolutions to oneDNN only when it has more than one thread (`use_mkldnn` in
    ATen/native/Convolution.cpp), and its other kernel rounds differently. A dilation means nothing to a
    kernel of one tap, but makes the choice the same for every number of threads.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.dilation = (2, 2)
        if isinstance(module, ExportedNetwork):
            module.settle_convolutions()


@torch.inference_mode()
def prepare(network: nn.Module, arithmetic: Arithmetic, trial: Tensor) -> nn.Module:
    """A copy of a network in the fastest form that says the same.

    Args:
        network: folded and settled, in evaluation mode; stays as it is.
        arithmetic: number format, memory order and device of the copy.
        trial: `(N, bands, H, W)` tiles on which fused and plain form must agree.

    Raises:
        RuntimeError: the network does not run in this number format.
    """
    plain = converted(network, arithmetic)
    fuse = _fusing(arithmetic)
    if fuse is None:
        return plain
    tiles = as_input(trial, arithmetic)
    with arithmetic.applied():
        expected = plain(tiles).float()
        try:
            fused = _replaced(plain, fuse)
            difference = float((fused(tiles).float() - expected).abs().max())
        except RuntimeError as error:
            log.info("convolutions are not fused: %s", str(error).splitlines()[0])
            return converted(network, arithmetic)
    if difference <= ROUNDINGS * torch.finfo(arithmetic.dtype).eps * max(1.0, float(expected.abs().max())):
        return fused
    log.info("convolutions are not fused: an output changed by %.3g", difference)
    return converted(network, arithmetic)


def converted(network: nn.Module, arithmetic: Arithmetic) -> nn.Module:
    """A copy of a network with weights in another number format and memory order."""
    moved = copy.deepcopy(network).to(arithmetic.dtype)
    return moved.to(memory_format=arithmetic.layout)  # type: ignore[call-overload, no-any-return]


def as_input(tiles: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Tiles as a network takes them; in two steps, which is faster than to convert and rearrange at once."""
    return tiles.to(arithmetic.device, arithmetic.dtype).contiguous(memory_format=arithmetic.layout)


def repays_compiling(batches: int, seconds: float) -> bool:
    """Whether so many batches of so many seconds each save more time than compiling the network costs.

    >>> repays_compiling(12_000, 0.015), repays_compiling(13_000, 0.015)
    (False, True)
    """
    return batches * seconds * COMPILED_GAIN > COMPILE_S


def compile_network(network: nn.Module, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
    """A copy of a network that torch compiles on its first call, for the shape of that call alone."""
    compiled: Callable[[Tensor], Tensor] = torch.compile(split_joins(converted(network, arithmetic)), dynamic=False)
    return compiled


class OneDnnConvolution(nn.Module):
    """A convolution, and the ReLU behind it if there is one, as one operator; `(N, C, H, W) -> (N, C', H', W')`.

    Its weights are stored once in the order that oneDNN computes in, which torch otherwise brings them to in every
    call. It always computes with oneDNN, so results do not depend on the number of threads.
    """

    def __init__(self, convolution: nn.Conv2d, *, rectified: bool) -> None:
        super().__init__()
        dilation = [1, 1] if convolution.kernel_size == (1, 1) else [*convolution.dilation]
        self._shape = (_padding(convolution), [*convolution.stride], dilation, convolution.groups)
        self._weight = torch._C._nn.mkldnn_reorder_conv2d_weight(convolution.weight.detach().to_mkldnn(), *self._shape)
        self._bias = None if convolution.bias is None else convolution.bias.detach()
        self._after = "relu" if rectified else "none"

    def forward(self, features: Tensor) -> Tensor:
        """The convolution of the features."""
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            features, self._weight, self._bias, *self._shape, self._after, [], ""
        )
        return result


class OneDnnUpsampling(nn.Module):
    """A transposed convolution that always computes with oneDNN; `(N, C, H, W) -> (N, C', H', W')`.

    torch's own goes elsewhere for one small tile than for several, and rounds differently there.
    """

    def __init__(self, convolution: nn.ConvTranspose2d) -> None:
        super().__init__()
        self._shape = (
            _padding(convolution),
            [*convolution.output_padding],
            [*convolution.stride],
            [*convolution.dilation],
            convolution.groups,
        )
        reorder = torch.ops.mkldnn._reorder_convolution_transpose_weight
        self._weight = reorder(convolution.weight.detach(), *self._shape, [])
        self._bias = None if convolution.bias is None else convolution.bias.detach()

    def forward(self, features: Tensor) -> Tensor:
        """The transposed convolution of the features."""
        result: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
            features, self._weight, self._bias, *self._shape, "none", [], ""
        )
        return result


class CudnnConvolution(nn.Module):
    """A convolution and the ReLU behind it as one operator of cuDNN; `(N, C, H, W) -> (N, C', H', W')`."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._shape = (
            [*convolution.stride],
            _padding(convolution),
            [*convolution.dilation],
            convolution.groups,
        )
        self._weight = convolution.weight.detach()
        self._bias = None if convolution.bias is None else convolution.bias.detach()

    def forward(self, features: Tensor) -> Tensor:
        """The convolution of the features, no value below 0."""
        result: Tensor = torch.cudnn_convolution_relu(features, self._weight, self._bias, *self._shape)
        return result


class HalvingMaximum(nn.Module):
    """Max pooling by two without the indices that torch's keeps; `(N, C, H, W) -> (N, C, H / 2, W / 2)`, even sizes."""

    def forward(self, features: Tensor) -> Tensor:
        """The largest of each two by two pixels."""
        taller = torch.maximum(features[:, :, ::2], features[:, :, 1::2])
        return torch.maximum(taller[..., ::2], taller[..., 1::2])


class SplitConvolution(nn.Module):
    """The convolution of two tensors side by side, without joining them: `W [a, b] = W_a a + W_b b`."""

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


class Unjoined(nn.Module):
    """Hands over skip and signal as they are, for split convolutions."""

    def forward(self, skip: Tensor, signal: Tensor) -> tuple[Tensor, Tensor]:
        """Both."""
        return skip, signal


def split_joins(network: nn.Module) -> nn.Module:
    """Let a U-Net's decoder convolve skip and signal without joining them, in place; other networks stay."""
    if isinstance(network, UNet):
        network.join = Unjoined()
        for block in network.decoder:
            for layers in (block.body, block.shortcut) if isinstance(block, Residual) else (block,):
                assert isinstance(layers, nn.Sequential)
                assert isinstance(layers[0], nn.Conv2d)
                layers[0] = SplitConvolution(layers[0])
    return network


Fuse = Callable[[nn.Module, bool], nn.Module | None]
"""A layer, and whether a ReLU follows -> what replaces the layer and its ReLU, or None to leave both."""


def _fusing(arithmetic: Arithmetic) -> Fuse | None:
    """How layers are replaced on a device; None where they are not."""
    if arithmetic.layout != torch.channels_last:
        return None
    if arithmetic.device.type == "cpu":
        known = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        return _for_cpu if known and arithmetic.dtype in (torch.float32, torch.bfloat16) else None
    return _for_cuda if arithmetic.device.type == "cuda" and not arithmetic.deterministic else None


def _for_cpu(layer: nn.Module, rectified: bool) -> nn.Module | None:
    if isinstance(layer, nn.MaxPool2d) and _halves(layer):
        return HalvingMaximum()
    if isinstance(layer, nn.ConvTranspose2d):
        return None if rectified else OneDnnUpsampling(layer)
    return OneDnnConvolution(layer, rectified=rectified) if _pads_zeros(layer) else None


def _for_cuda(layer: nn.Module, rectified: bool) -> nn.Module | None:
    return CudnnConvolution(layer) if rectified and _pads_zeros(layer) else None


def _replaced(module: nn.Module, fuse: Fuse) -> nn.Module:
    """The module with its layers replaced, in place where it is no Sequential."""
    if isinstance(module, nn.Sequential):
        return _shortened(module, fuse)
    fused = fuse(module, False)
    if fused is not None:
        return fused
    for name, child in [*module.named_children()]:
        setattr(module, name, _replaced(child, fuse))
    return module


def _shortened(layers: nn.Sequential, fuse: Fuse) -> nn.Sequential:
    """The same layers, with each convolution and the ReLU behind it as one."""
    waiting = [layer for layer in layers if not isinstance(layer, nn.Identity | nn.Dropout)][::-1]
    done: list[nn.Module] = []
    while waiting:
        layer = waiting.pop()
        rectified = bool(waiting) and isinstance(waiting[-1], nn.ReLU)
        fused = fuse(layer, True) if rectified else None
        if fused is not None:
            waiting.pop()
        done.append(fused or _replaced(layer, fuse))
    return nn.Sequential(*done)


def _pads_zeros(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution with so many zeros around as numbers say."""
    return isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _halves(pool: nn.MaxPool2d) -> bool:
    return (pool.kernel_size, pool.stride, pool.padding, pool.dilation) == (2, 2, 0, 1) and not pool.ceil_mode


def _padding(convolution: nn.Conv2d | nn.ConvTranspose2d) -> list[int]:
    assert not isinstance(convolution.padding, str)
    return [*convolution.padding]
