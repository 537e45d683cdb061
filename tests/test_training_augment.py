"""Augmentation changes pixels and target alike."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.normalize import InputTransform
from pipeline.training.augment import AugmentSpec, flip_and_turn, vary_light
from pipeline.training.samples import Sample


@given(seed=st.integers(0, 1000))
def test_flips_and_turns_move_pixels_and_target_together(seed: int) -> None:
    plane = np.arange(25).reshape(5, 5)
    sample = Sample(pixels=plane[None], target=plane[None].astype(np.uint8), valid=plane > 3)
    turned = flip_and_turn(sample, np.random.default_rng(seed), AugmentSpec())
    assert np.array_equal(turned.pixels, turned.target)
    assert np.array_equal(turned.pixels[0] > 3, turned.valid)
    assert sorted(turned.pixels.ravel().tolist()) == list(range(25))


def test_all_eight_symmetries_occur_and_can_be_switched_off() -> None:
    plane = np.arange(9).reshape(3, 3)
    sample = Sample(pixels=plane[None], target=plane[None].astype(np.uint8), valid=plane >= 0)

    def seen(spec: AugmentSpec) -> int:
        rngs = map(np.random.default_rng, range(100))
        return len({flip_and_turn(sample, rng, spec).pixels.tobytes() for rng in rngs})

    assert seen(AugmentSpec()) == 8
    assert seen(AugmentSpec(flips=False)) == 4
    assert seen(AugmentSpec(turns=False)) == 2
    assert seen(AugmentSpec(flips=False, turns=False)) == 1


def test_light_varies_the_model_input_and_leaves_invalid_pixels_at_zero() -> None:
    transform = InputTransform(gain=(0.5, 2.0), bias=(1.0, -1.0))
    pixels = np.random.default_rng(0).integers(0, 99, (2, 4, 4)).astype(np.uint8)
    valid = np.eye(4, dtype=bool)
    plain = transform.apply(pixels, valid)[:, valid]
    varied = vary_light(transform, np.random.default_rng(1), AugmentSpec()).apply(pixels, valid)
    assert (varied[:, ~valid] == 0).all()
    factor, shift = np.polyfit(plain.ravel(), varied[:, valid].ravel(), 1)
    assert np.allclose(varied[:, valid], factor * plain + shift, atol=1e-4)
    assert 0.8 <= factor <= 1.2
    assert abs(shift) <= 0.2
