"""Training sees what inference sees, learns from the right pixels only, and leaves an honest checkpoint."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from affine import Affine
from conftest import SHARED_DATA, MakeScene
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window

from pipeline.checkpoint import load_checkpoint
from pipeline.config import load_settings
from pipeline.errors import LabelError, ModelError, SceneError, SettingsError
from pipeline.grid import RasterGrid
from pipeline.normalize import InputTransform
from pipeline.scene import ReadingSpec, describe_scene
from pipeline.training.augment import flip_and_turn, vary_light
from pipeline.training.feed import Feed, prefetch
from pipeline.training.labels import (
    PolygonLabels,
    find_labels,
    open_polygon_labels,
    read_polygons,
)
from pipeline.training.losses import bce_loss, dice_loss, segmentation_loss
from pipeline.training.masks import MaskLabels, open_mask_labels
from pipeline.training.metrics import Confusion
from pipeline.training.samples import CachedScene, LabelledScene, Sample, cache, list_scenes, open_data, read_padded
from pipeline.training.settings import (
    AugmentSpec,
    LearningSpec,
    LossSpec,
    NetworkSpec,
    SamplesSpec,
    TrainSpec,
)
from pipeline.training.survey import survey
from pipeline.training.train import TrainProgress, choose_precision, rate_factor, train
from pipeline.training.windows import Area, cover, draw_core, overlap, plan_blocks, split_data
from pipeline.unet import UNet, UNetSpec

UTM = "EPSG:32633"
ORIGIN = Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000)

SMALL = TrainSpec(
    classes=("roof",),
    network=NetworkSpec(depth=2, base_channels=8),
    samples=SamplesSpec(tile_size=32, batch_size=4, windows_per_epoch=32, block_size=32, threads=1),
    augment=AugmentSpec(contrast=0.1, brightness=0.1),
    learning=LearningSpec(epochs=4, learning_rate=5e-3, precision="float32"),
)


def grid_of(side: int) -> RasterGrid:
    return RasterGrid(crs=CRS.from_string(UTM), transform=ORIGIN, height=side, width=side)


def rectangles(count: int, *, side: int = 96, seed: int = 0) -> list[shapely.Polygon]:
    """Squares of 8 px in pixel coordinates `(col, row)`, on a jittered lattice so that none overlap."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation([(r, c) for r in range(0, side, 16) for c in range(0, side, 16)])[:count]
    corners = [(c + rng.integers(1, 7), r + rng.integers(1, 7)) for r, c in cells]
    return [shapely.box(c, r, c + 8, r + 8) for c, r in corners]


def place(shapes: list[shapely.Geometry], transform: Affine = ORIGIN) -> geopandas.GeoSeries:
    matrix = [transform.a, transform.b, transform.d, transform.e, transform.c, transform.f]
    return geopandas.GeoSeries(shapes, crs=UTM).affine_transform(matrix)


class Town:
    """A small scene whose bright squares are the objects, and the files that say so."""

    def __init__(
        self, folder: Path, make_scene: MakeScene, name: str = "town", *, side: int = 96, seed: int = 0
    ) -> None:
        shapes = rectangles(side * side // 512, side=side, seed=seed)
        self.mask = rasterio.features.rasterize(shapes, out_shape=(side, side), dtype="uint8")
        noise = np.random.default_rng(seed).normal(0, 12, (3, side, side))
        self.pixels = np.clip(80 + 70 * self.mask[None] + noise, 1, 255).astype(np.uint8)
        self.image = make_scene(self.pixels, name=f"images/{name}.tif", crs=UTM, transform=ORIGIN)
        self.mask_file = make_scene(self.mask, name=f"masks/{name}.tif", crs=UTM, transform=ORIGIN)
        self.labels = folder / f"{name}.gpkg"
        self.frame = geopandas.GeoDataFrame({"kind": "roof"}, geometry=place(shapes), index=range(len(shapes)))
        self.frame.to_crs(4326).to_file(self.labels)


@pytest.fixture
def town(tmp_path: Path, make_scene: MakeScene) -> Town:
    return Town(tmp_path, make_scene)


def polygon_labels(town: Town, classes: tuple[str, ...] = ("roof",), field: str | None = None) -> PolygonLabels:
    table = read_polygons(town.labels, classes, field)
    return open_polygon_labels([table], describe_scene(town.image), classes=len(classes))


def area_of(town: Town, *held_out: Window) -> Area:
    return Area(source=LabelledScene(describe_scene(town.image), polygon_labels(town)), held_out=held_out)


# Settings


def test_the_commented_settings_file_holds_the_defaults() -> None:
    file = Path(__file__).parents[1] / "configs" / "train.yaml"
    assert load_settings(TrainSpec, file) == TrainSpec()
    assert "scenemill train --images" in file.read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TrainSpec(classes=()), "classes must be 1 to 254"),
        (lambda: TrainSpec(classes=("a", "a")), "different names"),
        (lambda: TrainSpec(resolution_m=0), "resolution_m must be above 0, not 0"),
        (lambda: TrainSpec(reading=ReadingSpec(resolution_m=0.3)), "reading.resolution_m must stay native"),
        (lambda: TrainSpec(samples=SamplesSpec(tile_size=250)), "0 modulo 16.*not 250; the next that fits is 256"),
        (lambda: TrainSpec(network=NetworkSpec(padding="valid")), "12 modulo 16 and above 184.*next that fits is 268"),
        (lambda: NetworkSpec(depth=7), "depth must be a whole number from 2 to 5"),
        (lambda: SamplesSpec(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: SamplesSpec(labelled_share=1.5), "labelled_share must be from 0 to 1"),
        (lambda: SamplesSpec(validation_share=0), "validation_share must be above 0"),
        (lambda: AugmentSpec(contrast=1), "contrast must be from 0 to 0.9, not 1"),
        (lambda: LossSpec(bce_weight=0, dice_weight=0), "not both 0"),
        (lambda: LearningSpec(learning_rate=1), "learning_rate must be above 0 and at most 0.1, not 1"),
        (lambda: LearningSpec(max_minutes=0), "max_minutes must be above 0"),
    ],
)
def test_settings_out_of_bounds_say_which_bound(make: Callable[[], object], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        make()


# Labels


def test_polygons_of_another_crs_are_burnt_by_the_pixel_centre_rule(town: Town) -> None:
    labels = polygon_labels(town)
    assert np.array_equal(labels.burn(Window(0, 0, 96, 96))[0], town.mask)


@given(row=st.integers(0, 95), col=st.integers(0, 95), height=st.integers(1, 96), width=st.integers(1, 96))
def test_a_window_of_the_target_is_the_target_of_the_window(row: int, col: int, height: int, width: int) -> None:
    grid = grid_of(96)
    shapes = [shapely.affinity.rotate(s, 30) for s in rectangles(18)]
    labels = PolygonLabels(np.array(place(shapes).array, object), np.arange(18) % 2, grid, classes=2)
    whole = labels.burn(grid.window)
    window = Window(col, row, min(width, 96 - col), min(height, 96 - row))
    rows, cols = window.toslices()
    part = labels.burn(window)
    assert np.array_equal(part, whole[:, rows, cols])
    assert labels.touches(window) or not part.any()


def test_invalid_polygons_are_repaired_and_counted_and_lines_dropped(town: Town) -> None:
    bow = shapely.Polygon([(10, 10), (20, 20), (20, 10), (10, 20)])
    shapes = [bow, shapely.LineString([(0, 0), (9, 9)]), shapely.box(30, 30, 40, 40), shapely.Polygon()]
    geopandas.GeoDataFrame(geometry=place(shapes)).to_file(town.labels)
    table = read_polygons(town.labels, ("roof",))
    assert (table.repaired, table.dropped, len(table.frame)) == (1, 2, 2)
    target = open_polygon_labels([table], describe_scene(town.image), classes=1).burn(Window(0, 0, 96, 96))
    assert target.sum() == 100 + 50  # the square and the two triangles of the bow tie, each 10 x 5 / 2


def test_classes_come_from_an_attribute(town: Town) -> None:
    town.frame["kind"] = np.where(np.arange(len(town.frame)) % 2, "roof", "pool")
    town.frame.to_file(town.labels)
    target = polygon_labels(town, ("pool", "roof"), "kind").burn(Window(0, 0, 96, 96))
    assert np.array_equal(target.sum(axis=0), town.mask)
    assert target[0].sum() == target[1].sum() == town.mask.sum() // 2


def test_labels_that_cannot_be_used_say_why(town: Town, tmp_path: Path) -> None:
    scene = describe_scene(town.image)
    far = town.frame.translate(100_000)
    geopandas.GeoDataFrame(geometry=far).to_file(tmp_path / "far.gpkg")
    with pytest.warns(UserWarning, match="'crs' was not provided"):
        geopandas.GeoDataFrame(geometry=far.set_crs(None, allow_override=True)).to_file(tmp_path / "lost.gpkg")
    (tmp_path / "text.gpkg").write_text("no polygons")
    with pytest.raises(LabelError, match=r"no polygon .* touches the scene .*town\.tif, which covers 15\.00"):
        open_polygon_labels([read_polygons(tmp_path / "far.gpkg", ("roof",))], scene, classes=1)
    with pytest.raises(LabelError, match=r"lost\.gpkg: has no CRS.*ogr2ogr"):
        read_polygons(tmp_path / "lost.gpkg", ("roof",))
    with pytest.raises(LabelError, match=r"text\.gpkg: cannot be read as vector data"):
        read_polygons(tmp_path / "text.gpkg", ("roof",))
    with pytest.raises(LabelError, match="has no attribute 'class'; it has kind, geometry"):
        read_polygons(town.labels, ("roof",), "class")
    with pytest.raises(LabelError, match=r"kind has the values \['roof'\], which are not among classes"):
        read_polygons(town.labels, ("pool",), "kind")
    with pytest.raises(LabelError, match="with 2 classes, class_field must name"):
        read_polygons(town.labels, ("pool", "roof"))


def test_polygons_beyond_the_scene_crs_do_no_harm(tmp_path: Path, make_scene: MakeScene) -> None:
    image = make_scene(crs="EPSG:3857", transform=Affine(2, 0, 0, 0, -2, 0))
    degree = 1 / 111_319.49
    shapes = [shapely.box(20 * degree, -40 * degree, 40 * degree, -20 * degree), shapely.box(0, 80, 1, 90)]
    shapes += [shapely.box(-180, -90, 180, -89)]
    geopandas.GeoDataFrame(geometry=shapes, crs=4326).to_file(tmp_path / "world.gpkg")
    labels = open_polygon_labels([read_polygons(tmp_path / "world.gpkg", ("any",))], describe_scene(image), classes=1)
    target = labels.burn(Window(0, 0, 50, 40))[0]
    assert target[10:20, 10:20].all()
    assert target.sum() == 100


def test_labels_are_found_by_stem_or_serve_all_scenes(tmp_path: Path) -> None:
    def folder(name: str, *files: str) -> Path:
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).touch()
        return tmp_path / name

    named = folder("named", "a.gpkg", "b.tif", "readme.txt")
    assert find_labels(named, ["a", "b"]) == {"a": (named / "a.gpkg",), "b": (named / "b.tif",)}
    assert find_labels(named / "a.gpkg", ["x", "y"]) == dict.fromkeys("xy", (named / "a.gpkg",))
    towns = folder("towns", "north.geojson", "south.geojson")
    assert find_labels(towns, ["a"]) == {"a": (towns / "north.geojson", towns / "south.geojson")}
    with pytest.raises(LabelError, match="the scene 'c' needs one label file of its name, but there is none"):
        find_labels(named, ["a", "c"])
    with pytest.raises(LabelError, match=r"there is a\.gpkg, a\.tif"):
        find_labels(folder("twice", "a.gpkg", "a.tif"), ["a"])
    with pytest.raises(LabelError, match=r"no label file is named like a scene \(a\)"):
        find_labels(folder("other", "b.tif"), ["a"])
    with pytest.raises(LabelError, match="no such label file or folder"):
        find_labels(tmp_path / "none", ["a"])


def mask_labels(path: Path, town: Town, classes: int = 1, spec: ReadingSpec | None = None) -> MaskLabels:
    native = describe_scene(town.image).grid
    return open_mask_labels(path, describe_scene(town.image, spec), native, classes=classes)


def test_a_mask_raster_is_a_class_per_value(town: Town, make_scene: MakeScene) -> None:
    values = np.random.default_rng(0).choice([0, 1, 2, 255], (96, 96)).astype(np.uint8)
    target = mask_labels(make_scene(values, transform=ORIGIN), town, classes=2).burn(Window(5, 7, 30, 20))
    part = values[7:27, 5:35]
    assert np.array_equal(target[1] == 1, part == 2)
    assert np.array_equal(target == 255, np.stack([part == 255] * 2))


def test_zero_means_none_even_where_it_is_tagged_nodata(town: Town, make_scene: MakeScene) -> None:
    target = mask_labels(make_scene(town.mask, transform=ORIGIN, nodata=0), town).burn(Window(0, 0, 96, 96))
    assert np.array_equal(target[0], town.mask)


def test_a_resampled_scene_takes_the_mask_value_under_each_pixel_centre(town: Town) -> None:
    labels = mask_labels(town.mask_file, town, spec=ReadingSpec(resolution_m=1.0))
    assert labels.grid.shape == (48, 48)
    assert np.array_equal(labels.burn(Window(3, 4, 40, 30))[0], town.mask[1::2, 1::2][4:34, 3:43])


def test_a_mask_that_does_not_lie_on_its_scene_is_refused(town: Town, make_scene: MakeScene) -> None:
    moved = Affine.translation(0.5, 0) * ORIGIN
    cases = [
        (make_scene(town.mask[:90], transform=ORIGIN), "must have the size of its scene .*, 96 x 96 px, not 90 x 96"),
        (make_scene(town.mask, transform=ORIGIN, crs="EPSG:32634"), "its CRS EPSG:32634 is not that of its scene"),
        (make_scene(town.mask, transform=moved), "its transform .* is not that of its scene"),
        (make_scene(np.stack([town.mask] * 3), transform=ORIGIN), "a mask has one band, not 3"),
        (make_scene(town.mask * 7, transform=ORIGIN), r"1 to 1 \(the classes in order\).*this one has \[7\]"),
    ]
    for path, said in cases:
        with pytest.raises(LabelError, match=said):
            mask_labels(path, town).burn(Window(0, 0, 96, 90))


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data set is not here")
def test_real_labels_burn_to_the_published_masks() -> None:
    folder = SHARED_DATA / "buildings"
    scene = describe_scene(folder / "images" / "kampala_2.tif")
    table = read_polygons(folder / "labels" / "kampala.geojson", ("building",))
    assert table.repaired == 1
    target = open_polygon_labels([table], scene, classes=1).burn(Window(200, 300, 400, 500))
    with rasterio.open(folder / "masks" / "kampala_2.tif") as mask:
        expected = mask.read(1, window=Window(200, 300, 400, 500))
    assert (target[0] != expected).mean() < 1e-3


# Samples and windows


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


class FakeSource:
    """A source in memory, without files."""

    def __init__(self, side: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.whole = Sample(
            pixels=rng.integers(1, 255, (2, side, side), np.uint8),
            target=(rng.random((1, side, side)) < 0.01).astype(np.uint8),
            valid=np.ones((side, side), bool),
        )
        self.scene: Any = FakeScene(side)

    def read(self, window: Window) -> Sample:
        rows, cols = window.toslices()
        whole = self.whole
        return Sample(
            pixels=whole.pixels[:, rows, cols], target=whole.target[:, rows, cols], valid=whole.valid[rows, cols]
        )

    def touches(self, window: Window) -> bool:
        return bool(self.read(window).target.any())

    def close(self) -> None:
        pass


class FakeScene:
    """The part of a Scene that windows look at."""

    def __init__(self, side: int) -> None:
        self.grid = grid_of(side)
        self.id = "fake"
        self.bands, self.band_numbers = ("a", "b"), (1, 2)
        self.scales, self.offsets = (1.0, 1.0), (0.0, 0.0)


@given(side=st.integers(70, 200), size=st.integers(1, 60), seed=st.integers(0, 99))
def test_no_training_core_overlaps_a_held_out_block(side: int, size: int, seed: int) -> None:
    source = FakeSource(side)
    blocks = plan_blocks((side, side), 64)
    area = Area(source=source, held_out=tuple(blocks[:: max(2, len(blocks) // 2)]))
    rng = np.random.default_rng(seed)
    try:
        core = draw_core([area], size, rng, labelled_share=0.5)
    except SettingsError as error:
        assert "hardly fit between the held-out blocks of fake" in str(error)  # noqa: PT017
        return
    assert area.is_free(core.inside)
    assert overlap(core.inside, source.scene.grid.window)


@given(height=st.integers(1, 90), width=st.integers(1, 90), size=st.integers(1, 50))
def test_validation_cores_count_each_pixel_exactly_once(height: int, width: int, size: int) -> None:
    block = Window(20, 10, width, height)
    counted = np.zeros((200, 200), int)
    for core in cover([(FakeSource(200), block)], size):
        rows = slice(core.row, min(core.row + size, block.row_off + block.height))
        cols = slice(core.col, min(core.col + size, block.col_off + block.width))
        counted[rows, cols] += 1
    assert (counted[10 : 10 + height, 20 : 20 + width] == 1).all()
    assert counted.sum() == height * width


def test_a_split_by_blocks_is_seeded_and_disjoint(town: Town) -> None:
    data = open_data([town.image], town.labels, SMALL)
    splits = [split_data(data, SMALL.samples, seed=seed) for seed in (0, 0, 1)]
    blocks = [[w for _, w in split.validation] for split in splits]
    assert blocks[0] == blocks[1] != blocks[2]
    area = splits[0].training[0]
    assert list(area.held_out) == blocks[0]
    assert area.pixels == 96 * 96 - len(blocks[0]) * 32 * 32


def test_a_scene_of_one_block_cannot_be_split(town: Town) -> None:
    data = open_data([town.image], town.labels, SMALL)
    with pytest.raises(SettingsError, match=r"block_size: only 1 block\(s\) .* or name validation scenes"):
        split_data(data, replace(SMALL.samples, block_size=96), seed=0)


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
        data = open_data([folder], folder.parent / "masks", replace(SMALL, validation=(name,)))
        assert [s.scene.id for s in data.training] == ["town"]
        assert [s.scene.id for s in data.validation] == ["other"]
    with pytest.raises(SettingsError, match="validation: 'third' is neither a file nor the stem"):
        open_data([folder], town.labels, replace(SMALL, validation=("third",)))
    with pytest.raises(SettingsError, match="none is left for training"):
        open_data([town.image], town.labels, replace(SMALL, validation=("town",)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match="holds no GeoTIFF"):
        list_scenes([tmp_path / "empty"])


def test_scenes_are_cached_only_within_the_budget(town: Town) -> None:
    data = open_data([town.image], town.labels, SMALL)
    assert cache(data, 0, 1) is data
    assert isinstance(cache(data, 1, 1).training[0], CachedScene)


def test_the_survey_measures_valid_training_pixels_in_raw_units(town: Town, make_scene: MakeScene) -> None:
    valid = np.ones((96, 96), bool)
    valid[:, :30] = False
    image = make_scene(town.pixels, transform=ORIGIN, mask=valid, scales=(2.0, 1.0, 1.0), offsets=(5.0, 0.0, 0.0))
    source = LabelledScene(describe_scene(image), polygon_labels(town))
    facts = survey([Area(source=source, held_out=(Window(50, 20, 30, 10),))], ("roof",), seed=0)
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
        survey([Area(source=source)], ("roof", "pool"), seed=0)
    flat = town.pixels.copy()
    flat[1] = 9
    source = LabelledScene(describe_scene(make_scene(flat, transform=ORIGIN)), polygon_labels(town))
    with pytest.raises(SceneError, match=r"band\(s\) green are constant|band\(s\) .* are constant"):
        survey([Area(source=source)], ("roof",), seed=0).normalization()


# Augmentation


@given(seed=st.integers(0, 1000))
def test_flips_and_turns_move_pixels_and_target_together(seed: int) -> None:
    plane = np.arange(25).reshape(5, 5)
    sample = Sample(pixels=plane[None], target=plane[None].astype(np.uint8), valid=plane > 3)
    turned = flip_and_turn(sample, np.random.default_rng(seed), AugmentSpec())
    assert np.array_equal(turned.pixels, turned.target)
    assert np.array_equal(turned.pixels[0] > 3, turned.valid)
    assert sorted(turned.pixels.ravel().tolist()) == list(range(25))


def test_all_eight_symmetries_occur_and_can_be_switched_off() -> None:
    plane = np.arange(9).reshape(3, 3)
    sample = Sample(pixels=plane[None], target=plane[None].astype(np.uint8), valid=plane >= 0)

    def seen(spec: AugmentSpec) -> int:
        rngs = map(np.random.default_rng, range(100))
        return len({flip_and_turn(sample, rng, spec).pixels.tobytes() for rng in rngs})

    assert seen(AugmentSpec()) == 8
    assert seen(AugmentSpec(flips=False)) == 4
    assert seen(AugmentSpec(turns=False)) == 2
    assert seen(AugmentSpec(flips=False, turns=False)) == 1


def test_light_varies_the_model_input_and_leaves_invalid_pixels_at_zero() -> None:
    transform = InputTransform(gain=(0.5, 2.0), bias=(1.0, -1.0))
    pixels = np.random.default_rng(0).integers(0, 99, (2, 4, 4)).astype(np.uint8)
    valid = np.eye(4, dtype=bool)
    plain = transform.apply(pixels, valid)[:, valid]
    varied = vary_light(transform, np.random.default_rng(1), AugmentSpec()).apply(pixels, valid)
    assert (varied[:, ~valid] == 0).all()
    factor, shift = np.polyfit(plain.ravel(), varied[:, valid].ravel(), 1)
    assert np.allclose(varied[:, valid], factor * plain + shift, atol=1e-4)
    assert 0.8 <= factor <= 1.2
    assert abs(shift) <= 0.2


# Losses and metrics


def random_case(seed: int, share: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, 4, 5)
    logits = torch.randn(shape, generator=generator) * 3
    target = (torch.rand(shape, generator=generator) < share).float()
    return logits, target, torch.rand(shape, generator=generator) < 0.7


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_losses_equal_a_slow_reference(share: float) -> None:
    for seed in range(5):
        logits, target, counted = random_case(seed, share)
        crossed, ratios = [], []
        for k in range(3):
            both = total = 0.0
            for n, i, j in itertools.product(range(2), range(4), range(5)):
                if not counted[n, k, i, j]:
                    continue
                p, t = 1 / (1 + math.exp(-float(logits[n, k, i, j]))), float(target[n, k, i, j])
                crossed.append(-math.log(p if t else 1 - p))
                both, total = both + p * t, total + p + t
            ratios.append(1 - (2 * both + 1) / (total + 1))
        assert float(bce_loss(logits, target, counted)) == pytest.approx(np.mean(crossed), rel=1e-5)
        assert float(dice_loss(logits, target, counted)) == pytest.approx(np.mean(ratios), rel=1e-5)
        both_losses = segmentation_loss(logits, target, counted, spec=LossSpec(bce_weight=2, dice_weight=0.5))
        assert float(both_losses) == pytest.approx(2 * np.mean(crossed) + 0.5 * np.mean(ratios), rel=1e-5)


def test_pixels_that_do_not_count_have_no_influence() -> None:
    logits, target, counted = random_case(0)
    logits.requires_grad_()
    target[~counted] = 255
    loss = segmentation_loss(logits, target, counted, spec=LossSpec())
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert (logits.grad[~counted] == 0).all()
    assert (logits.grad[counted] != 0).all()
    nothing = segmentation_loss(logits, target, torch.zeros_like(counted), spec=LossSpec())
    assert float(nothing.detach()) == 0


def test_confusion_counts_add_up_and_give_the_known_ratios() -> None:
    rng = np.random.default_rng(0)
    predicted, labelled, counted = (rng.random((4, 2, 8, 8)) < share for share in (0.4, 0.5, 0.9))
    whole = Confusion.of(predicted, labelled, counted)
    parts = Confusion.of(predicted[:1], labelled[:1], counted[:1]) + Confusion.of(
        predicted[1:], labelled[1:], counted[1:]
    )
    assert np.array_equal(whole.iou, parts.iou)
    for k in range(2):
        p, t = predicted[:, k][counted[:, k]], labelled[:, k][counted[:, k]]
        assert whole.iou[k] == pytest.approx((p & t).sum() / (p | t).sum())
        assert whole.precision[k] == pytest.approx(t[p].mean())
        assert whole.recall[k] == pytest.approx(p[t].mean())
        assert whole.f1[k] == pytest.approx(2 * (p & t).sum() / (p.sum() + t.sum()))
        assert whole.accuracy[k] == pytest.approx((p == t).mean())


def test_metrics_of_nothing_are_undefined_not_zero() -> None:
    nothing = Confusion.of(*(np.zeros((1, 1, 2, 2), bool),) * 2, np.ones((1, 1, 2, 2), bool))
    assert np.isnan(nothing.iou).all()
    assert nothing.mean_iou == 0
    assert json.dumps(nothing.as_record(("roof",)), allow_nan=False)
    assert nothing.as_record(("roof",))["roof"] == {
        "iou": None, "precision": None, "recall": None, "f1": None, "accuracy": 1.0,
    }  # fmt: skip


# Feeding


def batches(town: Town, threads: int, epoch: int) -> list[NDArray[np.float32]]:
    spec = replace(SMALL, samples=replace(SMALL.samples, threads=threads))
    area = area_of(town)
    with Feed(spec, survey([area], ("roof",), seed=0).normalization(), margin=0) as feed:
        return [torch.cat([b.pixels, b.target, b.counted], dim=1).numpy() for b in feed.training([area], epoch)]


def test_the_windows_of_an_epoch_depend_on_its_seed_and_number_alone(town: Town) -> None:
    one, many, next_epoch = batches(town, 1, 3), batches(town, 4, 3), batches(town, 1, 4)
    assert len(one) == 8
    assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(one, next_epoch, strict=True))


def test_labelled_share_decides_how_many_windows_touch_an_object(town: Town) -> None:
    area = Area(source=FakeSource(400))
    rng = np.random.default_rng(0)
    touched = [area.source.touches(draw_core([area], 8, rng, labelled_share=1.0).inside) for _ in range(100)]
    assert np.mean(touched) > 0.95


def test_a_fault_while_preparing_a_batch_comes_out_where_the_batch_is_due() -> None:
    def make(index: int) -> Any:
        if index == 3:
            raise LabelError("a value that is no class")
        return index

    with ThreadPoolExecutor(2) as pool:
        feed: Any = prefetch(make, 10, pool)
        assert [next(feed) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(LabelError, match="no class"):
            next(feed)


def test_batches_are_in_order_whatever_the_threads() -> None:
    make: Any = int
    with ThreadPoolExecutor(3) as pool:
        numbers: Any = prefetch(make, 25, pool)
        assert list(numbers) == list(range(25))


# Training


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_network_learns_bright_squares_and_the_checkpoint_says_how(town: Town, tmp_path: Path) -> None:
    told: list[TrainProgress] = []
    out = tmp_path / "new" / "model.safetensors"
    report = train([town.image], town.labels, out, spec=SMALL, progress=told.append)
    assert report.best_iou > 0.8
    assert report.stopped == "finished"
    assert len(report.history) == 4
    assert [(p.epoch, p.step) for p in told] == list(itertools.product(range(1, 5), range(1, 9)))
    assert report.pixels_per_second > 0

    checkpoint = load_checkpoint(out)
    card = checkpoint.card
    assert (checkpoint.sha256, card) == (report.sha256, report.card)
    assert (card.classes, card.outputs, card.activation, card.dtype) == (("roof",), "logits", "sigmoid", "uint8")
    assert card.bands == describe_scene(town.image).bands
    assert card.resolution_m == pytest.approx(0.5, abs=2e-3)
    assert (card.stride, card.margin) == (4, 0)
    facts: Any = card.training
    assert facts["scenes"] == ["town"]
    assert facts["validation"]["kind"] == "blocks"
    assert facts["metrics"]["epoch"] == report.best_epoch
    assert facts["settings"]["network"]["depth"] == 2

    pixels = InputTransform(gain=card.normalization.gain, bias=card.normalization.bias).apply(
        town.pixels, np.ones((96, 96), bool)
    )
    with torch.inference_mode():
        roofs = checkpoint.network(torch.from_numpy(pixels)[None])[0, 0].numpy() >= 0
    assert (roofs & (town.mask == 1)).sum() / (roofs | (town.mask == 1)).sum() > 0.8


QUICK = replace(SMALL, learning=replace(SMALL.learning, epochs=2))


def test_the_same_seed_gives_the_same_checkpoint_cached_or_not(town: Town, tmp_path: Path) -> None:
    def run(name: str, **changes: Any) -> str:
        samples = replace(QUICK.samples, **changes)
        return train([town.image], town.labels, tmp_path / name, spec=replace(QUICK, samples=samples)).sha256

    before = torch.random.get_rng_state()
    weights = [load_checkpoint(tmp_path / f"{k}.safetensors") for k in "abc" if run(f"{k}.safetensors", **CASES[k])]
    states = [c.network.state_dict() for c in weights]
    assert all(torch.equal(states[0][key], state[key]) for state in states[1:] for key in state)
    assert weights[0].sha256 == weights[1].sha256
    assert torch.equal(before, torch.random.get_rng_state())
    other = replace(QUICK, seed=1)
    assert train([town.image], town.labels, tmp_path / "d.safetensors", spec=other).sha256 != weights[0].sha256


CASES: dict[str, dict[str, Any]] = {"a": {}, "b": {}, "c": {"cache_mb": 0, "threads": 3}}


@pytest.mark.parametrize(
    "changes",
    [
        {"network": NetworkSpec(depth=2, base_channels=8, padding="valid"), "tile": 44},
        {"network": NetworkSpec(depth=2, base_channels=8, norm="group", upsampling="bilinear", dropout=0.2)},
        {"learning": LearningSpec(epochs=1, precision="bfloat16", schedule="constant")},
        {"resolution_m": 0.75, "block": 16},
    ],
    ids=["unpadded", "group-bilinear", "bfloat16", "resampled"],
)
def test_every_kind_of_network_trains(town: Town, tmp_path: Path, changes: dict[str, Any]) -> None:
    tile = changes.pop("tile", 32)
    samples = replace(SMALL.samples, tile_size=tile, windows_per_epoch=8, block_size=changes.pop("block", 24))
    spec = replace(SMALL, samples=samples, learning=LearningSpec(epochs=1)) if changes else SMALL
    report = train([town.image], town.labels, tmp_path / "m.safetensors", spec=replace(spec, **changes))
    assert math.isfinite(report.history[0].loss)
    assert report.card.receptive_field == spec_of(report.checkpoint).receptive_field
    assert report.card.resolution_m == pytest.approx(changes.get("resolution_m", 0.5), abs=2e-3)


def spec_of(path: Path) -> UNetSpec:
    network = load_checkpoint(path).network
    assert isinstance(network, UNet)
    return network.spec


def test_masks_teach_the_same_as_polygons(town: Town, tmp_path: Path, make_scene: MakeScene) -> None:
    other = Town(tmp_path, make_scene, "other", seed=1)
    spec = replace(QUICK, validation=("other",))
    by_mask = train([town.image, other.image], town.mask_file.parent, tmp_path / "m.safetensors", spec=spec)
    folder = tmp_path / "vectors"
    folder.mkdir()
    town.frame.to_file(folder / "town.gpkg")
    other.frame.to_file(folder / "other.geojson")
    by_polygon = train([town.image, other.image], folder, tmp_path / "p.safetensors", spec=spec)
    assert by_mask.sha256 == by_polygon.sha256
    assert by_mask.card.training["validation"] == {"kind": "scenes", "scenes": ["other"], "parts": 1}


def test_a_diverging_run_keeps_the_last_good_checkpoint(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = itertools.count(1)

    def loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        factor = math.nan if next(calls) > 19 else 1.0  # 8 steps an epoch: in the third
        return segmentation_loss(*args, **kwargs) * factor

    monkeypatch.setattr("pipeline.training.train.segmentation_loss", loss)
    report = train([town.image], town.labels, tmp_path / "m.safetensors", spec=SMALL)
    assert report.stopped == "diverged"
    assert len(report.history) == 2
    assert load_checkpoint(report.checkpoint).sha256 == report.sha256
    assert "the loss became NaN or infinite in epoch 3" in caplog.text
    with pytest.raises(ModelError, match=r"in epoch 1, before any checkpoint.*lower learning.learning_rate"):
        train([town.image], town.labels, tmp_path / "n.safetensors", spec=SMALL)
    assert not (tmp_path / "n.safetensors").exists()


def test_training_stops_when_patience_or_time_runs_out(town: Town, tmp_path: Path) -> None:
    def run(**changes: Any) -> Any:
        spec = replace(SMALL, learning=replace(SMALL.learning, **changes))
        return train([town.image], town.labels, tmp_path / "m.safetensors", spec=spec)

    slow = run(epochs=30, patience=2, learning_rate=1e-9, warmup_epochs=0.0)
    assert slow.stopped == "patience"
    assert len(slow.history) == slow.best_epoch + 2
    assert run(max_minutes=1e-6).stopped == "time"


def test_wrong_usage_stops_before_any_work(town: Town, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    cases: list[tuple[type[Exception], str, Any]] = [
        (SettingsError, "out must end in .safetensors, not 'm.pt'", lambda: train([town.image], town.labels, "m.pt")),
        (SettingsError, "images must name at least one", lambda: train([], town.labels, out)),
        (SceneError, "no such file", lambda: train([tmp_path / "none.tif"], town.labels, out)),
        (LabelError, "no such label file", lambda: train([town.image], tmp_path / "none.gpkg", out)),
        (SettingsError, "device = 'cuda:9' is not usable here",
         lambda: train([town.image], town.labels, out, spec=replace(QUICK, learning=LearningSpec(device="cuda:9")))),
    ]  # fmt: skip
    for error, said, call in cases:
        with pytest.raises(error, match=said):
            call()
    assert not out.exists()


def test_the_learning_rate_rises_and_falls_as_said() -> None:
    spec = LearningSpec(epochs=10, warmup_epochs=2)
    factors = [rate_factor(step, 5, spec) for step in range(51)]
    assert factors[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[30] == pytest.approx(0.5)
    assert factors[50] == pytest.approx(0)
    assert rate_factor(400, 5, replace(spec, schedule="constant")) == 1
    assert max(rate_factor(step, 4, LearningSpec(epochs=1)) for step in range(4)) == 1


def test_precision_is_the_one_named_or_the_native_one() -> None:
    cpu = torch.device("cpu")
    assert choose_precision("float32", cpu) == torch.float32
    assert choose_precision("bfloat16", cpu) == torch.bfloat16
    assert choose_precision("auto", cpu) in (torch.float32, torch.bfloat16)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_DATA.exists(), reason="the shared data set is not here")
def test_a_small_network_learns_real_buildings(tmp_path: Path) -> None:
    folder = SHARED_DATA / "buildings"
    spec = TrainSpec(
        classes=("building",),
        resolution_m=0.3,
        validation=(str(folder / "images" / "banepa_south.tif"),),
        network=NetworkSpec(depth=3, base_channels=16),
        samples=SamplesSpec(windows_per_epoch=128),
        learning=LearningSpec(epochs=5),
    )
    labels = folder / "labels" / "banepa.geojson"
    report = train([folder / "images" / "banepa_north.tif"], labels, tmp_path / "m.safetensors", spec=spec)
    assert report.best_iou > 0.514  # the pixel-wise gradient-boosting floor of the data set
