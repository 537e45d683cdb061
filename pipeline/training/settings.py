"""The settings of training, one small section per concern, each checking its own rules."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from pipeline.card import MOST_CLASSES
from pipeline.errors import SettingsError
from pipeline.scene import ReadingSpec
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


@dataclass(frozen=True, kw_only=True)
class SamplesSpec:
    """Which windows of the scenes are seen, and how many."""

    tile_size: int = 256
    """Side in pixels of the network input while training; must fit the network's stride."""
    batch_size: int = 8
    """Windows per optimiser step, at least 1."""
    windows_per_epoch: int = 512
    """Random windows between two validations, at least 1; rounded up to whole batches."""
    labelled_share: float = 0.5
    """Share of windows that must hold some labelled object, 0 to 1; the others lie anywhere."""
    block_size: int = 512
    """Side in pixels of the blocks that are held out when no validation scene is named."""
    validation_share: float = 0.15
    """Share of those blocks that is held out, above 0 and at most 0.5."""
    cache_mb: int = 4096
    """Scenes are kept in memory when all of them fit into this many MiB; otherwise windows are read as needed."""
    threads: int = 2
    """Threads that prepare batches ahead of the network, at least 1."""

    def __post_init__(self) -> None:
        _at_least(1, self, "tile_size", "batch_size", "windows_per_epoch", "block_size", "threads")
        _at_least(0, self, "cache_mb")
        if not 0 <= self.labelled_share <= 1:
            raise SettingsError(f"labelled_share must be from 0 to 1, not {self.labelled_share}")
        if not 0 < self.validation_share <= 0.5:
            raise SettingsError(f"validation_share must be above 0 and at most 0.5, not {self.validation_share}")


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """Random changes of each training window."""

    flips: bool = True
    """Mirror left-right in half of the windows."""
    turns: bool = True
    """Turn by 0, 90, 180 or 270 degrees, each equally often."""
    contrast: float = 0.2
    """Model input is multiplied by a factor drawn from `[1 - contrast, 1 + contrast]`, 0 to 0.9."""
    brightness: float = 0.2
    """A number drawn from `[-brightness, brightness]` is added to the model input, 0 to 1 (in standard deviations)."""

    def __post_init__(self) -> None:
        for key, most in (("contrast", 0.9), ("brightness", 1.0)):
            if not 0 <= getattr(self, key) <= most:
                raise SettingsError(f"{key} must be from 0 to {most}, not {getattr(self, key)}")


@dataclass(frozen=True, kw_only=True)
class LossSpec:
    """`bce_weight * BCE + dice_weight * Dice`."""

    bce_weight: float = 1.0
    """Weight of binary cross-entropy, at least 0."""
    dice_weight: float = 1.0
    """Weight of the soft Dice loss, at least 0; one of the two weights must be above 0."""

    def __post_init__(self) -> None:
        if min(self.bce_weight, self.dice_weight) < 0 or self.bce_weight + self.dice_weight <= 0:
            raise SettingsError(
                f"bce_weight and dice_weight must be >= 0 and not both 0, not {self.bce_weight} and {self.dice_weight}"
            )


@dataclass(frozen=True, kw_only=True)
class LearningSpec:
    """How the weights are learned."""

    epochs: int = 50
    """Most rounds of `windows_per_epoch`, at least 1."""
    learning_rate: float = 1e-3
    """Peak step size of AdamW, above 0 and at most 0.1."""
    weight_decay: float = 1e-4
    """Decoupled weight decay of AdamW, at least 0."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """`cosine` falls from the peak to 0 over all epochs; `constant` stays."""
    warmup_epochs: float = 1.0
    """Epochs over which the step size rises linearly to its peak, at least 0 and below `epochs` (0 for one epoch)."""
    clip_norm: float = 1.0
    """Gradients are scaled down to this norm, above 0."""
    patience: int = 15
    """Epochs without a better validation IoU after which training stops; 0 = never."""
    max_minutes: float | None = None
    """Training ends with the epoch in which this much time has passed; None = no limit (a limit makes runs differ)."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network; `auto` takes bfloat16 where the device computes it natively."""
    device: str = "auto"
    """`auto` (CUDA when there is one), `cpu`, `cuda` or `cuda:N`."""

    def __post_init__(self) -> None:
        _at_least(1, self, "epochs")
        _at_least(0, self, "weight_decay", "warmup_epochs", "patience")
        if not 0 < self.learning_rate <= 0.1:
            raise SettingsError(f"learning_rate must be above 0 and at most 0.1, not {self.learning_rate}")
        if not self.clip_norm > 0:
            raise SettingsError(f"clip_norm must be above 0, not {self.clip_norm}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise SettingsError(f"max_minutes must be above 0, not {self.max_minutes}")


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Everything that can be set about training."""

    classes: tuple[str, ...] = ("object",)
    """Names of the classes, independent of one another; mask value `k` is class `k`, counted from 1."""
    class_field: str | None = None
    """Attribute of vector labels whose value is the class name; None = every polygon is of the only class."""
    bands: tuple[str, ...] = ()
    """Bands to use, by name, in this order; empty = all bands of the first scene but alpha."""
    resolution_m: float | None = None
    """Ground pixel side in true metres that all scenes are brought to; None = as they are, when they agree."""
    validation: tuple[str, ...] = ()
    """Scenes kept for validation, as paths or as stems of training images; none = blocks are held out."""
    seed: int = 0
    """Of every random choice; the same seed gives the same checkpoint on the same CPU."""
    reading: ReadingSpec = field(default_factory=ReadingSpec)
    """How scenes are read."""
    network: NetworkSpec = field(default_factory=NetworkSpec)
    """The network."""
    samples: SamplesSpec = field(default_factory=SamplesSpec)
    """The windows."""
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    """Their random changes."""
    loss: LossSpec = field(default_factory=LossSpec)
    """What is minimised."""
    learning: LearningSpec = field(default_factory=LearningSpec)
    """How it is minimised."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.classes) <= MOST_CLASSES or len(set(self.classes)) != len(self.classes):
            raise SettingsError(f"classes must be 1 to {MOST_CLASSES} different names, not {self.classes}")
        if self.resolution_m is not None and not self.resolution_m > 0:
            raise SettingsError(f"resolution_m must be above 0, not {self.resolution_m}")
        if self.reading.resolution_m != "native":
            raise SettingsError(
                f"reading.resolution_m must stay native in training, not {self.reading.resolution_m}; "
                "set resolution_m, which also becomes part of the model card"
            )
        self._check_tile_size()

    def _check_tile_size(self) -> None:
        network = self.network.unet(bands=1, classes=len(self.classes))
        size = self.samples.tile_size
        if size % network.stride != network.size_offset or size <= 2 * network.margin:
            least = 2 * network.margin + 1
            fitting = max(size, least) + (network.size_offset - max(size, least)) % network.stride
            raise SettingsError(
                f"samples.tile_size must be {network.size_offset} modulo {network.stride} and above "
                f"{2 * network.margin} for this network, not {size}; the next that fits is {fitting}"
            )


def _at_least(bound: float, section: object, *keys: str) -> None:
    for key in keys:
        if not getattr(section, key) >= bound:
            raise SettingsError(f"{key} must be at least {bound}, not {getattr(section, key)}")
