"""Surface materials: reflectances and textures of ground, crops, roofs, cars and tree crowns in four bands.

Colours are reflectances `(red, green, blue, near infrared)` in 0..1, typical of spectral libraries in the literature
and tuned by eye. Several roofs are deliberately close to soil, gravel or asphalt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

Colour = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """Surface colour and texture; smooth noise varies the colour between `dark` and `light`."""

    dark: Colour
    """Reflectance where the smooth noise is low."""
    light: Colour
    """Reflectance where the smooth noise is high."""
    contrast: float = 0.35
    """Shift of the colour per standard deviation of the noise, as a share of the range, 0..1."""
    grain: float = 0.03
    """Relative standard deviation of white noise per pixel."""
    stripe_m: float = 0.0
    """Period of parallel stripes in metres; 0 = none."""
    stripe_angle: float = 0.0
    """Direction across the stripes, radians from east towards south."""
    stripe_depth: float = 0.0
    """Amplitude of the stripes, relative."""

    def varied(self, generator: np.random.Generator, spread: float = 0.1) -> Material:
        """A random variant of the material: brightness and tint changed by about `spread`, relative."""
        return self.scaled(np.exp(generator.normal(0, spread) + generator.normal(0, spread / 3, 4)))

    def scaled(self, gain: float | np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Material:
        """Both colours multiplied by one gain or one per band."""
        dark, light = np.asarray(self.dark) * gain, np.asarray(self.light) * gain
        return replace(self, dark=tuple(dark.tolist()), light=tuple(light.tolist()))

    def striped(self, period_m: float, angle: float, depth: float) -> Material:
        """With stripes of this period, direction and relative depth."""
        return replace(self, stripe_m=period_m, stripe_angle=angle, stripe_depth=depth)


GROUND: dict[str, Material] = {
    "meadow": Material(dark=(0.075, 0.105, 0.055, 0.36), light=(0.15, 0.16, 0.085, 0.33), grain=0.07),
    "lawn": Material(dark=(0.055, 0.10, 0.042, 0.42), light=(0.10, 0.135, 0.06, 0.38), grain=0.05),
    "dry grass": Material(dark=(0.14, 0.14, 0.075, 0.29), light=(0.22, 0.19, 0.115, 0.31), grain=0.06),
    "soil": Material(dark=(0.16, 0.12, 0.085, 0.24), light=(0.25, 0.19, 0.135, 0.32), grain=0.05),
    "gravel": Material(dark=(0.20, 0.185, 0.16, 0.24), light=(0.29, 0.265, 0.225, 0.31), grain=0.06),
    "concrete": Material(dark=(0.22, 0.215, 0.20, 0.25), light=(0.31, 0.30, 0.28, 0.33), grain=0.03),
    "asphalt": Material(dark=(0.095, 0.095, 0.095, 0.115), light=(0.14, 0.14, 0.137, 0.16), grain=0.03),
    "old asphalt": Material(dark=(0.14, 0.138, 0.13, 0.165), light=(0.19, 0.185, 0.175, 0.21), grain=0.04),
    "dirt road": Material(dark=(0.22, 0.175, 0.125, 0.29), light=(0.32, 0.265, 0.195, 0.37), grain=0.05),
    "water": Material(dark=(0.030, 0.042, 0.042, 0.018), light=(0.050, 0.062, 0.052, 0.028), grain=0.05),
    "bank": Material(dark=(0.11, 0.11, 0.07, 0.24), light=(0.20, 0.175, 0.12, 0.27), grain=0.09),
    "forest floor": Material(dark=(0.045, 0.055, 0.032, 0.20), light=(0.075, 0.075, 0.045, 0.24), grain=0.1),
    "pool": Material(dark=(0.09, 0.26, 0.33, 0.06), light=(0.12, 0.31, 0.38, 0.07), grain=0.02),
    "marking": Material(dark=(0.34, 0.34, 0.33, 0.35), light=(0.42, 0.42, 0.41, 0.42), grain=0.03),
}
"""Surfaces that are not buildings."""

CROPS: tuple[Material, ...] = (
    Material(dark=(0.045, 0.085, 0.036, 0.46), light=(0.07, 0.11, 0.048, 0.42), grain=0.05),
    Material(dark=(0.06, 0.115, 0.048, 0.50), light=(0.085, 0.14, 0.06, 0.44), grain=0.04),
    Material(dark=(0.22, 0.19, 0.115, 0.33), light=(0.29, 0.25, 0.155, 0.38), grain=0.04),
    Material(dark=(0.15, 0.112, 0.08, 0.22), light=(0.21, 0.16, 0.115, 0.28), grain=0.05),
    Material(dark=(0.25, 0.20, 0.15, 0.33), light=(0.31, 0.255, 0.19, 0.38), grain=0.05),
    Material(dark=(0.16, 0.17, 0.06, 0.40), light=(0.22, 0.215, 0.075, 0.42), grain=0.05),
    Material(dark=(0.10, 0.115, 0.065, 0.33), light=(0.15, 0.15, 0.09, 0.31), grain=0.06),
)
"""Green, lush, ripe, ploughed, bare, flowering and stubble fields."""

ROOFS: dict[str, Material] = {
    "red tiles": Material(dark=(0.21, 0.105, 0.075, 0.27), light=(0.29, 0.155, 0.105, 0.34), grain=0.05),
    "brown tiles": Material(dark=(0.15, 0.105, 0.08, 0.21), light=(0.205, 0.15, 0.115, 0.27), grain=0.05),
    "earth tiles": Material(dark=(0.19, 0.15, 0.105, 0.27), light=(0.26, 0.205, 0.15, 0.32), grain=0.05),
    "slate": Material(dark=(0.105, 0.108, 0.115, 0.13), light=(0.145, 0.148, 0.155, 0.17), grain=0.04),
    "bitumen": Material(dark=(0.095, 0.094, 0.092, 0.115), light=(0.14, 0.138, 0.132, 0.16), grain=0.04),
    "grey concrete": Material(dark=(0.21, 0.205, 0.19, 0.24), light=(0.29, 0.28, 0.26, 0.31), grain=0.04),
    "gravel roof": Material(dark=(0.20, 0.182, 0.155, 0.24), light=(0.27, 0.25, 0.21, 0.30), grain=0.06),
    "white membrane": Material(dark=(0.45, 0.45, 0.44, 0.45), light=(0.56, 0.56, 0.55, 0.55), grain=0.02),
    "bright metal": Material(dark=(0.36, 0.37, 0.37, 0.36), light=(0.47, 0.48, 0.48, 0.46), grain=0.03),
    "rusty metal": Material(dark=(0.20, 0.135, 0.095, 0.24), light=(0.37, 0.33, 0.29, 0.36), contrast=0.6, grain=0.06),
    "dull metal": Material(dark=(0.25, 0.25, 0.245, 0.26), light=(0.33, 0.33, 0.32, 0.33), grain=0.04),
    "blue metal": Material(dark=(0.10, 0.16, 0.27, 0.22), light=(0.13, 0.20, 0.33, 0.26), grain=0.03),
    "green metal": Material(dark=(0.085, 0.14, 0.10, 0.18), light=(0.115, 0.18, 0.13, 0.22), grain=0.03),
    "planted": Material(dark=(0.10, 0.12, 0.06, 0.30), light=(0.16, 0.16, 0.09, 0.28), grain=0.08),
}

CARS: tuple[Colour, ...] = (
    (0.55, 0.55, 0.55, 0.52),
    (0.04, 0.04, 0.045, 0.05),
    (0.30, 0.31, 0.32, 0.31),
    (0.30, 0.05, 0.045, 0.28),
    (0.05, 0.08, 0.22, 0.16),
)
"""White, black, silver, red, blue."""

CROWNS: tuple[Colour, ...] = (
    (0.056, 0.092, 0.042, 0.44),
    (0.078, 0.118, 0.050, 0.50),
    (0.050, 0.072, 0.040, 0.32),
    (0.115, 0.120, 0.054, 0.42),
)
"""Broadleaf, young broadleaf, conifer, yellowing."""
