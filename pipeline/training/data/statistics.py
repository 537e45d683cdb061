"""Dataset statistics of the training part: mean, deviation and percentiles of each band, and share of each class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.errors import LabelError, SceneError
from pipeline.model import Normalization
from pipeline.scene import Scene
from pipeline.training.data.blocks import plan_blocks
from pipeline.training.data.percentiles import Percentiles, make_percentiles
from pipeline.training.data.splits import Area
from pipeline.training.settings.data import NormalizationSpec

BLOCK_SIZE = 512
"""Side in pixels of the blocks that are read."""
MAX_BLOCKS = 400
"""Blocks read (about 100 million pixels); more are read only while a class has no pixel yet."""
MAX_ABS_VALUE = 1e30
"""Larger magnitudes are fill values, not measurements; a single one would spoil mean and deviation."""


@dataclass(frozen=True, kw_only=True)
class DatasetStatistics:
    """Statistics of the valid pixels read from the training part."""

    bands: tuple[str, ...]
    pixels: int
    mean: NDArray[np.float64]
    """`(bands,)` in raw units (`pixel * scale + offset`)."""
    deviation: NDArray[np.float64]
    """`(bands,)` standard deviation in raw units."""
    value_range: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    """Low and high percentile, each `(bands,)` in raw units; None unless normalisation is by percentiles."""
    class_share: NDArray[np.float64]
    """`(classes,)` share of valid, labelled pixels that are of the class."""

    def normalization(self) -> Normalization:
        """Normalisation to mean 0 and deviation 1, or to the percentile range; SceneError when a band is constant."""
        spread = self.deviation if self.value_range is None else self.value_range[1] - self.value_range[0]
        flat = [name for name, width in zip(self.bands, spread, strict=True) if not width > 0]
        if flat:
            raise SceneError(
                f"the band(s) {', '.join(flat)} are constant over all training pixels"
                f"{'' if self.value_range is None else ' between the percentiles normalization.low and high'}; "
                "leave them out with bands"
            )
        if self.value_range is None:
            return Normalization.standard(self.mean.tolist(), self.deviation.tolist())
        return Normalization.value_range(*(each.tolist() for each in self.value_range))


def compute_statistics(
    areas: Sequence[Area], classes: Sequence[str], *, seed: int, spec: NormalizationSpec | None = None
) -> DatasetStatistics:
    """Read training blocks in random order until enough are read and every class has a pixel.

    Percentiles are exact over the pixels read for integers of at most 16 bits whose scale and offset tags are equal
    in all scenes, and those of a seeded uniform sample of 262,144 pixels otherwise.
    """
    values = _BandStatistics(areas, spec or NormalizationSpec(), seed)
    blocks = [(area, block) for area in areas for block in plan_blocks(area.source.scene.grid.shape, BLOCK_SIZE)]
    # Per class: pixels of the class, and labelled pixels.
    found = np.zeros((len(classes), 2), np.int64)

    # Random order makes the blocks read a fair sample; a rare class may need more than `MAX_BLOCKS`.
    for seen, at in enumerate(np.random.default_rng([seed, 1]).permutation(len(blocks))):
        if seen >= MAX_BLOCKS and found[:, 0].all():
            break
        area, block = blocks[at]
        _add_block(area, block, values, found)
    if values.moments.count == 0:
        raise SceneError("the training scenes have no valid pixel; check their nodata, alpha and masks")
    empty = [name for name, pixels in zip(classes, found[:, 0], strict=True) if pixels == 0]
    if empty:
        raise LabelError(
            f"no training pixel is of class {', '.join(empty)}: its objects miss every pixel centre or lie in nodata "
            "or held-out blocks; check labels, classes and class_map, or choose another seed or split"
        )
    return DatasetStatistics(
        bands=areas[0].source.scene.bands,
        pixels=values.moments.count,
        mean=values.moments.mean,
        deviation=np.sqrt(values.moments.squares / values.moments.count),
        value_range=values.value_range(),
        class_share=found[:, 0] / np.maximum(found[:, 1], 1),
    )


class _Moments:
    """Mean and summed squared deviation per band, merged block by block (Chan, Golub & LeVeque 1983)."""

    def __init__(self, bands: int) -> None:
        self.count = 0
        self.mean = np.zeros(bands)
        self.squares = np.zeros(bands)

    def add(self, values: NDArray[np.float64]) -> None:
        """Add `(bands, n)` raw values."""
        count = values.shape[1]
        if count == 0:
            return
        mean = values.mean(axis=1)

        # Merging two samples adds shift^2 * n1 * n2 / (n1 + n2) to the sum of squares.
        shift, total = mean - self.mean, self.count + count
        self.squares += ((values - mean[:, None]) ** 2).sum(axis=1) + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


class _BandStatistics:
    """Moments and percentiles of each band."""

    def __init__(self, areas: Sequence[Area], spec: NormalizationSpec, seed: int) -> None:
        first = areas[0].source.scene
        self.spec = spec
        self.moments = _Moments(len(first.bands))
        self.tags = (first.scales, first.offsets)
        self.same_tags = all((a.source.scene.scales, a.source.scene.offsets) == self.tags for a in areas)
        self.percentiles: Percentiles | None = None
        if spec.kind == "percentile":
            dtype = first.dtype if self.same_tags else "float64"
            self.percentiles = make_percentiles(len(first.bands), dtype, seed=seed)

    def add(self, pixels: NDArray[np.generic], raw: NDArray[np.float64]) -> None:
        """Add `(bands, n)` pixels as stored, and in raw units."""
        self.moments.add(raw)
        if self.percentiles is not None:
            self.percentiles.add(pixels if self.same_tags else raw)

    def value_range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        if self.percentiles is None:
            return None
        scales, offsets = (np.array(each) for each in self.tags) if self.same_tags else (1.0, 0.0)
        low, high = (self.percentiles.at(p) * scales + offsets for p in (self.spec.low, self.spec.high))
        # A negative scale reverses the order.
        return np.minimum(low, high), np.maximum(low, high)


def _add_block(area: Area, block: Window, values: _BandStatistics, found: NDArray[np.int64]) -> None:
    sample, scene = area.source.read(block), area.source.scene
    usable = sample.valid & area.free_pixels(block)
    pixels = sample.pixels[:, usable]
    _check_fill_values(pixels, scene)
    scales, offsets = np.array(scene.scales), np.array(scene.offsets)
    values.add(pixels, pixels.astype(np.float64) * scales[:, None] + offsets[:, None])
    target = sample.target[:, usable]
    found[:, 0] += (target == 1).sum(axis=1)
    found[:, 1] += (target <= 1).sum(axis=1)


def _check_fill_values(pixels: NDArray[np.generic], scene: Scene) -> None:
    """Refuse `(bands, n)` valid pixels that hold a fill value, such as -3.4e38 without a nodata tag."""
    if pixels.dtype.kind != "f" or not pixels.size:
        return
    for name, values in zip(scene.bands, pixels, strict=True):
        largest = values[np.abs(values).argmax()]
        if abs(largest) > MAX_ABS_VALUE:
            raise SceneError(
                f"{scene.location}: band {name} holds {largest:.8g}, which is no measurement but often means nodata; "
                f"if so set reading.nodata={largest!s} (and reading.nodata_when=any_band where single bands hold it), "
                "or write the file again without it"
            )
