"""A pointwise model of one band, and the comparison of its result with plain numpy on what GDAL reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
from numpy.typing import NDArray

from pipeline.config import SegmentSpec
from pipeline.model.card import ModelCard
from pipeline.results.report import SceneReport
from pipeline.segment import segment_scene

CARD = ModelCard(bands=("red",), classes=("bright",))
TOP = 100.0
"""The value of probability 1."""


def graded(tiles: NDArray[Any]) -> NDArray[Any]:
    """The first band over `TOP`, in 0..1."""
    return np.clip(tiles[:, :1] / TOP, 0, 1)


def run_pointwise(path: Path, out: Path, spec: SegmentSpec | None = None, card: ModelCard = CARD) -> SceneReport:
    """Segment a scene by `graded`."""
    return segment_scene(path, out, predictor=graded, card=card, spec=spec)


def check_result(path: Path, folder: Path, valid: NDArray[np.bool_], *, band: int = 1) -> None:
    """Compare a result of `run_pointwise` with the band's pixels as GDAL reads them, where they are valid."""
    with rasterio.open(path) as source, rasterio.open(folder / "probability.tif") as mosaic:
        expected = np.clip(source.read(band).astype(np.float64) / TOP, 0, 1)
        assert (mosaic.shape, mosaic.transform) == (source.shape, source.transform)
        stored = mosaic.read(1)
    np.testing.assert_array_equal(stored == 255, ~valid)
    assert np.abs(stored[valid] - expected[valid] * 254).max(initial=0) <= 0.5 + 1e-3
    with rasterio.open(folder / "mask.tif") as mask:
        bright = mask.read(1)
    np.testing.assert_array_equal(bright, np.where(valid, stored >= 127, 255))
    table = pyogrio.read_dataframe(folder / "polygons.gpkg", layer="polygons", read_geometry=False)
    assert (table["area_m2"] > 0).all()
