"""Optimization of a trained network for one device: folded batch norm, fused and compiled layers.

Batch norm is folded into the convolutions before it, on every device. Other steps depend on the device:

    CPU    each convolution, with the ReLU behind it, is one operator of oneDNN, its weights reordered once;
           2x2 max pooling is two maxima of every second row and column
    CUDA   each convolution, with the ReLU behind it, is one operator of cuDNN; long runs
           get a compiled network, whose decoder convolves skip and signal without joining them

A variant is compared with the plain network before it is used, and dropped if it fails or differs.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.model.exported.module import ExportedNetwork
from pipeline.model.networks.deeplab import DeepLabV3Plus
from pipeline.model.networks.fcn import FCN8s
from pipeline.model.networks.layers import Residual
from pipeline.model.networks.unet import UNet
from pipeline.model.predictor.optimized_layers import (
    CudnnConvolution,
    HalvingMaxPool,
    OneDnnConvolution,
    OneDnnTransposedConvolution,
    SkipPair,
    SplitConvolution,
    UpcastBlock,
)
from pipeline.storage import private_folder

log = logging.getLogger(__name__)

ROUNDINGS = 8
"""Tolerance of a fused network in machine epsilons, relative to the largest output."""
COMPILE_S = 20.0
"""Time to compile a network, s: 5 to 20 on one H200."""
COMPILED_GAIN = 0.11
"""Share of the fused network's time that the compiled one saves: 274 against 309 million pixels a second there."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How a network computes."""

    device: torch.device
    """Device of the network."""
    dtype: torch.dtype = torch.float32
    """Number format of weights and features."""
    first_blocks_dtype: torch.dtype | None = None
    """Number format of tiles and of arithmetic in a network's first two blocks; None = `dtype`."""
    layout: torch.memory_format = torch.channels_last
    """Memory order of weights and features."""
    tf32: bool = True
    """True: CUDA may round the factors of float32 products to 10 bits (TF32)."""
    deterministic: bool = False
    """True: CUDA takes only algorithms that give the same bytes every time."""
    benchmark: bool = False
    """True: cuDNN times its algorithms for each new shape, which takes seconds; False: its heuristics choose."""

    @property
    def input(self) -> torch.dtype:
        """Number format of tiles."""
        return self.first_blocks_dtype or self.dtype

    @contextmanager
    def cudnn_flags(self) -> Iterator[None]:
        """Set cuDNN's flags in the body, and restore the previous ones after it.

        The flags are global, so only one thread at a time may be inside; a CPU has none.
        """
        if self.device.type != "cuda":
            yield
            return
        chosen = {"deterministic": self.deterministic, "benchmark": self.benchmark}
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=self.tf32, **chosen):
            yield


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold each batch norm that directly follows a convolution in a Sequential into it, in place.

    Exact in real arithmetic: `gamma (W x + b - mean) / sigma + beta` is one convolution (Jacob et al.
    2018, Quantization and Training of Neural Networks, section 3.2).
    """
    for module in network.modules():
        if isinstance(module, ExportedNetwork):
            module.fold_batch_norm()
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            first, second = module[index], module[index + 1]
            if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
                module[index] = fuse_conv_bn_eval(first, second)
                module[index + 1] = nn.Identity()
    return network


def pin_convolution_kernels(network: nn.Module) -> None:
    """Choose convolution kernels that do not depend on the number of CPU threads, in place.

    torch gives float32 1x1 convolutions to oneDNN only when it has more than one thread (`use_mkldnn` in
    ATen/native/Convolution.cpp), and its other kernel rounds differently. A dilation means nothing to a
    kernel of one tap, but makes the choice the same for every number of threads.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1):
            module.dilation = (2, 2)
        if isinstance(module, ExportedNetwork):
            module.pin_convolution_kernels()


@torch.inference_mode()
def optimize_network(network: nn.Module, arithmetic: Arithmetic, trial: Tensor) -> nn.Module:
    """An optimized copy of a network with the same results.

    Args:
        network: with folded batch norm and pinned kernels, in evaluation mode; it is not changed.
        arithmetic: number format, memory layout and device of the copy.
        trial: `(N, bands, H, W)` tiles on which the optimized and the plain network must agree.
    """
    plain = converted(network, arithmetic)
    fuse = _fusing(arithmetic)
    if fuse is None or isinstance(network, ExportedNetwork):
        return plain

    # The fused network is used only if it agrees with the plain one on the trial tiles.
    tiles = as_input(trial, arithmetic)
    with arithmetic.cudnn_flags():
        expected = plain(tiles).float()
        try:
            fused = _changed(network, arithmetic, partial(_fused, fuse=fuse))
            difference = float((fused(tiles).float() - expected).abs().max())
        except RuntimeError as error:
            log.info("convolutions are not fused: %s", str(error).splitlines()[0])
            return plain
    # The tolerance is a few roundings of the largest output in this number format.
    if difference <= ROUNDINGS * torch.finfo(arithmetic.dtype).eps * max(1.0, float(expected.abs().max())):
        return fused
    log.info("convolutions are not fused: an output changed by %.3g", difference)
    return plain


def converted(network: nn.Module, arithmetic: Arithmetic) -> nn.Module:
    """A copy of a network with weights in another number format and memory order."""
    return _changed(network, arithmetic, lambda module, dtype: module.to(dtype))


def _changed(
    network: nn.Module, arithmetic: Arithmetic, change: Callable[[nn.Module, torch.dtype], nn.Module]
) -> nn.Module:
    """A copy of a network, its first blocks changed for one number format and the rest for another."""
    changed = copy.deepcopy(network)
    found = [] if arithmetic.first_blocks_dtype is None else float32_blocks(changed)
    blocks = [parent.get_submodule(name) for parent, name in found]
    for parent, name in found:
        # Placeholders: `change` must not see the first blocks, which have another number format.
        setattr(parent, name, nn.Identity())
    changed = change(changed, arithmetic.dtype)
    for (parent, name), block in zip(found, blocks, strict=True):
        assert arithmetic.first_blocks_dtype is not None
        setattr(
            parent,
            name,
            UpcastBlock(change(block, arithmetic.first_blocks_dtype), arithmetic.first_blocks_dtype, arithmetic.dtype),
        )
    return changed.to(memory_format=arithmetic.layout)  # type: ignore[call-overload, no-any-return]


def float32_blocks(network: nn.Module) -> list[tuple[nn.Module, str]]:
    """Parents and names of a network's first two blocks.

    Their rounding matters most: they resolve small differences between few bands, and all other layers depend on them.
    """
    if isinstance(network, UNet):
        return [(network.encoder, "0"), (network.encoder, "1")]
    if isinstance(network, FCN8s):
        return [(network.stages, "0"), (network.stages, "1")]
    assert isinstance(network, DeepLabV3Plus), type(network)
    return [(network.backbone, "stem"), (network.backbone.stages, "0")]


def as_input(tiles: Tensor, arithmetic: Arithmetic) -> Tensor:
    """Tiles in a network's device, type and layout; two steps are faster than converting and rearranging at once."""
    return tiles.to(arithmetic.device, arithmetic.input).contiguous(memory_format=arithmetic.layout)


def is_compilation_worthwhile(batches: int, seconds: float) -> bool:
    """Whether `batches` of `seconds` each save more time than compiling the network takes.

    >>> is_compilation_worthwhile(12_000, 0.015), is_compilation_worthwhile(13_000, 0.015)
    (False, True)
    """
    return batches * seconds * COMPILED_GAIN > COMPILE_S


def compile_network(network: nn.Module, arithmetic: Arithmetic) -> Callable[[Tensor], Tensor]:
    """A copy of a network that torch compiles on its first call, for the shape of that call alone.

    torch's cache holds machine code and pickles. By default it lies where any user of the machine may have put some;
    here in a folder of this user, unless TORCHINDUCTOR_CACHE_DIR names another. Triton's cache lies in it.

    The call raises RuntimeError where the network does not compile as a whole, and torch's FailOnRecompileLimitHit
    after eight networks or shapes in one process.
    """
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private_folder("torchinductor"))
    split = split_joins(converted(network, arithmetic))
    compiled: Callable[[Tensor], Tensor] = torch.compile(split, dynamic=False, fullgraph=True)
    return compiled


def split_joins(network: nn.Module) -> nn.Module:
    """Let a U-Net's decoder convolve skip and signal without concatenating them, in place; no-op for other networks."""
    if isinstance(network, UNet):
        network.join = SkipPair()
        for block in network.decoder:
            for layers in (block.body, block.shortcut) if isinstance(block, Residual) else (block,):
                assert isinstance(layers, nn.Sequential)
                assert isinstance(layers[0], nn.Conv2d)
                layers[0] = SplitConvolution(layers[0])
    return network


Fuse = Callable[[nn.Module, bool, torch.dtype], nn.Module | None]
"""A layer, whether a ReLU follows, and a number format -> what replaces the layer and its ReLU; None leaves both."""


def _fusing(arithmetic: Arithmetic) -> Fuse | None:
    """The replacement of layers on a device; None if there is none."""
    if arithmetic.layout != torch.channels_last:
        return None
    if arithmetic.device.type == "cpu":
        known = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        return _for_cpu if known and arithmetic.dtype in (torch.float32, torch.bfloat16) else None
    return _for_cuda if arithmetic.device.type == "cuda" and not arithmetic.deterministic else None


def _for_cpu(layer: nn.Module, rectified: bool, dtype: torch.dtype) -> nn.Module | None:
    if isinstance(layer, nn.MaxPool2d) and _halves(layer):
        return HalvingMaxPool()
    if isinstance(layer, nn.ConvTranspose2d):
        return None if rectified else OneDnnTransposedConvolution(layer, dtype)
    return OneDnnConvolution(layer, dtype, rectified=rectified) if _pads_zeros(layer) else None


def _for_cuda(layer: nn.Module, rectified: bool, dtype: torch.dtype) -> nn.Module | None:
    return CudnnConvolution(layer, dtype) if rectified and _pads_zeros(layer) else None


def _fused(module: nn.Module, dtype: torch.dtype, *, fuse: Fuse) -> nn.Module:
    """The module in a number format with its layers replaced, in place where it is no Sequential."""
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*_fused_layers(module, dtype, fuse))
    replacement = fuse(module, False, dtype)
    if replacement is not None:
        return replacement
    for name, child in [*module.named_children()]:
        setattr(module, name, _fused(child, dtype, fuse=fuse))
    return module.to(dtype)


def _fused_layers(layers: nn.Sequential, dtype: torch.dtype, fuse: Fuse) -> Iterator[nn.Module]:
    """The same layers, each convolution fused with the ReLU behind it."""
    # A stack whose last item is the next layer; layers without effect in inference are dropped.
    waiting = [layer for layer in layers if not isinstance(layer, nn.Identity | nn.Dropout)][::-1]
    while waiting:
        layer = waiting.pop()
        rectified = bool(waiting) and isinstance(waiting[-1], nn.ReLU)
        replacement = fuse(layer, True, dtype) if rectified else None
        if replacement is not None:
            waiting.pop()
        yield replacement or _fused(layer, dtype, fuse=fuse)


def _pads_zeros(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a convolution padded with a fixed number of zeros."""
    return isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _halves(pool: nn.MaxPool2d) -> bool:
    return (pool.kernel_size, pool.stride, pool.padding, pool.dilation) == (2, 2, 0, 1) and not pool.ceil_mode
