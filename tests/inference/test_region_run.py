"""The width of a region follows a budget of bytes, whatever the bands and classes; what fits nowhere is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeScene
from support.models import ROOF, brightness

from pipeline.config import SegmentSpec
from pipeline.errors import TransientError
from pipeline.inference.region import run as region
from pipeline.inference.region.job import REGION_BYTES, max_region_columns
from pipeline.inference.tiling.tiles import Tiling, TilingSpec, plan_tiles
from pipeline.model.card import ModelCard
from pipeline.mosaic.levels import LevelType
from pipeline.mosaic.writer import MosaicSpec
from pipeline.scene.describe import describe_scene
from pipeline.segment import segment_scene


@pytest.mark.parametrize(("bands", "dtype"), [(1, "uint8"), (4, "uint16"), (12, "float32")])
@pytest.mark.parametrize(("classes", "stored"), [(1, "uint8"), (20, "float32"), (100, "uint8")])
@pytest.mark.parametrize("tile", [256, 1024])
def test_buffers_of_a_region_fit_the_budget(
    make_scene: MakeScene, bands: int, dtype: str, classes: int, stored: LevelType, tile: int
) -> None:
    path = make_scene(bands=1, height=8, width=8, descriptions=["red"])
    scene = replace(describe_scene(path), bands=("red",) * bands, dtype=dtype)
    card = ModelCard(bands=("red",), classes=tuple(f"class {k}" for k in range(classes)))
    plan = plan_tiles((100_000, 100_000), Tiling(tile_size=tile, overlap=tile // 8))
    width = max_region_columns(scene, plan, card, MosaicSpec(dtype=stored))
    row_bytes = 512 * 3 * bands * np.dtype(dtype).itemsize + classes * 4 * (tile + tile // 8)
    assert width >= tile
    assert width == tile or width * row_bytes < REGION_BYTES
    assert width > 10_980 or (bands, classes) != (1, 1), "common scenes are not cut without need"


def test_a_strip_of_one_tile_that_does_not_fit_names_the_setting(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(region, "StripBlender", refuse)
    scene = make_scene(bands=1, height=64, width=64, descriptions=["red"])
    spec = SegmentSpec(tiling=TilingSpec(tile_size=32, overlap=8))
    with pytest.raises(TransientError, match=r"one tile \(.* px\) wide; set a smaller tiling.tile_size"):
        segment_scene(scene, tmp_path / "out", predictor=brightness, card=ROOF, spec=spec)
