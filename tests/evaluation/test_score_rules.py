"""Edges of the scoring rules: bounds that are met exactly, objects at borders, blocks without a pixel."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.windows import Window

from pipeline.evaluation.metrics.counts import MATCHED_PREDICTED, PREDICTED, REFERENCE, BlockCounter, PixelPlanes
from pipeline.evaluation.metrics.matching import clip_to_area, score_object_curve
from pipeline.evaluation.metrics.objects import place_objects
from pipeline.evaluation.metrics.scores import score_counts
from pipeline.evaluation.records import BootstrapSpec, ClassPlanes, EvaluateSpec
from pipeline.evaluation.worst import find_worst
from pipeline.grid.raster_grid import RasterGrid

GRID = RasterGrid(crs=CRS.from_epsg(32633), transform=Affine(1, 0, 0, 0, -1, 40), height=40, width=40)


def boxes(*bounds: tuple[float, float, float, float]) -> np.ndarray:
    return np.array([shapely.box(*each) for each in bounds], dtype=object)


def test_a_pair_at_a_bound_is_not_above_it() -> None:
    """Of 4 pixels 3 are common: an IoU of 0.75, which is one of the bounds."""
    curve = score_object_curve(boxes((0, 0, 4, 1)), boxes((0, 0, 3, 1)))
    above = [bound for bound, matched in zip(curve.thresholds, curve.matched, strict=True) if matched]
    assert above == [0.5, 0.55, 0.6, 0.65, 0.7]


def test_an_object_of_which_exactly_half_lies_in_an_area_is_kept() -> None:
    found = clip_to_area(boxes((0, 0, 2, 1), (0, 2, 2.01, 3)), shapely.box(-1, -1, 1, 9))
    assert [part.bounds for part in found] == [(0, 0, 1, 1)]


def test_an_object_at_the_border_counts_in_the_last_block() -> None:
    sides = place_objects(boxes((39.5, -0.5, 41, 0.5), (-3, 20, 0.5, 21)), boxes(), GRID)
    assert sides[0].pixel.tolist() == [[39, 39], [19, 0]]


def counted(objects: list[tuple[int, tuple[int, int]]], labelled: np.ndarray | None = None) -> Any:
    counter = BlockCounter((40, 40), planes=1, block_size=20, band_px=1)
    nothing = np.zeros((1, 40, 40), bool)
    labelled = nothing if labelled is None else labelled
    valid = np.zeros((1, 40, 40), bool)
    valid[:, :20] = True
    for row in counter.windows():
        for core, window in row:
            rows, cols = window.toslices()
            part = (slice(None), rows, cols)
            planes = PixelPlanes(
                predicted=nothing[part], labelled=labelled[part], counted=valid[part], background=False
            )
            counter.add(core, window, planes)
    for column, pixel in objects:
        counter.add_objects(0, column, np.array([pixel]))
    return counter.finish()


def test_a_block_of_objects_without_a_counted_pixel_is_kept() -> None:
    counts = counted([(REFERENCE, (30, 30))])
    assert [*zip(counts.row.tolist(), counts.col.tolist(), strict=True)] == [(0, 0), (0, 20), (20, 20)]


def test_precision_is_of_what_was_predicted() -> None:
    counts = counted([(PREDICTED, (1, 1)), (PREDICTED, (1, 2)), (MATCHED_PREDICTED, (1, 1)), (REFERENCE, (1, 1))])
    scores = score_counts(counts, ClassPlanes(names=("roof",)), BootstrapSpec(resamples=0))
    assert scores.mean["object_precision"].value == 0.5


def test_the_worst_windows_are_those_with_most_errors_and_only_those_with_any() -> None:
    labelled = np.zeros((1, 40, 40), bool)
    labelled[0, :5, :5] = True
    labelled[0, :9, 20:29] = True
    table = counted([], labelled)
    scene: Any = SimpleNamespace(scene="town", shape=(40, 40))
    spec = EvaluateSpec(worst_windows=5, bootstrap=BootstrapSpec(block_size=20))
    found = find_worst([scene], [table], spec)
    assert [(w.row, w.col, w.wrong) for w in found] == [(0, 20, 81), (0, 0, 25)]
    assert find_worst([scene], [counted([])], spec) == []
    assert [w.wrong for w in find_worst([scene], [table], EvaluateSpec(worst_windows=1, bootstrap=spec.bootstrap))] == [
        81
    ]


@pytest.mark.parametrize("block_size", [16, 48, 100, 2000])
def test_windows_hold_whole_blocks(block_size: int) -> None:
    counter = BlockCounter((5000, 3000), planes=1, block_size=block_size, band_px=1)
    cores = [core for row in counter.windows() for core, _ in row]
    assert all(core.row_off % block_size == 0 == core.col_off % block_size for core in cores)
    assert sum(core.width * core.height for core in cores) == 5000 * 3000
    assert isinstance(cores[0], Window)
