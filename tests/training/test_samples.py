"""Samples of labelled scenes: the same from file and memory, and only of consistent scenes."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from conftest import MakeScene
from hypothesis import given
from hypothesis import strategies as st
from rasterio.windows import Window
from support.labelled import (
    ORIGIN,
    SMALL,
    FakeSource,
    Town,
    polygon_labels,
)

from pipeline.errors import LabelError, SceneError, SettingsError
from pipeline.scene.describe import describe_scene
from pipeline.scene.spec import ReadingSpec
from pipeline.training.data.samples import CachedScene, LabelledScene, cache, open_data, read_padded
from pipeline.training.images import list_images
from pipeline.training.settings.data import SplitSpec


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
        ({"validation": (str(twin),), "test": ("twin_town",)}, "split.test: twin_town is also named for validation"),
        ({"validation": (str(tmp_path / "none.txt"),)}, r"the list .*none\.txt names no scene"),
        ({"validation": ("gone.txt",)}, r"the list gone\.txt cannot be read"),
    ]
    for split, message in cases:
        with pytest.raises(SettingsError, match=message):
            list_images([town.image, twin], **split)
    with pytest.raises(SettingsError, match="no scene in this folder"):
        list_images([tmp_path / "empty"])
    with pytest.raises(SettingsError, match="images must name at least one scene"):
        list_images([])


def test_a_folder_of_pictures_is_expanded_unless_it_has_geotiffs(make_scene: MakeScene, tmp_path: Path) -> None:
    for name, driver in (("a.png", "PNG"), ("b.jpg", "JPEG")):
        make_scene(name=f"chips/{name}", driver=driver, crs=None)
    assert [e.id for e in list_images([tmp_path / "chips"]).entries] == ["a", "b"]
    make_scene(name="chips/c.tif")
    assert [e.id for e in list_images([tmp_path / "chips"]).entries] == ["c"]


def test_scenes_are_cached_only_within_the_budget(town: Town) -> None:
    data = open_data([town.image], town.labels, SMALL)
    assert cache(data, 0, 1) is data
    assert isinstance(cache(data, 1, 1).sources[0], CachedScene)


def chips(make_scene: MakeScene, count: int, **options: Any) -> Path:
    """PNG chips in `images`, and masks 0 and 255 in `masks`; returns their folder."""
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 255, (1, 40, 40), np.uint8)
        image = make_scene(pixels, name=f"images/{k}.png", driver="PNG", crs=None, **options)
        mask = make_scene((pixels > 128).astype(np.uint8) * 255, name=f"masks/{k}.png", driver="PNG", crs=None)
        for path in (image, mask):
            Path(f"{path}.aux.xml").unlink(missing_ok=True)
    return image.parents[1]


CHIPS = replace(SMALL, classes=("cell",), class_map={"255": "cell", "0": "none"})


def test_chips_need_no_georeferencing_and_then_have_no_resolution(make_scene: MakeScene, tmp_path: Path) -> None:
    folder = chips(make_scene, 3)
    data = open_data([folder / "images"], folder / "masks", CHIPS)
    assert data.resolution_m is None
    sample = data.sources[0].read(Window(3, 4, 10, 20))
    assert sample.valid.all()
    assert np.array_equal(sample.target[0] == 1, sample.pixels[0] > 128)
    cached = cache(data, 10, 1).sources[0].read(Window(3, 4, 10, 20))
    assert np.array_equal(cached.target, sample.target)
    data.close()
    with pytest.raises(SettingsError, match=r"resolution_m must be left out, not 1\.0: .*0\.png is not georeferenced"):
        open_data([folder / "images"], folder / "masks", replace(CHIPS, resolution_m=1.0))
    with pytest.raises(SceneError, match="georeference"):
        describe_scene(folder / "images" / "0.png", ReadingSpec(drivers=("PNG",)))
    polygons = Town(tmp_path, make_scene).labels
    with pytest.raises(LabelError, match=r"0\.png: is not georeferenced, so polygons cannot be laid on it"):
        open_data([folder / "images" / "0.png"], polygons, SMALL)


def test_images_with_and_without_a_place_do_not_mix_and_palettes_are_no_brightness(
    make_scene: MakeScene, town: Town
) -> None:
    folder = chips(make_scene, 1)
    gray = make_scene(town.mask, name="placed.tif", transform=ORIGIN, photometric="MINISBLACK")
    with pytest.raises(SceneError, match=r"0\.png: is not georeferenced, but .*placed\.tif is; georeference all"):
        open_data([gray, *(folder / "images").glob("*.png")], folder / "masks", CHIPS)
    palette = make_scene(town.mask, name="palette.tif", transform=ORIGIN, colorinterp=["palette"])
    with pytest.raises(SceneError, match="holds palette indices"):
        open_data([palette], town.mask_file, SMALL)


def test_hundreds_of_chips_open_at_once(make_scene: MakeScene) -> None:
    folder = chips(make_scene, 200)
    start = time.process_time()
    data = cache(open_data([folder / "images"], folder / "masks", CHIPS), 100, 1)
    assert len(data.sources) == 200
    assert time.process_time() - start < 200 * 0.02


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a list of this process's open files")
def test_chips_that_do_not_fit_into_memory_are_not_kept_open(make_scene: MakeScene) -> None:
    folder = chips(make_scene, 5)
    data = cache(open_data([folder / "images"], folder / "masks", CHIPS), 0, 1)
    for source in data.sources:
        source.read(Window(0, 0, 40, 40))
    opened = [Path(os.path.realpath(link)) for link in Path("/proc/self/fd").iterdir()]
    assert not any(path.is_relative_to(folder) for path in opened)


def test_real_chips_with_a_suffix_inside_their_names_pair_with_palette_masks(shared_data: Path) -> None:
    folder = shared_data / "amazon_forest" / "train"
    spec = replace(SMALL, classes=("forest",), class_map={"1": "forest", "2": "none"})
    images = sorted((folder / "images").iterdir())
    good = [p for p in images if not p.name.startswith("Amazon_181")]
    data = open_data(good, folder / "masks", spec)
    assert len(data.sources) == 29
    assert data.resolution_m == pytest.approx(10, rel=0.01)
    share = np.mean([(s.target(Window(0, 0, 512, 512)) == 1).mean() for s in data.sources])
    data.close()
    assert share == pytest.approx(0.54, abs=0.02)
    with pytest.raises(
        LabelError, match=r"Amazon_181\.tiff_34\.png: .* 512 columns, not 512 x 515, .*-srcwin 0 0 512 512"
    ):
        open_data(images, folder / "masks", spec)


def test_real_sections_with_white_labels_and_a_band_that_is_no_alpha_open(shared_data: Path) -> None:
    folder = shared_data / "isbi2012_em"
    data = open_data([folder / "image"], folder / "label", CHIPS)
    assert [s.scene.id for s in data.sources[:2]] == ["00", "01"]
    assert (data.sources[0].target(Window(0, 0, 512, 512)) == 1).mean() == pytest.approx(0.78, abs=0.05)
    data.close()
    folder = shared_data / "mangrove_4band" / "train"
    reading = ReadingSpec(bands={"red": 1, "green": 2, "blue": 3, "nir": 4}, ignore_alpha=True)
    spec = replace(SMALL, bands=("red", "green", "blue", "nir"), reading=reading)
    data = open_data([folder / "images"], folder / "masks", spec)
    assert data.sources[0].scene.bands == ("red", "green", "blue", "nir")
    assert data.sources[0].read(Window(0, 0, 512, 512)).valid.all()
    data.close()


def test_validation_folders_come_with_label_folders_of_their_own(shared_data: Path) -> None:
    train, val = (shared_data / "mangrove_4band" / part for part in ("train", "val"))
    # Near infrared, which these chips tag as alpha, counts as a mask here.
    spec = replace(SMALL, split=SplitSpec(validation=(str(val / "images"),)), reading=ReadingSpec(ignore_alpha=False))
    data = open_data([train / "images"], [train / "masks", val / "masks"], spec)
    assert len(data.sources) == 12
    assert len(data.validation) == 3
    data.close()
