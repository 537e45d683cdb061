"""Polygon shaping: pixel coordinates to map coordinates, true areas and lengths, size filter.

This module handles one polygon at a time; steps that depend on neighbours (joining across seams,
simplifying shared borders, finding true holes) belong to `pipeline.polygons.stream`, so no
polygon is filtered or simplified before it is whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from pipeline.errors import SettingsError
from pipeline.grid import RasterGrid, measure_on_ground


@dataclass(frozen=True, kw_only=True)
class PolygonSpec:
    """How the mosaic becomes polygons; with the defaults they are the mask's pixels, exactly."""

    threshold: float | None = None
    """A pixel is of a class where `probability >= threshold`, in (0, 1]; None = the model's. Not for softmax."""
    min_area_m2: float = 0.0
    """Whole polygons smaller than this are left out; square metres, 0 = keep all."""
    fill_holes_m2: float = 0.0
    """Holes up to this size that hold nothing but valid pixels of no class are filled; square metres, 0 = none."""
    simplify_m: float = 0.0
    """Borders are simplified by up to this distance, shared borders equally on both sides; metres, 0 = pixel edges."""
    connectivity: Literal[4, 8] = 4
    """Pixels of one polygon share an edge (4), or an edge or a corner (8)."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise SettingsError(f"threshold must be above 0 and at most 1, not {self.threshold}")
        for key in ("min_area_m2", "fill_holes_m2", "simplify_m"):
            value = getattr(self, key)
            if not (value >= 0 and isfinite(value)):
                raise SettingsError(f"{key} must be >= 0, not {value}")
        if self.connectivity not in (4, 8):
            raise SettingsError(f"connectivity must be 4 or 8, not {self.connectivity}")


@dataclass(frozen=True, kw_only=True)
class PolygonBatch:
    """Whole polygons on the pixel plane, `x = col, y = row` of pixel corners; one row per polygon."""

    geometry: NDArray[np.object_]
    """Valid polygons (4-connected) or multipolygons (8-connected), in canonical form."""
    class_value: NDArray[np.uint8]
    """The class as in `mask.tif`."""
    pixel_count: NDArray[np.int64]
    """Pixels of the class; filled holes and simplifying do not change it."""
    mean_probability: NDArray[np.float64]
    """Mean over those pixels of the class's probability, 0..1."""
    max_probability: NDArray[np.float64]
    """Greatest probability of such a pixel, 0..1."""

    def __len__(self) -> int:
        return len(self.geometry)


@dataclass(frozen=True, kw_only=True)
class Polygons:
    """Finished polygons in CRS coordinates; one row per polygon."""

    geometry: NDArray[np.object_]
    """Valid polygons or multipolygons; shells counter-clockwise, holes clockwise (x to the right, y upwards)."""
    class_value: NDArray[np.uint8]
    """The class as in `mask.tif`."""
    area_m2: NDArray[np.float64]
    """True area on the ellipsoid."""
    perimeter_m: NDArray[np.float64]
    """True length of all rings."""
    pixel_count: NDArray[np.int64]
    """Pixels of the class in the mask."""
    mean_probability: NDArray[np.float64]
    """Mean probability of those pixels, 0..1."""
    max_probability: NDArray[np.float64]
    """Greatest probability of such a pixel, 0..1."""

    def __len__(self) -> int:
        return len(self.geometry)


def shape_polygons(batches: Iterable[PolygonBatch], grid: RasterGrid, spec: PolygonSpec) -> Iterator[Polygons]:
    """Transform polygons to map coordinates, measure them, and drop the small ones; lazily, batch by batch.

    Args:
        batches: from `vectorize`.
        grid: of the scene.
        spec: gives the minimum area.
    """
    for batch in batches:
        geometry = pixels_to_map(batch.geometry, grid.transform)
        area_m2, perimeter_m = measure_on_ground(geometry, grid.crs)
        kept = np.flatnonzero(area_m2 >= spec.min_area_m2)
        if len(kept):
            yield Polygons(
                geometry=geometry[kept],
                class_value=batch.class_value[kept],
                area_m2=area_m2[kept],
                perimeter_m=perimeter_m[kept],
                pixel_count=batch.pixel_count[kept],
                mean_probability=batch.mean_probability[kept],
                max_probability=batch.max_probability[kept],
            )


def pixels_to_map(geometry: NDArray[np.object_], transform: Affine) -> NDArray[np.object_]:
    """Polygons from pixel to map coordinates, shells counter-clockwise for any orientation of the grid.

    >>> square = shapely.box(0, 0, 1, 1, ccw=True)
    >>> print(pixels_to_map(np.array([square]), Affine(2, 0, 100, 0, -2, 50))[0])
    POLYGON ((102 50, 100 50, 100 48, 102 48, 102 50))
    """
    kind, xy, offsets = shapely.to_ragged_array(geometry)
    a, b, c, d, e, f = tuple(transform)[:6]
    placed = np.stack([a * xy[:, 0] + b * xy[:, 1] + c, d * xy[:, 0] + e * xy[:, 1] + f], axis=1)
    if transform.determinant < 0:
        placed = placed[_backwards(offsets[0])]
    result: NDArray[np.object_] = shapely.from_ragged_array(kind, placed, offsets)
    return result


def _backwards(start: NDArray[np.int64]) -> NDArray[np.int64]:
    """The vertices with each closed ring `start[k]:start[k + 1]` reversed."""
    mirror = np.repeat(start[:-1] + start[1:] - 1, np.diff(start))
    return mirror - np.arange(start[-1])
