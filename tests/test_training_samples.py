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
from pipeline.training.chips import list_images
from pipeline.training.samples import CachedScene, LabelledScene, cache, open_data, read_padded
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
    assert [s.scene.grid.shape for s in data.sources] == [(48, 48), (96, 96)]
    deep = make_scene(
        town.pixels.astype(np.uint16), name="deep.tif", transform=ORIGIN, descriptions=("red", "green", "blue")
    )
    with pytest.raises(SceneError, match=r"deep\.tif: is uint16, but .*town\.tif is uint8"):
        open_data([town.image, deep], town.labels, SMALL)
    with pytest.raises(SceneError, match="needs band"):
        open_data([town.image, make_scene(town.mask, name="gray.tif", transform=ORIGIN)], town.labels, SMALL)


def test_scenes_and_held_out_scenes_are_named_by_path_stem_folder_or_list(
    town: Town, make_scene: MakeScene, tmp_path: Path
) -> None:
    other = Town(tmp_path, make_scene, "other", seed=1)
    folder, masks = town.image.parent, town.image.parents[1] / "masks"
    (tmp_path / "held.txt").write_text("# kept\nother\n\n")
    (tmp_path / "apart").mkdir()
    apart = other.image.rename(tmp_path / "apart" / "other.tif")
    for images, name in (
        ([folder, apart], "other"),
        ([folder, apart], str(apart)),
        ([folder, apart], str(tmp_path / "held.txt")),
        ([folder], str(apart)),
        ([folder], str(apart.parent)),
        ([folder], str(apart.parent / "*.tif")),
    ):
        for key in ("validation", "test"):
            data = open_data(images, masks, replace(SMALL, split=SplitSpec(**{key: (name,)})))
            assert [s.scene.id for s in data.sources] == ["town", "other"]
            assert getattr(data, key) == ("other",)


def test_names_that_match_no_scene_or_two_are_refused(town: Town, make_scene: MakeScene, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "none.txt").write_text("# nothing\n")
    twin = make_scene(town.pixels, name="twin/town.tif", transform=ORIGIN)
    cases: list[tuple[dict[str, tuple[str, ...]], str]] = [
        ({"validation": ("third",)}, "split.validation: 'third' is neither a file nor the stem of an image"),
        ({"test": ("town",)}, "split.test: 'town' is the stem of .*; give the path"),
        ({"validation": (str(twin),), "test": ("twin_town",)}, "split.test: twin_town is kept for validation as well"),
        ({"validation": (str(tmp_path / "none.txt"),)}, r"the list .*none\.txt names no scene"),
        ({"validation": ("gone.txt",)}, r"the list gone\.txt cannot be read"),
    ]
    for split, said in cases:
        with pytest.raises(SettingsError, match=said):
            list_images([town.image, twin], **split)
    with pytest.raises(SettingsError, match="no scene in this folder"):
        list_images([tmp_path / "empty"])
    with pytest.raises(SettingsError, match="images must name at least one scene"):
        list_images([])


def test_a_folder_of_pictures_stands_for_them_unless_it_has_geotiffs(make_scene: MakeScene, tmp_path: Path) -> None:
    for name, driver in (("a.png", "PNG"), ("b.jpg", "JPEG")):
        make_scene(name=f"chips/{name}", driver=driver, crs=None)
    assert [e.id for e in list_images([tmp_path / "chips"]).entries] == ["a", "b"]
    make_scene(name="chips/c.tif")
    assert [e.id for e in list_images([tmp_path / "chips"]).entries] == ["c"]


def test_scenes_are_cached_only_within_the_budget(town: Town) -> None:
    data = open_data([town.image], town.labels, SMALL)
    assert cache(data, 0, 1) is data
    assert isinstance(cache(data, 1, 1).sources[0], CachedScene)
