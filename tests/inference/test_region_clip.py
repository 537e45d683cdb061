"""Finished rows of a region: cut to the area in every class, and checked when they arrive."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window

from pipeline.errors import ModelError
from pipeline.inference.region.clip import RegionClip
from pipeline.inference.region.run import _arrived

HEIGHT, WIDTH = 6, 9


def runs_of(inside: np.ndarray[Any, Any], top: int, bottom: int) -> np.ndarray[Any, Any]:
    """The pixels of an area in some rows, as row, first column and one past the last: here each on its own."""
    rows, cols = np.nonzero(inside[top:bottom])
    return np.column_stack([rows + top, cols, cols + 1])


@given(st.data(), st.sampled_from(["uint8", "float32"]), st.integers(1, 3))
def test_rows_outside_an_area_are_nodata_in_every_class(data: st.DataObject, stored: Any, classes: int) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=HEIGHT * WIDTH, max_size=HEIGHT * WIDTH))
    inside = np.array(bits).reshape(HEIGHT, WIDTH)
    top, left = data.draw(st.integers(0, HEIGHT - 1)), data.draw(st.integers(0, WIDTH - 1))
    bottom, right = data.draw(st.integers(top + 1, HEIGHT)), data.draw(st.integers(left + 1, WIDTH))
    area: Any = SimpleNamespace(runs=lambda first, last: runs_of(inside, first, last))
    clip = RegionClip(area, Window(left, top, right - left, bottom - top), stored)
    whole = np.full((classes, bottom - top, right - left), 7, stored)
    middle = data.draw(st.integers(0, bottom - top))
    kept = sum(clip.keep(part) for part in (whole[:, :middle], whole[:, middle:]))
    nodata = np.nan if stored == "float32" else 255
    part = inside[top:bottom, left:right]
    np.testing.assert_array_equal(whole, np.broadcast_to(np.where(part, 7, nodata).astype(stored), whole.shape))
    assert kept == part.sum()


@pytest.mark.parametrize("extremes", [(0.0, 1.5), (-0.5, 1.0), (float("nan"), float("nan"))])
def test_rows_that_arrive_late_are_checked_when_they_do(extremes: tuple[float, float]) -> None:
    rows: Any = SimpleNamespace(wait=lambda: (np.zeros((1, 2, 2)), extremes))
    with pytest.raises(ModelError, match=r"probabilities in 0\.\.1"):
        _arrived(0, rows)
