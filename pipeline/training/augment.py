"""Random changes of a sample, as pure functions of the sample and a generator."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator

from pipeline.errors import SettingsError
from pipeline.normalize import InputTransform
from pipeline.training.samples import Sample


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


def flip_and_turn(sample: Sample, rng: Generator, spec: AugmentSpec) -> Sample:
    """One of the eight symmetries of the square, equally likely when flips and turns are on; views, not copies."""
    turns = int(rng.integers(4)) if spec.turns else 0
    step = -1 if spec.flips and rng.random() < 0.5 else 1
    if turns == 0 and step == 1:
        return sample
    return Sample(
        pixels=np.rot90(sample.pixels, turns, axes=(-2, -1))[..., ::step],
        target=np.rot90(sample.target, turns, axes=(-2, -1))[..., ::step],
        valid=np.rot90(sample.valid, turns)[..., ::step],
    )


def vary_light(transform: InputTransform, rng: Generator, spec: AugmentSpec) -> InputTransform:
    """Normalisation to another contrast and brightness: `input -> factor * input + shift`, the same for all bands.

    Folded into the multiply-add that normalises anyway, so it costs nothing and leaves invalid pixels at 0.
    """
    factor = 1 + rng.uniform(-spec.contrast, spec.contrast)
    shift = rng.uniform(-spec.brightness, spec.brightness)
    return replace(
        transform,
        gain=tuple(factor * g for g in transform.gain),
        bias=tuple(factor * b + shift for b in transform.bias),
    )
