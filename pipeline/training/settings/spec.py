"""Training settings (`TrainSpec`): all sections in one dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import SettingsError
from pipeline.model import MAX_CLASSES, Activation, NetworkSpec
from pipeline.scene import ReadingSpec
from pipeline.text import MAX_NAME_LENGTH, name_fault, quoted
from pipeline.training.labels.class_map import NONE, UNLABELLED_WORD
from pipeline.training.settings.artifacts import ArtifactsSpec
from pipeline.training.settings.augment import AugmentSpec
from pipeline.training.settings.data import NormalizationSpec, SamplesSpec, SplitSpec
from pipeline.training.settings.learning import OptimizationSpec
from pipeline.training.settings.losses import LossSpec

BACKGROUND = "background"
"""Name of the output plane of pixels that are of no class, where classes are exclusive."""


@dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """All settings of a training run."""

    classes: tuple[str, ...] = ("object",)
    """Names of the classes; without a `class_map`, mask value `k` is class `k`, counted from 1."""
    activation: Activation = "sigmoid"
    """`sigmoid`: classes are independent and may overlap; `softmax`: one class or the background wins."""
    class_field: str | None = None
    """Attribute of vector labels that holds the class; None = every polygon is of the only class."""
    class_map: dict[str, str] = field(default_factory=dict)
    """Label value of attribute or mask, as text, -> class name, `none` or `unlabelled`; empty: see `classes`."""
    labelled_area: str | None = None
    """Polygon file of the land that was labelled; pixels outside do not count. None = everywhere."""
    bands: tuple[str, ...] = ()
    """Bands to use, by name, in this order; empty = all bands of the first scene but alpha."""
    resolution_m: float | None = None
    """Ground pixel side in true metres to which all scenes are resampled; None = no resampling, if they agree."""
    seed: int = 0
    """Seed of every random choice; the same seed gives the same checkpoint on the same CPU."""
    reading: ReadingSpec = field(default_factory=ReadingSpec)
    """How scenes are read."""
    split: SplitSpec = field(default_factory=SplitSpec)
    """Held-out data."""
    network: NetworkSpec = field(default_factory=NetworkSpec)
    """The network."""
    samples: SamplesSpec = field(default_factory=SamplesSpec)
    """Training windows."""
    normalization: NormalizationSpec = field(default_factory=NormalizationSpec)
    """Normalization of the model input."""
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    """Random augmentation."""
    loss: LossSpec = field(default_factory=LossSpec)
    """The loss."""
    learning: OptimizationSpec = field(default_factory=OptimizationSpec)
    """Optimizer, schedule and stopping rules."""
    artifacts: ArtifactsSpec = field(default_factory=ArtifactsSpec, metadata={"alias": "leaves"})
    """Artifacts written next to the checkpoint."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the network's output planes: the classes, preceded by the background where they are exclusive."""
        return (BACKGROUND, *self.classes) if self.activation == "softmax" else self.classes

    def __post_init__(self) -> None:
        self._check_classes()
        if self.seed < 0:
            raise SettingsError(f"seed must be at least 0, not {self.seed}")
        if self.resolution_m is not None and not self.resolution_m > 0:
            raise SettingsError(f"resolution_m must be above 0, not {self.resolution_m}")
        if self.reading.resolution_m != "native":
            raise SettingsError(
                f"reading.resolution_m must stay native in training, not {self.reading.resolution_m}; "
                "set resolution_m, which also becomes part of the model card"
            )
        self._check_tile_size()

    def _check_classes(self) -> None:
        if not 1 <= len(self.classes) <= MAX_CLASSES or len(set(self.classes)) != len(self.classes):
            raise SettingsError(f"classes must be 1 to {MAX_CLASSES} different names, not {quoted(self.classes)}")
        if fault := next(filter(None, map(name_fault, (*self.classes, *self.bands))), None):
            raise SettingsError(
                f"classes and bands must be names of at most {MAX_NAME_LENGTH} printable characters: {fault}"
            )
        if len(set(self.bands)) != len(self.bands):
            raise SettingsError(f"bands must be different names, not {quoted(self.bands)}")
        taken = sorted({NONE, UNLABELLED_WORD, BACKGROUND} & set(self.classes))
        if taken:
            raise SettingsError(f"classes must not be named {', '.join(taken)}: these words are reserved")
        unknown = sorted(set(self.class_map.values()) - {*self.classes, NONE, UNLABELLED_WORD})
        if unknown:
            raise SettingsError(
                f"class_map leads to {', '.join(unknown)}, which is not among classes {list(self.classes)}, "
                f"{NONE} and {UNLABELLED_WORD}"
            )
        weights = self.loss.class_weights
        if not isinstance(weights, str) and len(weights) != len(self.classes):
            raise SettingsError(
                f"loss.class_weights must be one number for each of {', '.join(self.classes)}, not {len(weights)}"
            )

    def _check_tile_size(self) -> None:
        network = self.network.shape(bands=1, classes=len(self.outputs))
        size = self.samples.tile_size
        if size % network.stride != network.size_offset or size <= 2 * network.margin:
            smallest = 2 * network.margin + 1
            fitting = max(size, smallest) + (network.size_offset - max(size, smallest)) % network.stride
            raise SettingsError(
                f"samples.tile_size must be {network.size_offset} modulo {network.stride} and above "
                f"{2 * network.margin} for this network, not {size}; the next that fits is {fitting}"
            )
