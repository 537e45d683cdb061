"""One look over the training part before learning: mean and deviation per band, and how common each class is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.card import Normalization
from pipeline.errors import LabelError, SceneError
from pipeline.training.blocks import plan_blocks
from pipeline.training.splits import Area

BLOCK_SIZE = 512
"""Side in pixels of the blocks that are looked at."""
MOST_BLOCKS = 400
"""Blocks looked at (about 100 million pixels), unless a class has not been seen by then."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Facts of the training part."""

    bands: tuple[str, ...]
    """Names of the bands."""
    pixels: int
    """Valid pixels looked at."""
    mean: NDArray[np.float64]
    """`(bands,)` in raw units (`pixel * scale + offset`)."""
    deviation: NDArray[np.float64]
    """`(bands,)` standard deviation in raw units."""
    class_share: NDArray[np.float64]
    """`(classes,)` share of valid, labelled pixels that are of the class."""

    def normalization(self) -> Normalization:
        """Raw pixels to mean 0 and deviation 1.

        Raises:
            SceneError: when a band is constant.
        """
        flat = [name for name, deviation in zip(self.bands, self.deviation, strict=True) if not deviation > 0]
        if flat:
            raise SceneError(f"the band(s) {', '.join(flat)} are constant over all training pixels; leave them out")
        return Normalization.standard(self.mean.tolist(), self.deviation.tolist())


def survey(areas: Sequence[Area], classes: Sequence[str], *, seed: int) -> Survey:
    """Look at the training blocks in random order until enough are seen and every class has been met.

    Raises:
        LabelError: a class has no pixel in the training part.
        SceneError: there is no valid pixel.
    """
    blocks = [(area, block) for area in areas for block in plan_blocks(area.source.scene.grid.shape, BLOCK_SIZE)]
    moments = _Moments(len(areas[0].source.scene.bands))
    found = np.zeros((len(classes), 2), np.int64)
    for seen, at in enumerate(np.random.default_rng([seed, 1]).permutation(len(blocks))):
        if seen >= MOST_BLOCKS and found[:, 0].all():
            break
        area, block = blocks[at]
        _look(area, block, moments, found)
    if moments.count == 0:
        raise SceneError("the training scenes have no valid pixel; check their nodata, alpha and masks")
    empty = [name for name, pixels in zip(classes, found[:, 0], strict=True) if pixels == 0]
    if empty:
        raise LabelError(
            f"no training pixel is of class {', '.join(empty)}: its objects miss every pixel centre or lie in nodata "
            "or held-out blocks; check labels and classes, or choose another seed or validation"
        )
    return Survey(
        bands=areas[0].source.scene.bands,
        pixels=moments.count,
        mean=moments.mean,
        deviation=np.sqrt(moments.squares / moments.count),
        class_share=found[:, 0] / np.maximum(found[:, 1], 1),
    )


class _Moments:
    """Mean and summed squared deviation per band, merged block by block (Chan, Golub & LeVeque 1983)."""

    def __init__(self, bands: int) -> None:
        self.count = 0
        self.mean = np.zeros(bands)
        self.squares = np.zeros(bands)

    def add(self, values: NDArray[np.float64]) -> None:
        """Take in `(bands, n)` raw values."""
        count = values.shape[1]
        if count == 0:
            return
        mean = values.mean(axis=1)
        shift, total = mean - self.mean, self.count + count
        self.squares += ((values - mean[:, None]) ** 2).sum(axis=1) + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


def _look(area: Area, block: Window, moments: _Moments, found: NDArray[np.int64]) -> None:
    sample, scene = area.source.read(block), area.source.scene
    counted = sample.valid & area.free_pixels(block)
    scales, offsets = np.array(scene.scales), np.array(scene.offsets)
    moments.add(sample.pixels[:, counted].astype(np.float64) * scales[:, None] + offsets[:, None])
    target = sample.target[:, counted]
    found[:, 0] += (target == 1).sum(axis=1)
    found[:, 1] += (target <= 1).sum(axis=1)
