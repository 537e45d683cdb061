"""Models for tests: small checkpoints, predictors whose answer is known beforehand, and a scene that breaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray

from pipeline.model.card import ModelCard, Normalization
from pipeline.model.checkpoint import load_checkpoint, save_checkpoint
from pipeline.model.networks.unet import UNet, UNetSpec, receptive_field

RGB = ("red", "green", "blue")
ROOF = ModelCard(bands=("red",), classes=("roof",))
"""The card of `brightness`."""


def brightness(tiles: NDArray[Any]) -> NDArray[Any]:
    """A pointwise predictor of one band and class: the pixel value over 255."""
    return tiles / 255


def write_checkpoint(
    path: Path,
    *,
    classes: tuple[str, ...] = ("roof",),
    seed: int = 0,
    network: UNetSpec | None = None,
    **facts: Any,
) -> Path:
    """An untrained U-Net on red, green, blue whose logits spread over about -4..4, with its card.

    `facts` replace fields of the card.
    """
    spec = network or UNetSpec(bands=3, classes=len(classes), depth=2, base_channels=8)
    torch.manual_seed(seed)
    unet = UNet(spec).eval()
    side = 64 + (spec.size_offset - 64) % spec.stride
    with torch.inference_mode():
        spread = unet(torch.randn((1, 3, side, side))).std()
    with torch.no_grad():
        unet.head.weight.mul_(2 / spread)
    card = ModelCard(
        bands=RGB,
        classes=classes,
        outputs="logits",
        normalization=Normalization.standard([128.0] * 3, [64.0] * 3),
        stride=spec.stride,
        margin=spec.margin,
        size_offset=spec.size_offset,
        receptive_field=receptive_field(spec),
    )
    save_checkpoint(path, unet, replace(card, **facts))
    return path


def write_gentle_checkpoint(path: Path) -> Path:
    """The same U-Net with logits so small that a lower precision hardly shows."""
    checkpoint = load_checkpoint(write_checkpoint(path))
    with torch.no_grad():
        checkpoint.network.get_submodule("head").weight.mul_(0.02)
    save_checkpoint(path, checkpoint.network, checkpoint.card)
    return path


def write_damaged(path: Path) -> Path:
    """A scene that opens, and whose blocks cannot be decoded from half-way on."""
    pixels = np.random.default_rng(0).integers(0, 255, (3, 128, 64), np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=128, width=64, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000), tiled=True, blockxsize=16, blockysize=16,
        photometric="rgb", compress="deflate",
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    content = path.read_bytes()
    path.write_bytes(content[:-9000] + b"\xff" * 9000)
    return path
