"""Random changes of a sample, as pure functions of the sample and a generator."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.random import Generator

from pipeline.normalize import InputTransform
from pipeline.training.samples import Sample
from pipeline.training.settings import AugmentSpec


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
