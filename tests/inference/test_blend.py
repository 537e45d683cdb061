"""Weights are positive, factors make a running mean, levels round; what no law says by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.inference.blend import Blend, StripBlender, plan_blend_weights, tiles_covering, to_levels
from pipeline.inference.tiling.tiles import TilePlan, Tiling, plan_tiles
from pipeline.mosaic.levels import LevelType, as_levels

BLENDS: list[Blend] = ["hann", "pyramid", "average", "crop", "exact"]


@given(st.integers(1, 200), st.integers(1, 40), st.data(), st.sampled_from(BLENDS))
def test_every_pixel_has_shares_and_the_first_takes_all(
    length: int, tile: int, data: st.DataObject, blend: Blend
) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    axis = plan_tiles((length, 1), Tiling(tile_size=tile, overlap=overlap)).rows
    met = np.zeros(length, bool)
    for share in plan_blend_weights(axis, blend):
        factor = share.factor.numpy()
        assert ((factor > 0) & (factor <= 1)).all()
        assert (factor[~met[share.start : share.stop]] == 1).all()
        met[share.start : share.stop] = True
    assert met.all()


@given(st.integers(1, 200), st.integers(1, 40), st.data(), st.sampled_from(BLENDS))
def test_covering_names_all_tiles_that_contribute(length: int, tile: int, data: st.DataObject, blend: Blend) -> None:
    axis = plan_tiles((length, 1), Tiling(tile_size=tile, overlap=data.draw(st.integers(0, tile - 1)))).rows
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))
    shares = plan_blend_weights(axis, blend)
    hits = {k for k, share in enumerate(shares) if set(range(share.start, share.stop)) & set(range(start, stop))}
    assert hits <= set(tiles_covering(shares, start, stop))


def test_hann_outweighs_the_border_of_a_tile() -> None:
    axis = plan_tiles((24, 1), Tiling(tile_size=16, overlap=8)).rows
    second = plan_blend_weights(axis, "hann")[1].factor
    assert second[0] < 0.05
    assert second[7] > 0.95
    assert torch.all(second[:8].diff() > 0)


@pytest.mark.parametrize(("level_type", "top"), [("uint8", 254), ("uint16", 65534)])
def test_levels_round_to_the_nearest_and_mark_invalid_pixels(level_type: LevelType, top: int) -> None:
    probabilities = torch.tensor([[[0.0, 1.0, 0.5, 1.2, -0.1, 0.3]]])
    valid = torch.tensor([[True, True, True, True, True, False]])
    stored = to_levels(probabilities, valid, level_type)
    assert stored.numpy().dtype == level_type
    assert stored.numpy()[0, 0].tolist() == [0, top, round(top / 2), top, 0, top + 1]


@pytest.mark.parametrize(("level_type", "top"), [("uint8", 254), ("uint16", 65534)])
def test_every_probability_is_stored_as_its_nearest_level(level_type: LevelType, top: int) -> None:
    level = torch.arange(0, top + 1, 7, dtype=torch.float64)
    for shift in (-0.4, 0.0, 0.4):
        stored = to_levels(((level + shift) / top).float()[None, None], None, level_type).numpy()[0, 0]
        assert stored.tolist() == level.int().tolist()


def test_float32_keeps_probabilities_and_marks_invalid_pixels_with_nan() -> None:
    stored = to_levels(torch.tensor([[[0.25, 0.5]]]), torch.tensor([[True, False]]), "float32").numpy()
    assert stored[0, 0, 0] == np.float32(0.25)
    assert np.isnan(stored[0, 0, 1])
    assert as_levels(stored)[0, 0].tolist() == [16384, 65535]


@settings(max_examples=30)
@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.data(), st.sampled_from(BLENDS), st.integers(0, 99)
)
def test_a_region_is_blended_like_the_same_part_of_the_whole(
    height: int, width: int, tile: int, data: st.DataObject, blend: Blend, seed: int
) -> None:
    overlap = data.draw(st.integers(0, tile - 1))
    plan = plan_tiles((height, width), Tiling(tile_size=tile, overlap=overlap))
    left = data.draw(st.integers(0, width - 1))
    span = slice(left, data.draw(st.integers(left + 1, width)))
    generator = torch.Generator().manual_seed(seed)
    outputs = {
        (row, col): torch.rand((2, plan.rows.output, plan.cols.output), generator=generator)
        for row in range(plan.shape[0])
        for col in range(plan.shape[1])
    }
    whole, part = (blended(plan, blend, outputs, columns) for columns in (slice(0, width), span))
    assert torch.equal(whole[:, :, span], part)
    assert torch.allclose(whole.double(), direct_mean(plan, blend, outputs), atol=1e-5)


def blended(plan: TilePlan, blend: Blend, outputs: dict[tuple[int, int], torch.Tensor], span: slice) -> torch.Tensor:
    """`(classes, height, columns)` of a span of columns, strip by strip."""
    rows, cols = plan_blend_weights(plan.rows, blend), plan_blend_weights(plan.cols, blend)
    blender = StripBlender(rows, cols, span=span, classes=2, device=torch.device("cpu"))
    finished = []
    for row in range(len(rows)):
        for col in tiles_covering(cols, span.start, span.stop):
            blender.add(col, outputs[row, col])
        finished.append(blender.end_strip(row, last=row == len(rows) - 1).clone())
    return torch.cat(finished, dim=1)


def direct_mean(plan: TilePlan, blend: Blend, outputs: dict[tuple[int, int], torch.Tensor]) -> torch.Tensor:
    """The running mean written as a loop over the factors of single tiles."""
    rows, cols = plan_blend_weights(plan.rows, blend), plan_blend_weights(plan.cols, blend)
    mean = torch.zeros((2, plan.rows.length, plan.cols.length), dtype=torch.float64)
    for row, down in enumerate(rows):
        strip = torch.zeros((2, len(down.factor), plan.cols.length), dtype=torch.float64)
        for col, across in enumerate(cols):
            output = outputs[row, col][:, down.skip :, across.skip :][:, : len(down.factor), : len(across.factor)]
            place = strip[:, :, across.start : across.stop]
            place += across.factor.double() * (output.double() - place)
        place = mean[:, down.start : down.stop]
        place += down.factor.double()[:, None] * (strip - place)
    return mean
