"""Augmentation changes pixels and target consistently, without side effects, and only as the settings say."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from pipeline.config import build_settings
from pipeline.errors import SettingsError
from pipeline.inference.normalize import InputTransform
from pipeline.training.augment.geometric import flip_and_turn, warp, warp_reach
from pipeline.training.augment.parameters import AugmentParams, WindowStack
from pipeline.training.augment.photometric import adjust_photometry, apply_blur, apply_cutout, apply_gamma, apply_noise
from pipeline.training.augment.sample_and_apply import apply_params, sample_params
from pipeline.training.sample import Sample
from pipeline.training.settings.augment import AugmentSpec

CHANGES = ("rotation", "scaling", "elastic", "contrast", "brightness", "band_gain", "gamma", "blur", "noise", "cutout")
SIZE = 24

warps = st.builds(
    AugmentParams,
    degrees=st.floats(-180, 180),
    scale=st.floats(0.5, 2),
    elastic=st.just(()) | st.lists(st.floats(-6, 6), min_size=18, max_size=18).map(tuple),
)


def spec_of(**probabilities: float) -> AugmentSpec:
    """Everything off but what is named."""
    values = {name: {"probability": probabilities.get(name, 0.0)} for name in CHANGES}
    shares = {name: probabilities.get(name, 0.0) for name in ("flips", "turns")}
    return build_settings(AugmentSpec, {**values, **shares}, place="test")


def all_on() -> AugmentSpec:
    return spec_of(**dict.fromkeys((*CHANGES, "flips", "turns"), 1.0))


def draw(spec: AugmentSpec, count: int) -> list[AugmentParams]:
    rng = np.random.default_rng(0)
    return [sample_params(rng, spec, bands=3) for _ in range(count)]


def random_stack(side: int, count: int = 2, seed: int = 0, invalid: float = 0.2) -> WindowStack:
    generator = torch.Generator().manual_seed(seed)
    valid = torch.rand(count, side, side, generator=generator) >= invalid
    return WindowStack(
        pixels=torch.randn(count, 3, side, side, generator=generator) * valid[:, None],
        target=torch.randint(0, 2, (count, 2, side, side), generator=generator, dtype=torch.uint8),
        valid=valid,
    )


def ramps(side: int) -> WindowStack:
    """Two bands that tell their own row and column, and a target that follows from them."""
    row, col = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return WindowStack(
        pixels=torch.stack([row, col])[None].float(),
        target=checkers(row, col)[None, None],
        valid=torch.ones(1, side, side, dtype=torch.bool),
    )


def checkers(row: torch.Tensor, col: torch.Tensor) -> torch.Tensor:
    return ((row // 5 + col // 5) % 2).to(torch.uint8)


def assert_same(one: WindowStack, other: WindowStack) -> None:
    for field in fields(WindowStack):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name


# Drawing


def test_by_default_all_eight_symmetries_are_equally_common_and_nothing_is_resampled() -> None:
    drawn = draw(AugmentSpec(), 2000)
    seen = Counter((each.mirrored, each.quarter_turns) for each in drawn)
    assert len(seen) == 8
    assert all(190 < count < 310 for count in seen.values())
    assert not any(each.warps or each.blur_px or each.noise or each.cutouts or each.gamma != 1 for each in drawn)
    assert all(0.8 <= factor <= 1.2 for each in drawn for factor in each.factor)
    assert all(-0.2 <= shift <= 0.2 for each in drawn for shift in each.shift)


@pytest.mark.parametrize("name", [*CHANGES, "flips", "turns"])
def test_a_change_is_applied_with_its_probability_and_alone(name: str) -> None:
    plain, never, sometimes, always = (draw(spec_of(**{name: share}), 200) for share in (0.0, 0.0, 0.3, 1.0))
    unchanged = AugmentParams(factor=(1.0,) * 3, shift=(0.0,) * 3)
    assert plain == never
    assert all(replace(each, noise_seed=0, cutout_side=0.0) == unchanged for each in plain)
    assert all(one != other for one, other in zip(always, plain, strict=True))
    assert 0.15 < np.mean([one != other for one, other in zip(sometimes, plain, strict=True)]) < 0.45


@given(seed=st.integers(0, 999), name=st.sampled_from([*CHANGES, "flips", "turns"]))
def test_switching_one_change_off_leaves_the_others_as_they_were(seed: int, name: str) -> None:
    every = dict.fromkeys((*CHANGES, "flips", "turns"), 1.0)
    one, other = (
        sample_params(np.random.default_rng(seed), spec_of(**probabilities), bands=3)
        for probabilities in (every, {**every, name: 0.0})
    )
    light = {"factor", "shift"} if name in ("contrast", "brightness", "band_gain") else set()
    own = {"rotation": "degrees", "scaling": "scale", "blur": "blur_px", "cutout": "cutouts", "flips": "mirrored"}
    own["turns"] = "quarter_turns"
    differing = {f.name for f in fields(AugmentParams) if getattr(one, f.name) != getattr(other, f.name)}
    assert differing <= (light or {own.get(name, name)})


@given(seed=st.integers(0, 999), low=st.floats(0.5, 1), high=st.floats(1, 2), degrees=st.floats(0, 180))
def test_what_is_drawn_lies_in_its_range(seed: int, low: float, high: float, degrees: float) -> None:
    spec = all_on()
    spec = replace(
        spec,
        rotation=replace(spec.rotation, degrees=degrees),
        scaling=replace(spec.scaling, low=low, high=high),
        gamma=replace(spec.gamma, low=low, high=high),
    )
    drawn = sample_params(np.random.default_rng(seed), spec, bands=5)
    assert abs(drawn.degrees) <= degrees
    for value in (drawn.scale, drawn.gamma):
        assert low * (1 - 1e-12) <= value <= high * (1 + 1e-12)
    assert 0 <= drawn.blur_px <= spec.blur.sigma_px
    assert 0 <= drawn.noise <= spec.noise.deviation
    assert len(drawn.factor) == len(drawn.shift) == 5
    assert all(0.8 * 0.9 <= factor <= 1.2 * 1.1 for factor in drawn.factor)
    assert all(abs(shift) <= 0.2 * 1.1 + 0.1 for shift in drawn.shift)
    assert len(set(drawn.factor)) == len(set(drawn.shift)) == 5


def test_displacements_are_normal_with_the_papers_deviation_on_a_grid_of_three_by_three() -> None:
    values = np.array([each.elastic for each in draw(spec_of(elastic=1.0), 500)])
    assert values.shape == (500, 2 * 3 * 3)
    assert abs(values.mean()) < 0.4
    assert 9.7 < values.std() < 10.3
    assert abs(np.corrcoef(values.T) - np.eye(18)).max() < 0.25


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"flips": 1.1}, "augment: flips must be from 0 to 1, not 1.1"),
        ({"turns": -1}, "augment: turns must be from 0 to 1, not -1.0"),
        ({"rotation": {"probability": 2}}, "augment: rotation.probability must be from 0 to 1, not 2.0"),
        ({"rotation": {"degrees": 181}}, "augment: rotation.degrees must be from 0 to 180, not 181.0"),
        ({"scaling": {"low": 0.4}}, "augment: scaling.low must be from 0.5 to 2, not 0.4"),
        ({"scaling": {"low": 1.5}}, "augment: scaling.low must be at most high (1.25), not 1.5"),
        ({"elastic": {"deviation_px": -1}}, "augment: elastic.deviation_px must be from 0 to 50, not -1.0"),
        ({"elastic": {"nodes": 1}}, "augment: elastic.nodes must be from 2 to 9, not 1"),
        ({"contrast": {"factor": 1}}, "augment: contrast.factor must be from 0 to 0.9, not 1.0"),
        ({"brightness": {"shift": 2}}, "augment: brightness.shift must be from 0 to 1, not 2.0"),
        ({"band_gain": {"factor": 1}}, "augment: band_gain.factor must be from 0 to 0.9, not 1.0"),
        ({"gamma": {"low": 2}}, "augment: gamma.low must be at most high (1.5), not 2.0"),
        ({"gamma": {"high": float("nan")}}, "augment: gamma.high must be from 0.2 to 5, not nan"),
        ({"blur": {"sigma_px": 6}}, "augment: blur.sigma_px must be from 0 to 5, not 6.0"),
        ({"noise": {"deviation": 2}}, "augment: noise.deviation must be from 0 to 1, not 2.0"),
        ({"cutout": {"share": 1.5}}, "augment: cutout.share must be from 0 to 1, not 1.5"),
        ({"cutout": {"count": 0}}, "augment: cutout.count must be from 1 to 16, not 0"),
    ],
)
def test_a_value_out_of_bounds_is_refused_with_its_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as raised:
        build_settings(AugmentSpec, values, place="augment")
    assert str(raised.value) == message


# Mirror and quarter turns


@given(mirrored=st.booleans(), turns=st.integers(0, 3))
def test_flips_and_turns_move_pixels_and_target_together(mirrored: bool, turns: int) -> None:
    plane = np.arange(25).reshape(5, 5)
    sample = Sample(pixels=plane[None], target=plane[None].astype(np.uint8), valid=plane > 3)
    turned = flip_and_turn(sample, AugmentParams(mirrored=mirrored, quarter_turns=turns))
    assert np.array_equal(turned.pixels, turned.target)
    assert np.array_equal(turned.pixels[0] > 3, turned.valid)
    assert sorted(turned.pixels.ravel().tolist()) == list(range(25))


# Rotation, scaling and deformation


@given(changes=warps)
def test_each_pixel_comes_from_one_place_and_its_target_from_the_nearest_pixel_there(changes: AugmentParams) -> None:
    result = warp(ramps(SIZE + 2 * warp_reach(changes, SIZE)), [changes], size=SIZE)
    row, col = result.pixels[0]
    assert result.valid.all()
    away_from_ties = ((row % 1 - 0.5).abs() > 1e-3) & ((col % 1 - 0.5).abs() > 1e-3)
    expected = checkers(row.round().long(), col.round().long())
    assert torch.equal(result.target[0, 0][away_from_ties], expected[away_from_ties])


@given(degrees=st.floats(-180, 180), scale=st.floats(0.5, 2))
def test_rotation_and_scaling_keep_the_middle_and_every_angle_and_scale_every_distance(
    degrees: float, scale: float
) -> None:
    changes = AugmentParams(degrees=degrees, scale=scale)
    side = SIZE + 2 * warp_reach(changes, SIZE)
    row, col = warp(ramps(side), [changes], size=SIZE).pixels[0]
    right = torch.stack([row[:, 1:] - row[:, :-1], col[:, 1:] - col[:, :-1]])
    angle = math.radians(degrees)
    assert torch.allclose(right[0], torch.tensor(-math.sin(-angle) / scale).float(), atol=1e-4)
    assert torch.allclose(right[1], torch.tensor(math.cos(angle) / scale).float(), atol=1e-4)
    assert math.isclose(row.mean().item(), (side - 1) / 2, abs_tol=1e-3)
    assert math.isclose(col.mean().item(), (side - 1) / 2, abs_tol=1e-3)


@pytest.mark.parametrize("turns", [1, 2, 3, -1])
@pytest.mark.parametrize("size", [SIZE, SIZE - 1])
def test_rotation_by_right_angles_equals_quarter_turns(turns: int, size: int) -> None:
    stack = random_stack(size + 8)
    rotated = warp(stack, [AugmentParams(degrees=90.0 * turns)] * 2, size=size)
    middle = stack.crop(size)
    assert torch.equal(rotated.target, torch.rot90(middle.target, turns, (-2, -1)))
    assert torch.equal(rotated.valid, torch.rot90(middle.valid, turns, (-2, -1)))
    # a pixel of a hard edge is mixed with its neighbour by as much as coordinates are rounded
    assert torch.allclose(rotated.pixels, torch.rot90(middle.pixels, turns, (-2, -1)), atol=1e-4)


def test_a_window_that_nothing_warps_is_cropped_exactly_even_next_to_warped_ones() -> None:
    stack = random_stack(SIZE + 6, count=3)
    changes = [AugmentParams(), AugmentParams(degrees=30.0), AugmentParams(elastic=(0.0,) * 18)]
    result = warp(stack, changes, size=SIZE)
    assert_same(result.select([0, 2]), stack.crop(SIZE).select([0, 2]))
    assert not torch.equal(result.pixels[1], stack.crop(SIZE).pixels[1])
    assert_same(warp(stack, [AugmentParams()] * 3, size=SIZE), stack.crop(SIZE))


def test_the_deformation_takes_each_node_by_its_displacement() -> None:
    size = 25
    displacements = np.random.default_rng(0).normal(0, 3, (2, 3, 3))
    changes = AugmentParams(elastic=tuple(displacements.ravel().tolist()))
    reach = warp_reach(changes, size)
    moved = warp(ramps(size + 2 * reach), [changes], size=size).pixels[0] - ramps(size + 2 * reach).crop(size).pixels[0]
    assert np.allclose(moved[:, ::12, ::12], displacements, atol=1e-4)
    steps = moved.diff(dim=1).abs().max(), moved.diff(dim=2).abs().max()
    assert max(steps) < 3 * abs(displacements).max() / 12  # smooth between them


@given(changes=warps, seed=st.integers(0, 99))
def test_invalid_pixels_are_never_mixed_into_valid_ones(changes: AugmentParams, seed: int) -> None:
    stack = random_stack(SIZE + 4, seed=seed)
    stack = replace(stack, pixels=torch.where(stack.valid[:, None], 5.0, 0.0).expand(-1, 3, -1, -1))
    result = warp(stack, [changes] * 2, size=SIZE)
    assert torch.allclose(result.pixels, torch.where(result.valid[:, None], 5.0, 0.0).expand(-1, 3, -1, -1), atol=1e-4)


@given(degrees=st.floats(20, 70))
def test_what_lies_outside_the_window_read_is_invalid_and_unlabelled(degrees: float) -> None:
    result = warp(random_stack(SIZE, invalid=0.0), [AugmentParams(degrees=degrees)] * 2, size=SIZE)
    corners = result.valid[:, :: SIZE - 1, :: SIZE - 1]
    assert not corners.any()
    assert torch.equal(result.target == 255, ~result.valid[:, None].expand(-1, 2, -1, -1))
    assert (result.pixels.movedim(1, -1)[~result.valid] == 0).all()


# Light


def test_photometric_changes_vary_the_model_input_and_leaves_invalid_pixels_at_zero() -> None:
    transform = InputTransform(gain=(0.5, 2.0), bias=(1.0, -1.0))
    pixels = np.random.default_rng(0).integers(0, 99, (2, 4, 4)).astype(np.uint8)
    valid = np.eye(4, dtype=bool)
    plain = transform.apply(pixels, valid)
    varied = adjust_photometry(transform, AugmentParams(factor=(1.5, 0.5), shift=(0.25, -1.0))).apply(pixels, valid)
    assert (varied[:, ~valid] == 0).all()
    assert np.allclose(varied[0, valid], 1.5 * plain[0, valid] + 0.25, atol=1e-4)
    assert np.allclose(varied[1, valid], 0.5 * plain[1, valid] - 1, atol=1e-4)
    assert adjust_photometry(transform, AugmentParams()) == transform


@given(gamma=st.floats(0.2, 5), seed=st.integers(0, 99))
def test_gamma_keeps_each_bands_order_and_ends_and_follows_its_formula(gamma: float, seed: int) -> None:
    stack = random_stack(9, count=1, seed=seed)
    toned = apply_gamma(stack.pixels, stack.valid, [AugmentParams(gamma=gamma)])
    for before, after in zip(stack.pixels[0], toned[0], strict=True):
        values, result = before[stack.valid[0]].double(), after[stack.valid[0]].double()
        low, high = values.min(), values.max()
        assert torch.allclose(result, low + (high - low) * ((values - low) / (high - low)) ** gamma, atol=1e-4)
        assert (after[~stack.valid[0]] == 0).all()


def test_gamma_leaves_a_constant_band_and_a_window_without_valid_pixels_as_they_are() -> None:
    pixels, valid = torch.full((2, 1, 4, 4), 3.0), torch.ones(2, 4, 4, dtype=torch.bool)
    valid[1], pixels[1] = False, 0.0
    assert torch.equal(apply_gamma(pixels, valid, [AugmentParams(gamma=2.0)] * 2), pixels)


@settings(max_examples=25)
@given(sigma=st.floats(0.1, 3), seed=st.integers(0, 99))
def test_blur_is_the_gaussian_mean_of_valid_pixels(sigma: float, seed: int) -> None:
    stack = random_stack(12, seed=seed)
    blurred = apply_blur(stack.pixels, stack.valid, [AugmentParams(blur_px=sigma), AugmentParams(blur_px=3.0)])

    def smooth(plane: torch.Tensor) -> Any:
        radius = math.ceil(3 * sigma)
        return ndimage.gaussian_filter(plane.double().numpy(), sigma, mode="constant", radius=radius)

    valid = stack.valid[0].numpy()
    for band, result in zip(stack.pixels[0], blurred[0], strict=True):
        expected = smooth(band) / np.where(valid, smooth(stack.valid[0]), 1)
        assert np.allclose(result, np.where(valid, expected, 0), atol=1e-5)


def test_noise_has_its_deviation_depends_on_its_seed_alone_and_spares_invalid_pixels() -> None:
    stack = random_stack(100, invalid=0.1)
    noisy = [AugmentParams(noise=0.5, noise_seed=7), AugmentParams(noise=0.1, noise_seed=8)]
    added = apply_noise(stack.pixels, stack.valid, noisy) - stack.pixels
    turned_round = apply_noise(stack.pixels.flip(0), stack.valid.flip(0), noisy[::-1]) - stack.pixels.flip(0)
    assert torch.equal(added, turned_round.flip(0))
    for each, deviation in zip(added.movedim(1, -1), (0.5, 0.1), strict=True):
        index = 0 if deviation == 0.5 else 1
        assert abs(each[stack.valid[index]].std().item() - deviation) < 0.02 * deviation
        assert (each[~stack.valid[index]] == 0).all()


@given(centre=st.tuples(st.floats(0, 1), st.floats(0, 1)), side=st.floats(0.1, 1))
def test_cutout_sets_a_square_to_zero_and_nothing_else(centre: tuple[float, float], side: float) -> None:
    pixels = torch.ones(1, 2, 20, 20)
    cut = apply_cutout(pixels, [AugmentParams(cutouts=(centre,), cutout_side=side)])
    rows, cols = ((torch.arange(20) + 0.5 - 20 * share).abs() <= 10 * side for share in centre)
    expected = rows[:, None] & cols[None]
    differing = (cut[0, 0] == 0) ^ expected
    assert torch.equal(cut[0, 0], cut[0, 1])
    assert differing.sum() <= 2 * 20  # whole pixels: each edge within one of the true square's
    assert (cut == 0).any()


# All together


@given(seed=st.integers(0, 99))
@settings(max_examples=20)
def test_every_change_is_pure_and_repeatable_and_keeps_invalid_pixels_at_zero(seed: int) -> None:
    changes = [sample_params(np.random.default_rng([seed, k]), all_on(), bands=3) for k in range(2)]
    side = SIZE + 2 * max(warp_reach(each, SIZE) for each in changes)
    stack, same = random_stack(side, seed=seed), random_stack(side, seed=seed)
    result = apply_params(stack, changes, size=SIZE)
    assert_same(stack, same)
    assert_same(result, apply_params(stack, changes, size=SIZE))
    assert (result.pixels.movedim(1, -1)[~result.valid] == 0).all()
    assert result.pixels.isfinite().all()


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in ("contrast", "brightness", "band_gain")])
def test_each_change_by_itself_changes_pixels_and_the_identity_changes_nothing(name: str) -> None:
    changes = sample_params(np.random.default_rng(2), spec_of(**{name: 1.0}), bands=3)
    stack = random_stack(SIZE + 80, count=1)
    assert not torch.equal(apply_params(stack, [changes], size=SIZE).pixels, stack.crop(SIZE).pixels)
    assert_same(apply_params(stack, [AugmentParams()], size=SIZE), stack.crop(SIZE))


def test_a_window_is_the_same_whatever_its_neighbours_in_the_batch() -> None:
    changes = [sample_params(np.random.default_rng(k), all_on(), bands=3) for k in range(3)]
    side = SIZE + 2 * max(warp_reach(each, SIZE) for each in changes)
    stack = random_stack(side, count=3)
    together = apply_params(stack, changes, size=SIZE)
    for row in range(3):
        alone = apply_params(stack.select([row]), [changes[row]], size=SIZE)
        assert torch.equal(alone.target, together.target[[row]])
        assert torch.allclose(alone.pixels, together.pixels[[row]], atol=1e-5)


def test_noise_keeps_to_the_bounds_of_the_model_input() -> None:
    stack = random_stack(SIZE)
    stack = replace(stack, pixels=stack.pixels.clamp(0.5, 1) * stack.valid[:, None])
    result = apply_params(stack, [AugmentParams(noise=1.0)] * 2, size=SIZE, clip=(0.5, 1.0))
    values = result.pixels.movedim(1, -1)
    assert values[result.valid].min() == 0.5
    assert values[result.valid].max() == 1
    assert (values[~result.valid] == 0).all()
