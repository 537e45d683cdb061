"""Augmentation settings: the probability of each random change, and the range from which it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import SettingsError


def check_range(section: object, **bounds: tuple[float, float]) -> None:
    """Raise SettingsError, starting with the key, for a value outside its bounds or NaN."""
    for key, (lower, upper) in bounds.items():
        value = getattr(section, key)
        if not lower <= value <= upper:
            raise SettingsError(f"{key} must be from {lower:g} to {upper:g}, not {value}")


@dataclass(frozen=True, kw_only=True)
class RotationSpec:
    """Rotation by any angle about the middle of the window."""

    probability: float = 0.0
    """Share of windows that are rotated, 0 to 1."""
    degrees: float = 180.0
    """The angle is drawn uniformly from `[-degrees, degrees]`, 0 to 180."""

    def __post_init__(self) -> None:
        check_range(self, probability=(0, 1), degrees=(0, 180))


@dataclass(frozen=True, kw_only=True)
class ScalingSpec:
    """Scaling about the middle of the window."""

    probability: float = 0.0
    """Share of windows that are scaled, 0 to 1."""
    low: float = 0.8
    """Smallest factor, 0.5 to 2; below 1, objects look smaller and the window covers more land."""
    high: float = 1.25
    """Largest factor, 0.5 to 2; halving and doubling are equally likely."""

    def __post_init__(self) -> None:
        check_range(self, probability=(0, 1), low=(0.5, 2), high=(0.5, 2))
        _check_order(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class ElasticSpec:
    """Smooth deformation by random displacements of a coarse grid (Ronneberger et al. 2015, section 3.1)."""

    probability: float = 0.0
    """Share of windows that are deformed, 0 to 1."""
    deviation_px: float = 10.0
    """Standard deviation in pixels of each node's displacement along rows and along columns, 0 to 50."""
    nodes: int = 3
    """Nodes of the grid per side, 2 to 9; the paper's is 3."""

    def __post_init__(self) -> None:
        check_range(self, probability=(0, 1), deviation_px=(0, 50), nodes=(2, 9))


@dataclass(frozen=True, kw_only=True)
class ContrastSpec:
    """Change of contrast, the same for all bands."""

    probability: float = 1.0
    """Share of windows that are changed, 0 to 1."""
    factor: float = 0.2
    """Model input is multiplied by a number from `[1 - factor, 1 + factor]`, 0 to 0.9."""

    def __post_init__(self) -> None:
        check_range(self, probability=(0, 1), factor=(0, 0.9))


@dataclass(frozen=True, kw_only=True)
class BrightnessSpec:
    """Change of brightness, the same for all bands."""

    probability: float = 1.0
    """Share of windows that are changed, 0 to 1."""
    shift: float = 0.2
    """A number from `[-shift, shift]` is added to the model input, 0 to 1 (in standard deviations)."""

    def __post_init__(self) -> None:
        check_range(self, probability=(0, 1), shift=(0, 1))


@dataclass(frozen=True, kw_only=True)
class BandGainSpec:
    """Change of contrast and brightness of each band, as by another sensor, sun or haze."""

    probability: float = 0.0
    """Share of windows that are changed, 0 to 1."""
    factor: float = 0.1
    """Each band of the model input is multiplied by its own number from `[1 - factor, 1 + factor]`, 0 to 0.9."""
    shift: float = 0.1
    """Its own number from `[-shift, shift]` is added to each band, 0 to 1 (in standard deviations)."""

    def __post_init__(self) -> None:
        check_range(self, probability=(0, 1), factor=(0, 0.9), shift=(0, 1))


@dataclass(frozen=True, kw_only=True)
class GammaSpec:
    """Gamma correction: darker or brighter middle tones; each band keeps its minimum and maximum in the window."""

    probability: float = 0.0
    """Share of windows that are changed, 0 to 1."""
    low: float = 0.7
    """Smallest exponent, 0.2 to 5; below 1 is brighter."""
    high: float = 1.5
    """Largest exponent, 0.2 to 5; an exponent and its inverse are equally likely where both are in the range."""

    def __post_init__(self) -> None:
        check_range(self, probability=(0, 1), low=(0.2, 5), high=(0.2, 5))
        _check_order(self.low, self.high)


@dataclass(frozen=True, kw_only=True)
class BlurSpec:
    """Gaussian blur."""

    probability: float = 0.0
    """Share of windows that are blurred, 0 to 1."""
    sigma_px: float = 1.5
    """The standard deviation of the Gaussian is drawn uniformly from 0 to this, 0 to 5 pixels."""

    def __post_init__(self) -> None:
        check_range(self, probability=(0, 1), sigma_px=(0, 5))


@dataclass(frozen=True, kw_only=True)
class NoiseSpec:
    """Gaussian noise, independent for every pixel and band."""

    probability: float = 0.0
    """Share of windows that get noise, 0 to 1."""
    deviation: float = 0.1
    """The noise's deviation is drawn uniformly from 0 to this, 0 to 1 (in standard deviations of the input)."""

    def __post_init__(self) -> None:
        check_range(self, probability=(0, 1), deviation=(0, 1))


@dataclass(frozen=True, kw_only=True)
class CutoutSpec:
    """Squares of the input set to 0, the mean of standardised data (DeVries & Taylor 2017).

    Their pixels still count in the loss: the network must infer them from their surroundings.
    """

    probability: float = 0.0
    """Share of windows with squares set to 0, 0 to 1."""
    share: float = 0.25
    """Side of a square as a share of the window's side, 0 to 1; it may reach past the window, as in the paper."""
    count: int = 1
    """Squares per window, 1 to 16."""

    def __post_init__(self) -> None:
        check_range(self, probability=(0, 1), share=(0, 1), count=(1, 16))


def _check_order(low: float, high: float) -> None:
    if low > high:
        raise SettingsError(f"low must be at most high ({high}), not {low}")


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """Random augmentation of training windows."""

    flips: float = 0.5
    """Share of windows that are flipped left-right, 0 to 1."""
    turns: float = 0.75
    """Share of windows turned by 90, 180 or 270 degrees, 0 to 1; at 0.75 all four orientations are equally common."""
    rotation: RotationSpec = field(default_factory=RotationSpec)
    """Rotation by any angle; off by default."""
    scaling: ScalingSpec = field(default_factory=ScalingSpec)
    """Scaling; off by default."""
    elastic: ElasticSpec = field(default_factory=ElasticSpec)
    """Elastic deformation; off by default."""
    contrast: ContrastSpec = field(default_factory=ContrastSpec)
    """Contrast of all bands; on by default."""
    brightness: BrightnessSpec = field(default_factory=BrightnessSpec)
    """Brightness of all bands; on by default."""
    band_gain: BandGainSpec = field(default_factory=BandGainSpec)
    """Contrast and brightness of each band; off by default."""
    gamma: GammaSpec = field(default_factory=GammaSpec)
    """Gamma correction; off by default."""
    blur: BlurSpec = field(default_factory=BlurSpec)
    """Gaussian blur; off by default."""
    noise: NoiseSpec = field(default_factory=NoiseSpec)
    """Gaussian noise; off by default."""
    cutout: CutoutSpec = field(default_factory=CutoutSpec)
    """Cutout; off by default."""

    def __post_init__(self) -> None:
        check_range(self, flips=(0, 1), turns=(0, 1))
