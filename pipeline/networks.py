"""The networks there are, under one interface: chosen by name, built from bands and classes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline.unet import Norm, Padding, UNetSpec, Upsampling


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """The U-Net to train; bands and classes come from the data."""

    depth: int = 4
    """Times the pixels are halved, 2 to 5."""
    base_channels: int = 32
    """Channels of the first level, 8 to 128; doubled with every level."""
    norm: Norm = "batch"
    """Normalisation after each 3x3 convolution; `group` rules out `blend: exact`."""
    dropout: float = 0.0
    """Share of the deepest activations dropped while training, 0 to 0.5."""
    padding: Padding = "same"
    """`same`, or `valid` for the 2015 paper's unpadded convolutions."""
    upsampling: Upsampling = "transposed"
    """`transposed` (the paper's) or `bilinear`."""

    def __post_init__(self) -> None:
        self.unet(bands=1, classes=1)

    def unet(self, *, bands: int, classes: int) -> UNetSpec:
        """The full spec of the network for so many bands and classes."""
        return UNetSpec(bands=bands, classes=classes, **asdict(self))
