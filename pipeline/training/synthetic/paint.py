"""Rasterization of overlapping shapes: a raster of shape numbers, and a table of their materials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.features import rasterize

from pipeline.training.synthetic.materials import Material

PIXEL_M = 0.5
"""Ground size of a pixel."""
Cover = Literal["ground", "building", "road", "water", "tree", "car"]
COVERS: tuple[Cover, ...] = get_args(Cover)
"""Land cover classes of a pixel; the position is the value in `Town.cover`."""


@dataclass(kw_only=True)
class Painting:
    """Shapes with materials in painting order; shape number 0 is the ground below all shapes."""

    ground: Material
    """The material where no shape is painted."""
    shapes: list[shapely.Geometry] = field(default_factory=list)
    """Polygons in metres east and south of the scene's upper left corner."""
    materials: list[Material] = field(default_factory=list)
    covers: list[Cover] = field(default_factory=list)

    def add(self, shape: shapely.Geometry, material: Material, cover: Cover = "ground") -> None:
        """Paint one shape over the previous ones; an empty shape is ignored."""
        if not shape.is_empty:
            self.shapes.append(shape)
            self.materials.append(material)
            self.covers.append(cover)

    def extend(
        self, shapes: Iterable[shapely.Geometry], materials: Sequence[Material], cover: Cover = "ground"
    ) -> None:
        """Paint several shapes, each with its own material."""
        for shape, material in zip(shapes, materials, strict=True):
            self.add(shape, material, cover)

    def cover_values(self) -> NDArray[np.uint8]:
        """The index in `COVERS` of each shape, by shape number; number 0 is the ground."""
        return np.array([0, *(COVERS.index(cover) for cover in self.covers)], np.uint8)

    def table(self) -> Table:
        """The materials as arrays, indexed by shape number."""
        materials = [self.ground, *self.materials]
        dark = np.array([material.dark for material in materials], np.float32)
        light = np.array([material.light for material in materials], np.float32)
        wave = np.array([2 * np.pi / material.stripe_m if material.stripe_m else 0.0 for material in materials])
        angle = np.array([material.stripe_angle for material in materials])
        return Table(
            dark=dark,
            span=light - dark,
            contrast=np.array([material.contrast for material in materials], np.float32),
            grain=np.array([material.grain for material in materials], np.float32),
            stripe_depth=np.array([material.stripe_depth for material in materials], np.float32),
            wave_x=(wave * np.cos(angle)).astype(np.float32),
            wave_y=(wave * np.sin(angle)).astype(np.float32),
        )


@dataclass(frozen=True, kw_only=True)
class Table:
    """Materials as arrays; the first axis is the shape number."""

    dark: NDArray[np.float32]
    """Dark colour, `(n, 4)`."""
    span: NDArray[np.float32]
    """Light minus dark colour, `(n, 4)`."""
    contrast: NDArray[np.float32]
    """Shift of the colour per standard deviation of the noise, `(n,)`."""
    grain: NDArray[np.float32]
    """Relative deviation of the white noise per pixel, `(n,)`."""
    stripe_depth: NDArray[np.float32]
    """Relative amplitude of stripes, `(n,)`."""
    wave_x: NDArray[np.float32]
    """Stripe phase per metre east, radians, `(n,)`."""
    wave_y: NDArray[np.float32]
    """Stripe phase per metre south, radians, `(n,)`."""


def burn(
    shapes: Sequence[shapely.Geometry], height: int, width: int, *, values: Sequence[int] | None = None
) -> NDArray[np.int32]:
    """Shape numbers (from 1) or `values` at pixel centres `(height, width)`, later shapes over earlier ones; else 0.

    `shapes` are polygons in metres east and south of the upper left corner.
    """
    numbered = zip(shapes, values if values is not None else range(1, len(shapes) + 1), strict=True)
    ids = np.zeros((height, width), np.int32)
    if len(shapes):
        rasterize(numbered, out=ids, transform=Affine.scale(PIXEL_M))
    return ids
