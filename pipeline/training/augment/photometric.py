"""Photometric augmentation: gains, gamma, blur, noise and cutout of the model input. Invalid pixels stay 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.inference import InputTransform
from pipeline.training.augment.parameters import AugmentParams, masked_rows, where

BLUR_REACH_SIGMAS = 3
"""Standard deviations of the Gaussian kernel on either side of its centre."""


def adjust_photometry(transform: InputTransform, params: AugmentParams) -> InputTransform:
    """The normalisation with contrast and brightness changed: `input -> factor * input + shift` per band.

    Folded into the multiply-add that normalises anyway, so it costs nothing and leaves invalid pixels at 0.
    """
    count = len(transform.gain)
    factor, shift = params.factor or (1.0,) * count, params.shift or (0.0,) * count
    return replace(
        transform,
        gain=tuple(f * g for f, g in zip(factor, transform.gain, strict=True)),
        bias=tuple(f * b + s for f, b, s in zip(factor, transform.bias, shift, strict=True)),
    )


def apply_gamma(pixels: Tensor, valid: Tensor, params: Sequence[AugmentParams]) -> Tensor:
    """`low + (high - low) * ((x - low) / (high - low)) ** gamma`, `low` and `high` of the band's valid pixels.

    `pixels` are `(N, bands, H, W)`, `valid` `(N, H, W)`. Standardised input has no fixed black and white level, so the
    window's own are used (as in nnU-Net: Isensee et al. 2021, Nature Methods 18:203).
    """
    rows = masked_rows(params, lambda each: each.gamma != 1)
    if not rows:
        return pixels
    part, real = pixels[rows], valid[rows][:, None]
    exponent = torch.tensor([params[row].gamma for row in rows]).to(pixels)[:, None, None, None]
    low = torch.where(real, part, math.inf).amin((2, 3), keepdim=True)
    high = torch.where(real, part, -math.inf).amax((2, 3), keepdim=True)
    extent = (high - low).clamp(min=torch.finfo(pixels.dtype).tiny)
    toned = low + extent * ((part - low) / extent).clamp(0, 1) ** exponent
    return where(pixels, rows, torch.where(real, toned, 0.0))


def apply_blur(pixels: Tensor, valid: Tensor, params: Sequence[AugmentParams]) -> Tensor:
    """Gaussian blur over valid pixels; pixels outside the window or without data have weight 0."""
    rows = masked_rows(params, lambda each: each.blur_px > 0)
    if not rows:
        return pixels
    part, real = pixels[rows], valid[rows][:, None]
    kernels = _gaussians([params[row].blur_px for row in rows]).to(pixels)
    # Normalized convolution: the blurred pixels are divided by the blurred validity mask.
    planes = _smooth(torch.cat([part, real.to(part.dtype)], dim=1), kernels)
    means = planes[:, :-1] / planes[:, -1:]
    return where(pixels, rows, torch.where(real, means, 0.0))


def _gaussians(sigmas_px: Sequence[float]) -> Tensor:
    """`(N, taps)` weights that sum to 1; the narrower ones end in zeros."""
    deviations = torch.tensor(sigmas_px, dtype=torch.float64)[:, None]
    reach = math.ceil(BLUR_REACH_SIGMAS * max(sigmas_px))
    steps = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (steps / deviations) ** 2)
    weights[steps.abs() > (BLUR_REACH_SIGMAS * deviations).ceil()] = 0
    return weights / weights.sum(dim=1, keepdim=True)


def _smooth(planes: Tensor, kernels: Tensor) -> Tensor:
    """Each window convolved along rows and columns with its own kernel, `(N, taps)`; zeros outside."""
    count, depth, height, width = planes.shape
    weights = kernels.repeat_interleave(depth, dim=0)[:, None]
    flat, reach = planes.reshape(1, count * depth, height, width), kernels.shape[1] // 2

    # A Gaussian is separable; one group per plane gives each window its own kernel.
    flat = F.conv2d(flat, weights[:, :, :, None], padding=(reach, 0), groups=count * depth)
    flat = F.conv2d(flat, weights[:, :, None, :], padding=(0, reach), groups=count * depth)
    return flat.reshape(planes.shape)


def apply_noise(pixels: Tensor, valid: Tensor, params: Sequence[AugmentParams]) -> Tensor:
    """Gaussian noise from each window's own seed; the same on every machine with the same type of device."""
    rows = masked_rows(params, lambda each: each.noise > 0)
    if not rows:
        return pixels
    noisy = pixels.clone()
    for row in rows:
        generator = torch.Generator(pixels.device).manual_seed(params[row].noise_seed)
        noise = torch.randn(pixels.shape[1:], generator=generator, device=pixels.device, dtype=pixels.dtype)
        noisy[row] += noise.mul_(params[row].noise).mul_(valid[row])
    return noisy


def apply_cutout(pixels: Tensor, params: Sequence[AugmentParams]) -> Tensor:
    """Squares of 0; they may reach past the window (DeVries & Taylor 2017, section 3)."""
    rows = masked_rows(params, lambda each: each.cutouts)
    if not rows:
        return pixels
    cut, side = pixels.clone(), pixels.shape[-1]
    for row in rows:
        length = params[row].cutout_side * side
        for centre in params[row].cutouts:
            first = [round(share * side - length / 2) for share in centre]
            top, left = (max(0, start) for start in first)
            bottom, right = (max(0, start + round(length)) for start in first)
            cut[row, :, top:bottom, left:right] = 0
    return cut
