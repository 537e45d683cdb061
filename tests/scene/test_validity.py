"""Which pixels are data: the rules of nodata values and masks, without a file."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import MaskFlags

from pipeline.scene.validity import NodataWhen, present_pixels, resolve_mask

WHEN = st.sampled_from(["all_bands", "any_band"])
ALL, SHARED, OWN, NODATA, ALPHA = (
    [MaskFlags.all_valid],
    [MaskFlags.per_dataset],
    [],
    [MaskFlags.nodata],
    [MaskFlags.per_dataset, MaskFlags.alpha],
)


@given(st.sampled_from(["uint8", "int16", "uint16", "int32"]), st.integers(0, 100), st.floats(0.01, 0.99), WHEN)
def test_a_nodata_value_between_two_integers_is_held_by_no_pixel(
    dtype: str, whole: int, fraction: float, when: NodataWhen
) -> None:
    pixels = np.arange(128, dtype=dtype).reshape(1, 8, 16)
    assert present_pixels(pixels, [whole + fraction], when).all()
    assert not present_pixels(pixels, [float(whole)], when).all()


@pytest.mark.parametrize(
    ("flags", "source"),
    [
        ([ALL, ALL], "none"),
        ([NODATA, ALPHA], "none"),  # both are known from the pixels
        ([SHARED, SHARED], "dataset"),
        ([OWN, OWN], "band"),
        ([SHARED, OWN], "band"),  # what one band shares says nothing of the other
        ([OWN, SHARED], "band"),
        ([ALL, OWN], "band"),
    ],
)
def test_a_stored_mask_is_read_once_only_if_all_bands_share_it(flags: list[Any], source: str) -> None:
    dataset: Any = SimpleNamespace(mask_flag_enums=flags)
    assert resolve_mask(dataset, [1, 2]) == source
