"""Inputs of the speed benchmarks: a square scene, and the classic U-Net with weights drawn from a seed.

The network is that of the 2015 paper with padded convolutions and batch norm. Random weights are indecisive and
amplify rounding more than trained ones do, so its last layer is scaled: probabilities stay in the middle third.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.pipeline import soft_blobs, write_scene
from pipeline.model import ModelCard, Normalization, save_checkpoint
from pipeline.model.networks.unet import UNet, UNetSpec

__all__ = ["BANDS", "classic_unet", "model_input", "write_classic_unet", "write_scene"]

BANDS = ("red", "green", "blue", "nir")
MEAN, STD = 5_000.0, 3_000.0
"""Of every band, about; raw units."""
SPREAD = 0.2
"""Standard deviation of the logits; their mean is 0."""


def write_classic_unet(path: Path, base_channels: int) -> ModelCard:
    """Write a checkpoint of the classic U-Net for the scenes here; returns its card."""
    network = classic_unet(base_channels)
    spec = network.spec
    card = ModelCard(
        bands=BANDS,
        classes=("blob",),
        outputs="logits",
        normalization=Normalization.standard([MEAN] * len(BANDS), [STD] * len(BANDS)),
        stride=spec.stride,
        receptive_field=spec.receptive_field,
    )
    save_checkpoint(path, network, card)
    return card


@torch.no_grad()
def classic_unet(base_channels: int) -> UNet:
    """The network in evaluation mode: depth 4, 4 bands, 1 class."""
    torch.manual_seed(0)
    network = UNet(UNetSpec(bands=len(BANDS), classes=1, base_channels=base_channels)).eval()
    logits = network(model_input(2, 256))
    network.head.weight.mul_(SPREAD / logits.std())
    network.head.bias.copy_(-logits.mean() * SPREAD / logits.std())
    return network


def model_input(tiles: int, side: int) -> Tensor:
    """`(tiles, bands, side, side)` normalised float32 pixels of the scene's pattern; `side` at most 1024."""
    pattern = soft_blobs(2048).astype(np.float32)
    corners = [(331 * k % 1024, 577 * k % 1024) for k in range(tiles)]
    pixels = np.stack([pattern[:, top : top + side, left : left + side] for top, left in corners])
    return torch.from_numpy((pixels - MEAN) / STD)
