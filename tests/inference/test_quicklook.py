"""The quicklook of a scene is the same for any regions: every step-th pixel."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import MakeScene

from pipeline.inference.region import quicklook
from pipeline.inference.region.quicklook import QuicklookSampler, merge_quicklooks
from pipeline.inference.tiling.regions import plan_regions
from pipeline.inference.tiling.strips import read_strips
from pipeline.inference.tiling.tiles import Tiling, plan_tiles
from pipeline.scene.describe import describe_scene


@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 1), (2, 3)])
def test_a_quicklook_is_every_nth_pixel_for_any_regions(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch, rows: int, cols: int
) -> None:
    monkeypatch.setattr(quicklook, "SCREEN", 40)
    pixels = np.random.default_rng(0).integers(0, 255, (4, 150, 117), np.uint8)
    scene = describe_scene(make_scene(pixels, tiled=32))
    plan = plan_tiles((150, 117), Tiling(tile_size=48, overlap=16))
    quicklooks = []
    for region in plan_regions(plan, rows=rows, cols=cols):
        taker = QuicklookSampler((150, 117), region.core, 4, "uint8")
        for strip in read_strips(scene, plan, (range(plan.shape[0]), range(plan.shape[1])), threads=1):
            taker.add(strip, plan.rows.starts[strip.row])
        quicklooks.append(taker.quicklook)
    np.testing.assert_array_equal(merge_quicklooks(quicklooks), pixels[:3, 2::4, 2::4])
