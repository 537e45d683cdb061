"""Geometric augmentation: flip, quarter turns, and one resampling for rotation, scaling and elastic deformation.

Flip and turns move whole pixels. All other changes are composed into one field of coordinates, so that pixels are
interpolated once: bilinearly between valid pixels, by nearest neighbour for target and validity. Coordinates outside
the window that was read give invalid, unlabelled pixels. Pixels that may not count are unlabelled before they are
moved, so they count nowhere afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.training.augment.parameters import AugmentParams, WindowStack, masked_rows, where
from pipeline.training.labels.polygon_labels import UNLABELLED
from pipeline.training.sample import Sample

BICUBIC_GAIN = 1.375**2
"""Largest ratio of bicubic interpolation (Keys 1981, a = -0.75) to the largest input value, in two dimensions."""


def flip_and_turn(sample: Sample, params: AugmentParams) -> Sample:
    """One of the eight symmetries of the square; views, not copies."""
    turns, step = params.quarter_turns, -1 if params.mirrored else 1
    if turns == 0 and step == 1:
        return sample
    return Sample(
        pixels=np.rot90(sample.pixels, turns, axes=(-2, -1))[..., ::step],
        target=np.rot90(sample.target, turns, axes=(-2, -1))[..., ::step],
        valid=np.rot90(sample.valid, turns)[..., ::step],
    )


def warp_reach(params: AugmentParams, size: int) -> int:
    """Pixels that must be read around a window of `size` pixels, so that its warped corners are real data."""
    if not params.warps:
        return 0
    half, angle = (size - 1) / 2, math.radians(params.degrees)
    furthest = half * (abs(math.cos(angle)) + abs(math.sin(angle))) / params.scale
    furthest += BICUBIC_GAIN * max(map(abs, params.elastic), default=0.0)
    return math.ceil(max(0.0, furthest - half)) + 1


def warp(stack: WindowStack, params: Sequence[AugmentParams], *, size: int) -> WindowStack:
    """Rotate, scale and deform windows about their middle, and return the middle `size` x `size` pixels.

    Windows without a warp are only cropped.
    """
    middle, rows = stack.crop(size), masked_rows(params, lambda each: each.warps)
    if not rows:
        return middle
    moved = _resample(stack.select(rows), _offsets([params[row] for row in rows], size, stack.valid.device))
    return WindowStack(
        pixels=where(middle.pixels, rows, moved.pixels),
        target=where(middle.target, rows, moved.target),
        valid=where(middle.valid, rows, moved.valid),
    )


def _offsets(params: Sequence[AugmentParams], size: int, device: torch.device) -> Tensor:
    """Where each pixel comes from: `(N, 2, size, size)` rows and columns from the middle of the window read."""
    along = torch.arange(size, device=device) - (size - 1) / 2
    matrices = torch.tensor([_matrix(each) for each in params], dtype=torch.float32, device=device)[..., None, None]
    offsets = matrices[:, :, 0] * along[:, None] + matrices[:, :, 1] * along
    if any(each.elastic for each in params):
        offsets += _displacements(params, size, device)
    return offsets


def _matrix(params: AugmentParams) -> list[list[float]]:
    """From `(row, col)` in the result to `(row, col)` in the source; rows run downwards."""
    angle = math.radians(params.degrees)
    cosine, sine = math.cos(angle) / params.scale, math.sin(angle) / params.scale
    return [[cosine, sine], [-sine, cosine]]


def _displacements(params: Sequence[AugmentParams], size: int, device: torch.device) -> Tensor:
    """`(N, 2, size, size)` pixels: bicubic between nodes, of which the outer ones lie on the window's edge."""
    count = max(len(each.elastic) for each in params)
    nodes = math.isqrt(count // 2)
    values = [each.elastic or (0.0,) * count for each in params]
    grids = torch.tensor(values, dtype=torch.float32, device=device).reshape(-1, 2, nodes, nodes)
    eye = torch.eye(nodes, device=device)[None, None]
    weights = F.interpolate(eye, size=(size, nodes), mode="bicubic", align_corners=True)[0, 0]
    return weights @ grids @ weights.T


def _resample(stack: WindowStack, offsets: Tensor) -> WindowStack:
    half = (stack.valid.shape[-1] - 1) / 2
    labels = _nearest(torch.cat([stack.target, stack.valid[:, None].to(torch.uint8)], dim=1), offsets + half)
    target, valid = labels[:, :-1], labels[:, -1] == 1
    planes = torch.cat([stack.pixels, stack.valid[:, None].to(stack.pixels.dtype)], dim=1)
    grid = (offsets / half).flip(1).movedim(1, -1)
    mixed = F.grid_sample(planes, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    pixels, weight = mixed[:, :-1], mixed[:, -1:]  # invalid pixels are 0 and weigh 0
    pixels = torch.where(valid[:, None], pixels / weight, 0.0)
    return WindowStack(pixels=pixels, target=target, valid=valid)


def _nearest(planes: Tensor, places: Tensor) -> Tensor:
    """Values of `(N, planes, S, S)` at `(N, 2, H, W)` rows and columns; `UNLABELLED` outside."""
    count, side = planes.shape[1], planes.shape[-1]
    cells = places.round().long()
    inside = ((cells >= 0) & (cells < side)).all(dim=1)
    row, col = cells.clamp(0, side - 1).unbind(1)
    index = (row * side + col).flatten(1)[:, None].expand(-1, count, -1)
    found = planes.flatten(2).gather(2, index).reshape(-1, count, *places.shape[-2:])
    return torch.where(inside[:, None], found, UNLABELLED)
