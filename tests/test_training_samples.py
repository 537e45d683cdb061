"""Samples of labelled scenes: the same from file and memory, and only of scenes that fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from conftest import MakeScene
from hypothesis import given
from hypothesis import strategies as st
from labelled import (
    ORIGIN,
    SMALL,
    FakeSource,
    Town,
    polygon_labels,
)
from rasterio.windows import Window

from pipeline.errors import SceneError, SettingsError
from pipeline.scene import describe_scene
from pipeline.training.samples import CachedScene, LabelledScene, cache, list_scenes, open_data, read_padded
from pipeline.training.splits import SplitSpec


def test_a_cached_scene_gives_the_same_samples(town: Town, make_scene: MakeScene) -> None:
    valid = np.ones((96, 96), bool)
    valid[:, :10] = False
    image = make_scene(town.pixels, transform=ORIGIN, mask=valid)
    direct = LabelledScene(describe_scene(image), polygon_labels(town))
    cached = CachedScene(direct)
    for window in (Window(0, 0, 96, 96), Window(5, 60, 30, 36)):
        one, other = direct.read(window), cached.read(window)
        for key in ("pixels", "target", "valid"):
            assert np.array_equal(getattr(one, key), getattr(other, key))
    assert not direct.read(Window(0, 0, 20, 20)).valid[:, :10].any()


@given(row=st.integers(-40, 100), col=st.integers(-40, 100), size=st.integers(1, 150))
def test_a_padded_sample_is_a_window_of_the_endless_scene(row: int, col: int, size: int) -> None:
    row, col = max(row, 1 - size), max(col, 1 - size)
    row, col = min(row, 95), min(col, 95)
    source = FakeSource(96)
    sample = read_padded(source, row, col, size)
    pixels = np.pad(source.whole.pixels, ((0, 0), (200, 200), (200, 200)))
    assert np.array_equal(sample.pixels, pixels[:, row + 200 :, col + 200 :][:, :size, :size])
    inside = np.pad(np.ones((96, 96), bool), 200)[row + 200 :, col + 200 :][:size, :size]
    assert np.array_equal(sample.valid, inside)
    assert (sample.target[:, ~inside] == 255).all()


def test_scenes_must_agree_in_resolution_type_and_bands(town: Town, make_scene: MakeScene, tmp_path: Path) -> None:
    coarse = make_scene(town.pixels, name="coarse.tif", transform=ORIGIN * Affine.scale(2))
    with pytest.raises(SettingsError, match=r"resolution_m must be set.*town 0\.5 m, coarse 1 m.*resolution_m=1"):
        open_data([town.image, coarse], town.labels, SMALL)
    data = open_data([town.image, coarse], town.labels, replace(SMALL, resolution_m=1.0))
    assert [s.scene.grid.shape for s in data.training] == [(48, 48), (96, 96)]
    deep = make_scene(
        town.pixels.astype(np.uint16), name="deep.tif", transform=ORIGIN, descriptions=("red", "green", "blue")
    )
    with pytest.raises(SceneError, match=r"deep\.tif: is uint16, but .*town\.tif is uint8"):
        open_data([town.image, deep], town.labels, SMALL)
    with pytest.raises(SceneError, match="needs band"):
        open_data([town.image, make_scene(town.mask, name="gray.tif", transform=ORIGIN)], town.labels, SMALL)


def test_scenes_and_validation_scenes_are_named_by_path_or_stem(
    town: Town, make_scene: MakeScene, tmp_path: Path
) -> None:
    other = Town(tmp_path, make_scene, "other", seed=1)
    folder = town.image.parent
    assert list_scenes([folder, town.image]) == (str(other.image), str(town.image))
    for name in ("other", str(other.image)):
        data = open_data([folder], folder.parent / "masks", replace(SMALL, split=SplitSpec(validation=(name,))))
        assert [s.scene.id for s in data.training] == ["town"]
        assert [s.scene.id for s in data.validation] == ["other"]
    with pytest.raises(SettingsError, match="validation: 'third' is neither a file nor the stem"):
        open_data([folder], town.labels, replace(SMALL, split=SplitSpec(validation=("third",))))
    with pytest.raises(SettingsError, match="none is left for training"):
        open_data([town.image], town.labels, replace(SMALL, split=SplitSpec(validation=("town",))))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="holds no GeoTIFF"):
        list_scenes([tmp_path / "empty"])


def test_scenes_are_cached_only_within_the_budget(town: Town) -> None:
    data = open_data([town.image], town.labels, SMALL)
    assert cache(data, 0, 1) is data
    assert isinstance(cache(data, 1, 1).training[0], CachedScene)
