"""Preview image of a scene's result: a PNG with the outlines of its classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PNG_LEVEL = 3
"""zlib level of previews: five times faster than the highest, and here no larger."""
STRETCH_SAMPLE = 100_000
"""About how many pixels the contrast stretch of a preview samples."""


def write_preview(
    path: Path, pixels: NDArray[np.generic], mask: NDArray[np.uint8], colours: Mapping[int, tuple[int, int, int, int]]
) -> None:
    """Write a PNG of the scene with the outlines of its classes.

    Args:
        path: of the PNG.
        pixels: `(bands, h, w)`; the first three are drawn as red, green and blue, or else the first as gray.
        mask: `(h, w)` class values, 255 = nodata, drawn white.
        colours: class value -> RGBA of its outline.
    """
    from PIL import Image

    valid = mask != 255
    image = _stretch(pixels[:3] if len(pixels) >= 3 else pixels[:1], valid)
    image[~valid] = 255
    for value, (red, green, blue, _) in colours.items():
        if value not in (0, 255):
            image[_outline(mask == value)] = (red, green, blue)
    Image.fromarray(image).save(path, compress_level=PNG_LEVEL)


def _stretch(pixels: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Stretch the 2nd to 98th percentile of the valid pixels to 0..255, `(h, w, 3)`."""
    bands = pixels.astype(np.float32)
    usable = valid & np.isfinite(bands).all(axis=0)
    if not usable.any():
        return np.full((*valid.shape, 3), 255, np.uint8)
    sample = bands[:, usable]
    low, high = np.percentile(sample[:, :: max(1, sample.shape[1] // STRETCH_SAMPLE)], (2, 98))
    scaled = np.clip(np.nan_to_num(bands, copy=False, nan=low), low, high, out=bands)
    scaled -= low
    scaled *= 255 / max(float(high - low), 1e-12)
    return np.array(np.broadcast_to(scaled.astype(np.uint8), (3, *valid.shape)).transpose(1, 2, 0), order="C")


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of `inside` with a 4-neighbour outside it."""
    padded = np.pad(inside, 1, mode="edge")
    core = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return inside & ~core
