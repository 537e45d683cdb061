"""Illumination: sun, slope shading, smooth noise and thin cloud."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Metres = NDArray[np.floating]
"""Coordinates along one axis, east or south."""

AMBIENT = 0.3
"""Share of diffuse skylight in the light on a flat surface; it also reaches shadows."""
NOISE_CELLS = 256
"""Side of a noise grid; noise repeats after this many cells."""


@dataclass(frozen=True, kw_only=True)
class Sun:
    """Direction of the sunlight."""

    azimuth: float
    """Radians clockwise from north."""
    elevation: float
    """Radians above the horizon, in (0, pi/2)."""

    @property
    def toward(self) -> tuple[float, float]:
        """Horizontal unit vector towards the sun, `(east, south)`."""
        return math.sin(self.azimuth), -math.cos(self.azimuth)

    def shadow(self, height_m: float) -> tuple[float, float]:
        """Offset of the shadow of a point at `height_m`, `(east, south)` in metres."""
        length = height_m / math.tan(self.elevation)
        return -self.toward[0] * length, -self.toward[1] * length

    def brightness(self, downslope: tuple[float, float], pitch: float) -> float:
        """Light on a plane that slopes by `pitch` radians towards the unit vector `downslope`; flat ground is 1."""
        towards_sun = downslope[0] * self.toward[0] + downslope[1] * self.toward[1]
        up, along = math.sin(self.elevation), math.cos(self.elevation)
        incidence = math.cos(pitch) * up + math.sin(pitch) * along * towards_sun
        return AMBIENT + (1 - AMBIENT) * max(incidence, 0.0) / up


class Noise:
    """Smooth seeded noise over the plane, about standard normal: quadratic B-splines on coarse random grids."""

    def __init__(self, generator: np.random.Generator, octaves: tuple[tuple[float, float], ...]) -> None:
        """`octaves` are `(cell size in metres, weight)`; weights are scaled to unit variance."""
        norm = math.sqrt(sum(weight**2 for _, weight in octaves)) * 0.55  # 0.55: variance lost to the spline
        self._octaves = [
            (cell, generator.standard_normal((NOISE_CELLS, NOISE_CELLS), dtype=np.float32) * np.float32(weight / norm))
            for cell, weight in octaves
        ]

    def at(self, ys: Metres, xs: Metres) -> Floats:
        """Values at every pair of `ys` and `xs` (metres), float32 of shape `(len(ys), len(xs))`."""
        total = np.zeros((len(ys), len(xs)), np.float32)
        for cell, grid in self._octaves:
            rows = sum(weight[:, None] * grid[index] for index, weight in _taps(ys / cell))
            for index, weight in _taps(xs / cell):
                total += np.take(rows, index, axis=1) * weight
        return total


def _taps(position: Metres) -> list[tuple[NDArray[np.intp], Floats]]:
    """The three grid indices and weights of a quadratic B-spline at each position."""
    low = np.floor(position).astype(np.intp)
    f = (position - low).astype(np.float32)
    weights = ((1 - f) ** 2 / 2, 0.5 + f * (1 - f), f**2 / 2)
    return [((low + shift) % NOISE_CELLS, weight) for shift, weight in enumerate(weights)]


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """Thin cloud: soft ellipses broken up by noise."""

    blobs: tuple[tuple[float, float, float, float], ...]
    """Ellipses `(x, y, radius_x, radius_y)` in metres."""
    noise: Noise
    """Breaks the ellipses into wisps."""
    densest: float
    """Largest opacity, 0..1."""

    def opacity(self, ys: Metres, xs: Metres) -> Floats:
        """Opacity 0..1 at every pair of `ys` and `xs` in metres."""
        form = np.zeros((len(ys), len(xs)), np.float32)
        for x, y, radius_x, radius_y in self.blobs:
            down = ((ys - y) / radius_y).astype(np.float32) ** 2
            across = ((xs - x) / radius_x).astype(np.float32) ** 2
            np.maximum(form, 1 - down[:, None] - across[None, :], out=form)
        if form.any():
            form *= np.clip(0.75 + 0.35 * self.noise.at(ys, xs), 0, 1)
        return form * np.float32(self.densest)


def draw_sun(generator: np.random.Generator) -> Sun:
    """A mid-morning to mid-afternoon sun of the northern hemisphere."""
    azimuth, elevation = generator.uniform(115, 235), generator.uniform(36, 56)
    return Sun(azimuth=math.radians(azimuth), elevation=math.radians(elevation))


def draw_cloud(generator: np.random.Generator, height_m: float, width_m: float) -> Cloud:
    """One bank of thin cloud of about a third of the scene's side, somewhere in the scene."""
    side = min(height_m, width_m)
    centre = generator.uniform(0.1, 0.9, 2) * (width_m, height_m)
    blobs = []
    for _ in range(5):
        x, y = centre + generator.normal(0, 0.12 * side, 2)
        blobs.append((float(x), float(y), *generator.uniform(0.06, 0.2, 2) * side))
    noise = Noise(generator, ((side / 12, 1.0), (side / 30, 0.7), (side / 80, 0.45)))
    return Cloud(blobs=tuple(blobs), noise=noise, densest=float(generator.uniform(0.4, 0.62)))
