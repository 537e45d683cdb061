"""Dataset statistics measure the training part only, and exactly where they promise it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from conftest import MakeScene
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window
from support.labelled import (
    ORIGIN,
    Town,
    polygon_labels,
)

from pipeline.errors import LabelError, SceneError, SettingsError
from pipeline.scene.describe import describe_scene
from pipeline.training.data.percentiles import CountedPercentiles, SampledPercentiles
from pipeline.training.data.samples import LabelledScene
from pipeline.training.data.splits import Area
from pipeline.training.data.statistics import compute_statistics
from pipeline.training.settings.data import NormalizationSpec


def test_the_survey_measures_valid_training_pixels_in_raw_units(town: Town, make_scene: MakeScene) -> None:
    valid = np.ones((96, 96), bool)
    valid[:, :30] = False
    image = make_scene(town.pixels, transform=ORIGIN, mask=valid, scales=(2.0, 1.0, 1.0), offsets=(5.0, 0.0, 0.0))
    source = LabelledScene(describe_scene(image), polygon_labels(town))
    facts = compute_statistics([Area(source=source, held_out=(Window(50, 20, 30, 10),))], ("roof",), seed=0)
    valid[20:30, 50:80] = False
    raw = town.pixels[:, valid] * np.array([[2.0], [1.0], [1.0]]) + np.array([[5.0], [0.0], [0.0]])
    assert facts.pixels == valid.sum()
    assert np.allclose(facts.mean, raw.mean(axis=1))
    assert np.allclose(facts.deviation, raw.std(axis=1))
    assert np.allclose(facts.class_share, town.mask[valid].mean())


def test_a_class_without_a_training_pixel_and_a_constant_band_are_refused(town: Town, make_scene: MakeScene) -> None:
    labels = polygon_labels(town, ("roof", "pool"), "kind")
    source = LabelledScene(describe_scene(town.image), labels)
    with pytest.raises(LabelError, match="no training pixel is of class pool"):
        compute_statistics([Area(source=source)], ("roof", "pool"), seed=0)
    flat = town.pixels.copy()
    flat[1] = 9
    source = LabelledScene(describe_scene(make_scene(flat, transform=ORIGIN)), polygon_labels(town))
    with pytest.raises(SceneError, match=r"band\(s\) green are constant|band\(s\) .* are constant"):
        compute_statistics([Area(source=source)], ("roof",), seed=0).normalization()


@pytest.mark.parametrize(("fill", "dtype"), [(-3.4028235e38, "float32"), (1e300, "float64")])
def test_a_fill_value_without_a_nodata_tag_is_refused_with_its_place(
    town: Town, make_scene: MakeScene, fill: float, dtype: str
) -> None:
    pixels = town.pixels.astype(dtype)
    pixels[1, 40, 50] = fill
    scene = describe_scene(make_scene(pixels, name="filled.tif", transform=ORIGIN))
    source = LabelledScene(scene, polygon_labels(town))
    with pytest.raises(SceneError, match=rf"filled\.tif: band {scene.bands[1]} holds .*e\+.*reading\.nodata=") as error:
        compute_statistics([Area(source=source)], ("roof",), seed=0)
    (suggested,) = re.findall(r"reading\.nodata=(\S+)", str(error.value))
    assert np.dtype(dtype).type(suggested) == np.dtype(dtype).type(fill)


@given(
    dtype=st.sampled_from(["uint8", "int8", "uint16", "int16"]),
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    percent=st.floats(0, 100),
    seed=st.integers(0, 99),
)
def test_counted_percentiles_are_those_of_all_values(dtype: str, sizes: list[int], percent: float, seed: int) -> None:
    rng, info = np.random.default_rng(seed), np.iinfo(dtype)
    parts = [rng.integers(info.min, info.max, (2, n), dtype, endpoint=True) for n in sizes]
    usable, sampled = CountedPercentiles(2, np.dtype(dtype)), SampledPercentiles(2, seed=0)
    for part in parts:
        usable.add(part)
        sampled.add(part)
    expected = np.quantile(np.concatenate(parts, axis=1), percent / 100, axis=1, method="inverted_cdf")
    assert np.array_equal(usable.at(percent), expected)
    assert np.array_equal(sampled.at(percent), expected)


def test_a_sample_of_percentiles_is_uniform_over_all_blocks() -> None:
    sampled = SampledPercentiles(1, seed=0, max_values=4000)
    for start in range(0, 100_000, 1000):
        sampled.add(np.arange(start, start + 1000, dtype=float)[None])
    for percent in (2, 50, 98):
        assert sampled.at(percent)[0] == pytest.approx(percent * 1000, abs=3000)
    again = SampledPercentiles(1, seed=0, max_values=4000)
    again.add(np.arange(100_000, dtype=float)[None])
    assert again.at(50) == sampled.at(50)


def test_the_percentile_range_of_valid_pixels_becomes_zero_to_one(town: Town, make_scene: MakeScene) -> None:
    scene = describe_scene(make_scene(town.pixels, transform=ORIGIN, scales=(2.0, -1.0, 1.0), offsets=(5.0, 0.0, 0.0)))
    plain = LabelledScene(describe_scene(town.image), polygon_labels(town))
    spec = NormalizationSpec(kind="percentile", low=5, high=90)
    areas = [Area(source=LabelledScene(scene, polygon_labels(town)))]
    raw = town.pixels.reshape(3, -1) * np.array([[2.0], [-1.0], [1.0]]) + np.array([[5.0], [0.0], [0.0]])
    low, high = compute_statistics(areas, ("roof",), seed=0, spec=spec).value_range or ((), ())
    stored = np.quantile(town.pixels.reshape(3, -1), [0.05, 0.9], axis=1, method="inverted_cdf")
    assert np.allclose([low, high], np.sort(stored * [2, -1, 1] + [5, 0, 0], axis=0))
    both = compute_statistics([*areas, Area(source=plain)], ("roof",), seed=0, spec=replace(spec, low=10))
    pooled = np.concatenate([raw, town.pixels.reshape(3, -1)], axis=1)
    assert both.value_range is not None
    assert np.allclose(both.value_range, np.quantile(pooled, [0.1, 0.9], axis=1, method="inverted_cdf"))
    card = both.normalization()
    assert card.clip == (0.0, 1.0)
    assert np.allclose(np.array(card.gain) * both.value_range[1] + card.bias, 1)


def test_percentiles_out_of_order_are_refused() -> None:
    for low, high in ((50, 50), (-1, 98), (2, 101)):
        with pytest.raises(SettingsError, match="low must be below high, both from 0 to 100"):
            NormalizationSpec(kind="percentile", low=low, high=high)
