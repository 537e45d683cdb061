"""Data augmentation of training windows: parameters sampled on the CPU, then applied by pure functions.

The order: flip and quarter turns (whole pixels); rotation, scaling and deformation (one resampling); contrast,
brightness and band gain (in the multiply-add that normalises); gamma; blur; noise; cutout. The parameters depend on
the generator alone, the result on the window and the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from numpy.random import Generator

from pipeline.training.augment.geometric import warp
from pipeline.training.augment.parameters import AugmentParams, WindowStack
from pipeline.training.augment.photometric import apply_blur, apply_cutout, apply_gamma, apply_noise
from pipeline.training.settings.augment import AugmentSpec, CutoutSpec, ElasticSpec


def sample_params(rng: Generator, spec: AugmentSpec, *, bands: int) -> AugmentParams:
    """Sample the parameters of one window of `bands` bands.

    Every number is drawn whether it is used or not, so that enabling one change does not alter the others.
    """
    # A change that does not happen gets exponent 0, so a factor of 1, or is multiplied by 0.
    plain = AugmentParams(
        mirrored=_happens(rng, spec.flips),
        quarter_turns=int(rng.integers(1, 4)) * _happens(rng, spec.turns),
        degrees=_symmetric(rng, spec.rotation.degrees) * _happens(rng, spec.rotation.probability),
        scale=_log_uniform(rng, spec.scaling.low, spec.scaling.high) ** _happens(rng, spec.scaling.probability),
        gamma=_log_uniform(rng, spec.gamma.low, spec.gamma.high) ** _happens(rng, spec.gamma.probability),
        blur_px=rng.uniform(0, spec.blur.sigma_px) * _happens(rng, spec.blur.probability),
        noise=rng.uniform(0, spec.noise.deviation) * _happens(rng, spec.noise.probability),
        noise_seed=int(rng.integers(2**63)),
    )
    factor, shift = _draw_gains(rng, spec, bands)
    return replace(
        plain,
        factor=factor,
        shift=shift,
        elastic=_draw_elastic(rng, spec.elastic),
        cutouts=_draw_cutouts(rng, spec.cutout),
        cutout_side=spec.cutout.share,
    )


def apply_params(
    stack: WindowStack, params: Sequence[AugmentParams], *, size: int, clip: tuple[float, float] | None = None
) -> WindowStack:
    """Apply warp, gamma, blur, noise and cutout on the windows' own device; the input is not changed.

    `stack` holds windows already flipped, turned and normalised by `adjust_photometry`, read with `warp_reach` around;
    the result has `size` pixels per side. `clip` bounds the model input.
    """
    stack = warp(stack, params, size=size)
    pixels = apply_gamma(stack.pixels, stack.valid, params)
    pixels = apply_blur(pixels, stack.valid, params)
    noisy = apply_noise(pixels, stack.valid, params)

    # Noise can leave the range of the model input; invalid pixels must stay 0 after clipping.
    if clip is not None and noisy is not pixels:
        noisy = noisy.clamp(*clip) * stack.valid[:, None]
    return replace(stack, pixels=apply_cutout(noisy, params))


def _happens(rng: Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _symmetric(rng: Generator, bound: float) -> float:
    return float(rng.uniform(-bound, bound))


def _log_uniform(rng: Generator, low: float, high: float) -> float:
    return math.exp(rng.uniform(math.log(low), math.log(high)))


def _draw_gains(rng: Generator, spec: AugmentSpec, bands: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Factor and shift per band: contrast, then brightness, then the band's own gain."""
    own = spec.band_gain
    factor = 1 + _symmetric(rng, spec.contrast.factor) * _happens(rng, spec.contrast.probability)
    shift = _symmetric(rng, spec.brightness.shift) * _happens(rng, spec.brightness.probability)
    gained = _happens(rng, own.probability)
    pairs = [(1 + _symmetric(rng, own.factor) * gained, _symmetric(rng, own.shift) * gained) for _ in range(bands)]
    return tuple(gain * factor for gain, _ in pairs), tuple(gain * shift + more for gain, more in pairs)


def _draw_elastic(rng: Generator, spec: ElasticSpec) -> tuple[float, ...]:
    drawn = tuple(rng.normal(0, spec.deviation_px, 2 * spec.nodes**2).tolist())
    return drawn if _happens(rng, spec.probability) else ()


def _draw_cutouts(rng: Generator, spec: CutoutSpec) -> tuple[tuple[float, float], ...]:
    drawn = tuple((rng.random(), rng.random()) for _ in range(spec.count))
    return drawn if _happens(rng, spec.probability) else ()
