"""A scene whose bands lie in several files reads as one raster with all of them would."""

from __future__ import annotations

import json
import os
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import MakeScene
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject
from rasterio.windows import Window
from support.models import write_checkpoint

from pipeline.catalog.entry import CatalogEntry
from pipeline.config import SegmentSpec
from pipeline.errors import DamagedSceneError, SceneError
from pipeline.inference.tiling.chunks import chunk_shape
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.card import ModelCard
from pipeline.model.predictor.loading import load_predictor
from pipeline.mosaic.writer import MosaicSpec
from pipeline.results.publish import content_key
from pipeline.results.report import SceneReport
from pipeline.run.dry_run import plan_run
from pipeline.run.scenes import segment_catalog
from pipeline.scene.bands import BandFile
from pipeline.scene.describe import Scene, describe_scene
from pipeline.scene.reader import SceneReader
from pipeline.scene.resample import AxisMapping, plan_nested, plan_taps
from pipeline.scene.spec import ReadingSpec, SceneSource
from pipeline.segment import segment_scene

NAMES = ("blue", "green", "red")
CARD = ModelCard(bands=("red", "blue", "green"), classes=("bright",))
TEN = Affine(10, 0, 600_000, 0, -10, 5_300_000)
TWENTY = TEN @ Affine.scale(2)


def band_file(path: Path | str, *names: str | None, **metadata: Sequence[float | None]) -> BandFile:
    unknown = (None,) * len(names)
    facts = {"nodata": unknown, "scales": unknown, "offsets": unknown} | {k: tuple(v) for k, v in metadata.items()}
    return BandFile(location=str(path), names=names, **facts)


def describe(files: Sequence[BandFile], card: ModelCard | None = CARD, **reading: Any) -> Scene:
    return describe_scene(
        files[0].location, ReadingSpec(**reading), card=card, scene_id="s", source=SceneSource(files=tuple(files))
    )


def read(scene: Scene, window: Window | None = None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    with SceneReader(scene) as reader:
        return reader.read(window or scene.grid.window)


def write(path: Path, pixels: NDArray[Any], transform: Affine = TEN, **profile: Any) -> Path:
    count, height, width = pixels.shape
    facts = {"count": count, "height": height, "width": width, "dtype": pixels.dtype, "crs": "EPSG:32633"}
    with rasterio.open(path, "w", driver="GTiff", transform=transform, **facts, **profile) as dataset:
        dataset.write(pixels)
    return path


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@st.composite
def windows(draw: st.DrawFn, height: int, width: int) -> Window:
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    return Window(left, top, draw(st.integers(1, width - left)), draw(st.integers(1, height - top)))


# One file per band


@settings(max_examples=60)
@given(
    st.data(),
    st.sampled_from(["uint8", "int16", "uint16", "float32", "float64"]),
    st.sampled_from([None, 0.0, 3.0]),
    st.sampled_from(["all_bands", "any_band"]),
    st.sampled_from(["native", 5.0, 10.0, 26.0]),
)
def test_a_scene_cut_into_a_file_per_band_reads_as_the_whole(
    data: st.DataObject, dtype: str, nodata: float | None, when: Any, resolution: Any
) -> None:
    """In whatever order, with whatever validity, resampled or not, every window holds the same pixels."""
    pixels = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 5, (3, 23, 31)).astype(dtype)
    if dtype.startswith("float"):
        pixels[1, 5:9, 3] = np.nan
    order = data.draw(st.permutations(range(3)))
    reading = {"nodata_when": when, "resolution_m": resolution}
    with folder() as place:
        write(place / "whole.tif", pixels, nodata=nodata)
        files = [band_file(write(place / f"{k}.tif", pixels[k][None], nodata=nodata), NAMES[k]) for k in order]
        whole = describe([band_file(place / "whole.tif", *NAMES)], **reading)
        cut = describe(files, **reading)
        assert (cut.grid, cut.bands, cut.dtype, cut.nodata) == (whole.grid, whole.bands, whole.dtype, whole.nodata)
        window = data.draw(windows(*whole.grid.shape))
        (one, valid), (other, good) = read(whole, window), read(cut, window)
    np.testing.assert_array_equal(valid, good)
    np.testing.assert_array_equal(one, other)


def test_a_scene_of_several_files_gives_the_bytes_of_the_whole(make_scene: MakeScene, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 300, 280), np.uint8)
    mask = np.random.default_rng(1).random((300, 280)) > 0.1
    common: dict[str, Any] = {"nodata": 0, "mask": mask, "tiled": 64, "transform": TEN}
    whole = describe([band_file(make_scene(pixels, **common), *NAMES)])
    files = [band_file(make_scene(band[None], **common), name) for band, name in zip(pixels, NAMES, strict=True)]
    for name, scene in (("one", whole), ("three", describe(files))):
        segment_scene(scene, tmp_path / name, predictor=lambda tiles: tiles[:, :1] / 255, card=CARD, spec=SegmentSpec())
    one, three = (tmp_path / name / "s" for name in ("one", "three"))
    for name in ("probability.tif", "mask.tif", "preview.png"):
        assert (one / name).read_bytes() == (three / name).read_bytes()
    polygons, same = (geopandas.read_file(each / "polygons.gpkg", layer="polygons") for each in (one, three))
    assert len(polygons) > 10
    assert polygons.equals(same)


def test_files_may_hold_several_bands_of_the_model_and_others(make_scene: MakeScene) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 30, 40), np.uint8)
    two = make_scene(pixels[[0, 1]], transform=TEN)
    more = make_scene(pixels[[2, 3]], transform=TEN)
    scene = describe([band_file(two, "green", "red"), band_file(more, "haze", "blue")])
    assert scene.bands == ("red", "blue", "green")
    assert scene.band_numbers == (2, 2, 1)
    np.testing.assert_array_equal(read(scene)[0], pixels[[1, 3, 0]])


def test_only_files_with_bands_of_the_model_are_opened(make_scene: MakeScene, tmp_path: Path) -> None:
    files = [band_file(tmp_path / "missing.tif", "nir")]
    files += [band_file(make_scene(bands=1, transform=TEN), name) for name in NAMES]
    assert [file.location.stem for file in describe(files).files] == ["scene0", "scene1", "scene2"]
    with pytest.raises(SceneError, match=r"missing\.tif: no such file"):
        describe(files, None)


def test_files_supply_metadata_missing_in_the_catalog(make_scene: MakeScene) -> None:
    """Names of the catalog, then descriptions; a band that nobody names goes by the name of its file."""
    described = make_scene(bands=2, transform=TEN, descriptions=["Red", None])
    named = make_scene(bands=1, transform=TEN, descriptions=["nonsense"])
    files = [band_file(described, None, "green"), band_file(named, "blue")]
    assert describe(files).band_numbers == (1, 1, 2)
    assert describe(files, None).bands == ("Red", "green", "blue")
    unnamed = band_file(make_scene(bands=1, name="B04.tif", transform=TEN), None)
    assert describe([unnamed, files[1]], None).bands == ("B04", "blue")


def test_the_settings_name_the_bands_of_one_file_before_its_catalog(make_scene: MakeScene) -> None:
    file = band_file(make_scene(bands=2, transform=TEN), "red", "blue")
    card = ModelCard(bands=("red",), classes=("x",))
    assert describe([file], card).band_numbers == (1,)
    assert describe([file], card, bands={"red": 2}).band_numbers == (2,)
    with pytest.raises(SceneError, match=r"needs band\(s\) red, but the file offers 1: nir, 2: blue"):
        describe([file], card, bands={"nir": 1})


def test_of_two_files_with_one_band_the_first_counts(make_scene: MakeScene) -> None:
    files = [band_file(make_scene(bands=1, seed=seed, transform=TEN), "red") for seed in (1, 2)]
    np.testing.assert_array_equal(
        read(describe(files, ModelCard(bands=("red",), classes=("x",))))[0],
        rasterio.open(files[0].location).read(),
    )


def test_types_of_files_meet_in_one_that_holds_all(make_scene: MakeScene) -> None:
    types = ("uint8", "uint16", "float32")
    paths = [make_scene(bands=1, dtype=dtype, transform=TEN) for dtype in types]
    scene = describe([band_file(path, name) for path, name in zip(paths, NAMES, strict=True)])
    assert scene.dtype == "float32"
    assert read(scene)[0].dtype == np.float32
    assert pickle.loads(pickle.dumps(scene)) == scene


# Several resolutions


def test_noise_in_the_last_digits_of_a_transform_resamples_nothing(make_scene: MakeScene) -> None:
    """Two files of 10 m and two of 20 m make two layers, though no two transforms are equal."""
    noise = [Affine.translation(shift, -shift) @ Affine.scale(1 + shift * 1e-6) for shift in (0, 1e-6, 3e-6, 7e-6)]
    sizes = ((20, TEN), (20, TEN), (10, TWENTY), (10, TWENTY))
    names = ("red", "green", "blue", "nir")
    files = [
        band_file(make_scene(bands=1, height=side, width=side, seed=k, transform=each @ noise[k]), names[k])
        for k, (side, each) in enumerate(sizes)
    ]
    scene = describe(files, ModelCard(bands=names, classes=("x",)))
    assert [layer.planes for layer in scene.layers] == [(0, 1), (2, 3)]
    pixels, _ = read(scene)
    for band, file in zip(pixels, files, strict=True):
        with rasterio.open(file.location) as dataset:
            stored = dataset.read(1)
        np.testing.assert_array_equal(band, stored if len(stored) == 20 else stored.repeat(2, 0).repeat(2, 1))


@settings(max_examples=40)
@given(st.data(), st.sampled_from(["uint16", "float32"]), st.sampled_from([2, 3, 6]), st.booleans())
def test_aligned_coarser_bands_are_repeated(data: st.DataObject, dtype: str, times: int, any_band: bool) -> None:
    """A band of 20, 30 or 60 m beside bands of 10 m reads as the stack with `np.repeat` of it, nodata included."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    fine = rng.integers(0, 4, (2, 24, 36)).astype(dtype)
    coarse = rng.integers(0, 4, (1, 24 // times, 36 // times)).astype(dtype)
    stack = np.concatenate([fine, coarse.repeat(times, 1).repeat(times, 2)])
    when: Any = "any_band" if any_band else "all_bands"
    with folder() as place:
        write(place / "fine.tif", fine, nodata=0)
        write(place / "coarse.tif", coarse, TEN @ Affine.scale(times), nodata=0)
        write(place / "stack.tif", stack, nodata=0)
        several = [band_file(place / "coarse.tif", "red"), band_file(place / "fine.tif", "blue", "green")]
        window = data.draw(windows(24, 36))
        got, valid = read(describe(several, nodata_when=when), window)
        oracle = describe([band_file(place / "stack.tif", "blue", "green", "red")], nodata_when=when)
        expected, good = read(oracle, window)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(valid, good)


@settings(max_examples=60)
@given(
    st.data(),
    st.floats(-20, 30).map(lambda metres: round(metres, 2)),
    st.floats(-20, 30).map(lambda metres: round(metres, 2)),
    st.sampled_from([10.0, 15.0, 20.0, 23.7, 60.0]),
)
def test_files_of_any_phase_are_averaged_by_area(data: st.DataObject, east: float, south: float, size: float) -> None:
    """Each pixel is the mean of the valid stored pixels it lies in, by area; past the file, nodata.

    A band that is missing in a pixel that others make valid holds its nodata value; no number is never data.
    """
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    fine = np.ones((1, 20, 24), np.float32)
    coarse = rng.integers(1, 200, (1, 13, 12)).astype(np.float32)
    coarse[rng.random(coarse.shape) < 0.2] = -1
    coarse[rng.random(coarse.shape) < 0.05] = np.nan
    moved = Affine(size, 0, TEN.c + east, 0, -size, TEN.f - south)
    when: Any = data.draw(st.sampled_from(["all_bands", "any_band"]))
    with folder() as place:
        files = [
            band_file(write(place / "fine.tif", fine), "blue"),
            band_file(write(place / "coarse.tif", coarse, moved, nodata=-1), "red"),
        ]
        scene = describe(files, ModelCard(bands=("red", "blue"), classes=("x",)), nodata_when=when)
        window = data.draw(windows(20, 24))
        got, valid = read(scene, window)
    placement: dict[str, Any] = {"first": (-south / size, -east / size), "step": 10 / size, "shape": (20, 24)}
    mean, share = (each[window.toslices()] for each in _area_mean(coarse[0], coarse[0] > 0, **placement))
    _, finite = (each[window.toslices()] for each in _area_mean(coarse[0], np.isfinite(coarse[0]), **placement))
    sure = (np.abs(share - 0.5) > 0.02) & (np.abs(finite - 0.5) > 0.02)  # positions are kept to a thousandth of a pixel
    counted = share if when == "any_band" else finite
    np.testing.assert_array_equal(valid[sure], (counted >= 0.5)[sure])
    held = np.where(share >= 0.5, mean, -1)
    np.testing.assert_allclose(got[0][valid & sure], held[valid & sure], atol=0.5)


def _area_mean(
    band: NDArray[Any], counts: NDArray[np.bool_], *, first: tuple[float, float], step: float, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Brute force: mean over the stored pixels that count under each output pixel, and which share of it they cover."""
    mean, share = np.zeros(shape), np.zeros(shape)
    values = np.where(counts, band, 0)
    for row, col in np.ndindex(shape):
        rows = _lengths(band.shape[0], first[0] + row * step, step)
        cols = _lengths(band.shape[1], first[1] + col * step, step)
        weights = np.outer(rows, cols) * counts
        share[row, col] = weights.sum() / step**2
        mean[row, col] = (weights * values).sum() / max(weights.sum(), 1e-12)
    return mean, share


def _lengths(count: int, low: float, step: float) -> NDArray[np.float64]:
    places = np.arange(count)
    return np.clip(np.minimum(places + 1, low + step) - np.maximum(places, low), 0, None)


def test_the_finest_file_gives_the_grid_and_what_others_do_not_cover_is_nodata(make_scene: MakeScene) -> None:
    """Extents may differ: here the coarser file begins one of its pixels later and ends two earlier."""
    fine = make_scene(np.ones((1, 20, 20), np.uint16), transform=TEN)
    coarse = make_scene(np.full((1, 7, 7), 9, np.uint16), transform=TWENTY @ Affine.translation(1, 1))
    files = [band_file(coarse, "red"), band_file(fine, "blue")]
    scene = describe(files, ModelCard(bands=("red", "blue"), classes=("x",)))
    assert (scene.grid.shape, scene.grid.transform) == ((20, 20), TEN)
    pixels, valid = read(scene)
    expected = np.zeros((20, 20), bool)
    expected[2:16, 2:16] = True
    np.testing.assert_array_equal(valid, expected)
    assert set(pixels[0][valid]) == {9}
    assert not read(scene, Window(17, 17, 3, 3))[1].any()


@pytest.mark.parametrize(
    ("dtype", "nodata", "held"),
    [
        ("float32", -3.4028234663852886e38, np.finfo("float32").min),
        ("float32", -1.7976931348623157e308, 0),  # a tag outside the type's range, which no pixel can hold
        ("uint8", -9999.0, 0),
        ("uint8", 0.5, 0),
        ("int16", -9999.0, -9999),
    ],
)
def test_a_missing_band_holds_its_nodata_value_where_its_type_can(
    make_scene: MakeScene, dtype: str, nodata: float, held: float
) -> None:
    """The coarser file begins half a pixel later and is masked throughout, so its band has no mean anywhere."""
    nothing = np.zeros((10, 10), bool)
    moved = TWENTY @ Affine.translation(0.25, 0.25)
    coarse = make_scene(np.ones((1, 10, 10), dtype), transform=moved, mask=nothing)
    fine = make_scene(np.ones((1, 20, 20), dtype), transform=TEN)
    files = [band_file(coarse, "red", nodata=[nodata]), band_file(fine, "blue")]
    pixels, valid = read(describe(files, ModelCard(bands=("red", "blue"), classes=("x",))))
    assert valid[2:18, 2:18].all()
    assert (pixels[0] == held).all()


@pytest.mark.parametrize("wanted", [10.0, 40.0, 7.0])
def test_a_model_of_another_resolution_gets_all_files_at_its_own(make_scene: MakeScene, wanted: float) -> None:
    shades = [make_scene(np.full((1, n, n), v, np.uint8), transform=t) for n, v, t in ((40, 5, TEN), (20, 7, TWENTY))]
    files = [band_file(path, name) for path, name in zip(shades, ("red", "blue"), strict=True)]
    card = ModelCard(bands=("blue", "red"), classes=("x",), resolution_m=wanted)
    if wanted == 40:
        with pytest.raises(SceneError, match=r"scene0\.tif: its pixels are 10 m .*reading.resolution_m=model"):
            describe(files, card)
    scene = describe(files, card, resolution_m="model")
    assert scene.grid.resolution_m == pytest.approx(wanted, rel=0.02)
    pixels, valid = read(scene)
    assert valid.all()
    assert [set(band.ravel()) for band in pixels] == [{7}, {5}]


@settings(max_examples=25)
@given(st.data(), st.sampled_from([7.0, 10.0, 13.0, 40.0]), st.sampled_from(["all_bands", "any_band"]))
def test_windows_of_several_resolutions_equal_the_whole(data: st.DataObject, metres: float, when: Any) -> None:
    """Also where a window is read in parts to bound memory, and where numbers are missing."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    sizes = ((24, 10), (12, 20), (5, 60))
    with folder() as place, pytest.MonkeyPatch.context() as patch:
        files = []
        for name, (size, pixel) in zip(NAMES, sizes, strict=True):
            pixels = rng.integers(0, 4, (1, size, size)).astype(np.float32)
            pixels[rng.random(pixels.shape) < 0.05] = np.nan
            files.append(
                band_file(write(place / f"{name}.tif", pixels, TEN @ Affine.scale(pixel / 10), nodata=0), name)
            )
        scene = describe(files, resolution_m=metres, nodata_when=when)
        whole, valid = read(scene)
        window = data.draw(windows(*scene.grid.shape))
        if data.draw(st.booleans()):
            patch.setattr("pipeline.scene.reader.MAX_RESAMPLED_PIXELS", 9)
        pixels, good = read(scene, window)
    np.testing.assert_array_equal(good, valid[window.toslices()])
    np.testing.assert_array_equal(pixels, whole[(slice(None), *window.toslices())])
    assert np.isfinite(pixels[:, good]).all()


def test_a_nested_position_is_the_area_mean_of_one_pixel() -> None:
    """Two ways to the same pixel: where every output pixel lies in one stored pixel, its only tap is that one."""
    axis = AxisMapping(stored=5, outputs=18, first=Fraction(1, 3), last=Fraction(19, 3))
    assert axis.is_nested
    nested, taps = plan_nested(axis, 0, 18), plan_taps(axis, 0, 18)
    np.testing.assert_array_equal(nested.inside, taps.inside)
    heaviest = taps.index[np.arange(18), taps.weight.argmax(axis=1)]
    np.testing.assert_array_equal(heaviest[taps.inside], nested.index[:, 0][taps.inside])
    np.testing.assert_allclose(taps.weight.max(axis=1)[taps.inside], 1 / 3)


def test_chunks_hold_whole_blocks_of_all_files_as_far_as_that_is_bounded(make_scene: MakeScene) -> None:
    fine = band_file(make_scene(bands=1, height=2000, width=2000, tiled=256, transform=TEN), "red")
    card = ModelCard(bands=("red", "blue"), classes=("x",))

    def chunk(block: int, size: float) -> tuple[int, int]:
        side = round(20_000 / size)
        path = make_scene(bands=1, height=side, width=side, tiled=block, transform=TEN @ Affine.scale(size / 10))
        return chunk_shape(describe([fine, band_file(path, "blue")], card))

    assert chunk(256, 20) == (512, 1024)
    assert chunk(512, 20) == (1024, 1024)
    assert chunk(512, 60) == (512, 1024)  # 3072 rows would be too many


def test_a_real_sentinel_chip_with_a_coarser_band_is_what_gdal_makes_of_it(shared_data: Path, tmp_path: Path) -> None:
    """Near infrared averaged to 20 m, beside red of 10 m; GDAL brings it back to 10 m by nearest neighbour."""
    with rasterio.open(next((shared_data / "mangrove_4band").rglob("*.tif"))) as chip:
        crs, fine, pixels = chip.crs, chip.transform, chip.read()
    coarse, near = np.zeros((1, 256, 256), np.uint8), np.zeros((1, 512, 512), np.uint8)
    half = fine @ Affine.scale(2)
    place = {"src_crs": crs, "dst_crs": crs}
    reproject(pixels[3:], coarse, src_transform=fine, dst_transform=half, resampling=Resampling.average, **place)
    reproject(coarse, near, src_transform=half, dst_transform=fine, resampling=Resampling.nearest, **place)
    files = [
        band_file(write(tmp_path / "nir.tif", coarse, half), "nir"),
        band_file(write(tmp_path / "visible.tif", pixels[:3], fine), "red", "green", "blue"),
    ]
    got, valid = read(describe(files, ModelCard(bands=("red", "nir"), classes=("mangrove",), resolution_m=10.0)))
    assert valid.all()
    np.testing.assert_array_equal(got, [pixels[0], near[0]])


# What the catalog and the files say of validity and brightness


def test_masks_and_alpha_of_each_file_count(make_scene: MakeScene) -> None:
    rng = np.random.default_rng(2)
    masks = rng.random((3, 20, 20)) > 0.4
    files = [
        band_file(make_scene(bands=1, height=20, width=20, mask=masks[0], transform=TEN), "red"),
        band_file(make_scene(bands=1, height=20, width=20, alpha=masks[1], transform=TEN), "green"),
        band_file(make_scene(np.where(masks[2], 7, 9)[None].astype(np.uint8), nodata=9, transform=TEN), "blue"),
    ]
    np.testing.assert_array_equal(read(describe(files))[1], masks.any(axis=0))
    np.testing.assert_array_equal(read(describe(files, nodata_when="any_band"))[1], masks.all(axis=0))


def test_the_catalogs_nodata_goes_before_the_tag_and_the_settings_before_both(make_scene: MakeScene) -> None:
    pixels = np.array([[[0, 5, 9, 7]]], np.uint8)
    card = ModelCard(bands=("red",), classes=("x",))
    path = make_scene(pixels, nodata=5, transform=TEN)

    def valid(catalog: float | None, **reading: Any) -> list[bool]:
        return [
            bool(value) for value in read(describe([band_file(path, "red", nodata=[catalog])], card, **reading))[1][0]
        ]

    assert valid(None) == [True, False, True, True]
    assert valid(9.0) == [True, True, False, True]
    assert valid(9.0, nodata=7) == [True, True, True, False]
    assert valid(9.0, ignore_nodata=True) == [True] * 4
    assert valid(float("nan")) == [True] * 4


@pytest.mark.parametrize("several", [False, True])
def test_the_catalogs_scale_and_offset_reach_the_model(make_scene: MakeScene, tmp_path: Path, several: bool) -> None:
    """A pointwise model gives what hand computation gives: stored * scale + offset, from the catalog or the file."""
    pixels = np.random.default_rng(0).integers(0, 100, (2, 40, 40)).astype(np.uint16)
    tags: dict[str, Any] = {"transform": TEN}
    scaling: dict[str, Any] = {"scales": (0.01, None), "offsets": (None, 0.25)}
    if several:
        paths = [make_scene(band[None], scales=[0.002], offsets=[0.0], **tags) for band in pixels]
        files = [
            band_file(path, name, scales=[scaling["scales"][k]], offsets=[scaling["offsets"][k]])
            for k, (path, name) in enumerate(zip(paths, ("red", "blue"), strict=True))
        ]
    else:
        path = make_scene(pixels, scales=[0.002, 0.002], offsets=[0.0, 0.0], **tags)
        files = [band_file(path, "red", "blue", **scaling)]
    card = ModelCard(bands=("blue", "red"), classes=("x",))
    spec = SegmentSpec(mosaic=MosaicSpec(dtype="float32"))
    report = segment_scene(
        describe(files, card),
        tmp_path / "out",
        predictor=lambda tiles: tiles.mean(1, keepdims=True),
        card=card,
        spec=spec,
    )
    with rasterio.open(Path(report.folder) / "probability.tif") as dataset:
        got = dataset.read(1)
    plain = describe(files, card, ignore_scale=True)
    assert (plain.scales, plain.offsets) == ((1.0, 1.0), (0.0, 0.0))
    expected = (pixels[0] * 0.01 + 0.0 + pixels[1] * 0.002 + 0.25) / 2
    np.testing.assert_allclose(got, expected, atol=1e-6)


# Refusals and faults


def test_files_that_do_not_fit_one_another_are_refused(make_scene: MakeScene) -> None:
    red = band_file(make_scene(bands=1, name="red.tif", transform=TEN), "red")
    card = ModelCard(bands=("red", "blue"), classes=("x",))

    def refused(message: str, *names: str | None, **facts: Any) -> None:
        path = make_scene(**{"bands": 1, "name": "blue.tif", "transform": TEN} | facts)
        with pytest.raises(SceneError, match=message):
            describe([red, band_file(path, *(names or ("blue",)))], card)

    refused(
        r"blue\.tif: is in EPSG:32634, but .*red\.tif of the same scene in EPSG:32633; .*gdalwarp", crs="EPSG:32634"
    )
    refused(r"blue\.tif, next to .*red\.tif: the rows .* different directions", transform=TEN @ Affine.rotation(5))
    refused(r"blue\.tif, next to .*red\.tif: the rows .* different directions", transform=TEN @ Affine.scale(1, -1))
    far = TEN @ Affine.translation(60, 0)
    refused(r"blue\.tif: does not overlap .*red\.tif.*x 600600 to 601100.*correct the catalog", transform=far)
    refused(r"needs band\(s\) blue, but the 2 files .* offer red \(.*red\.tif\), nir \(.*blue\.tif\)", "nir")
    refused(r"blue\.tif: the catalog names more bands of it than the 1 it has", "nir", "blue")
    refused(r"blue\.tif: has a geotransform but no CRS", crs=None)
    with pytest.raises(SceneError, match=r"needs band.* blue, but the 2 files of this scene offer red"):
        describe([red, band_file(make_scene(bands=1, transform=TEN), None)], card)
    with pytest.raises(SceneError, match=r"needs band.* blue, but the 3 files"):  # nothing unnamed, so nothing to open
        describe([red, red, band_file("missing.tif", "nir")], card)
    with pytest.raises(SceneError, match=r"reading\.bands numbers the bands of one file, and this scene has 2"):
        describe([red, red], card, bands={"blue": 1})


def test_rotated_files_that_share_their_rotation_are_read(make_scene: MakeScene) -> None:
    turned = TEN @ Affine.rotation(30)
    pixels = np.random.default_rng(0).integers(0, 255, (1, 10, 10), np.uint8)
    fine = band_file(make_scene(bands=1, height=20, width=20, transform=turned), "red")
    coarse = band_file(make_scene(pixels, transform=turned @ Affine.scale(2)), "blue")
    got, _ = read(describe([fine, coarse], ModelCard(bands=("blue", "red"), classes=("x",))))
    np.testing.assert_array_equal(got[0], pixels[0].repeat(2, 0).repeat(2, 1))


def test_damage_names_the_file_that_is_damaged(make_scene: MakeScene) -> None:
    paths = [make_scene(bands=1, transform=TEN, tiled=16, compress="deflate", name=f"{name}.tif") for name in NAMES]
    scene = describe([band_file(path, name) for path, name in zip(paths, NAMES, strict=True)])
    content = bytearray(paths[1].read_bytes())
    content[600:1500] = bytes(900)
    paths[1].write_bytes(content)
    with pytest.raises(DamagedSceneError, match=r"green\.tif: damaged at rows"):
        read(scene)


# Who a scene is


def test_the_content_key_covers_every_file_and_its_metadata(make_scene: MakeScene) -> None:
    paths = [make_scene(bands=1, transform=TEN) for _ in NAMES]
    files = [band_file(path, name) for path, name in zip(paths, NAMES, strict=True)]

    def key(files: Sequence[BandFile]) -> str:
        return content_key(describe(files), "model", {})

    keys = {key(files), key([files[1], files[0], files[2]])}
    for change in ({"nodata": (1.0,)}, {"scales": (2.0,)}, {"offsets": (1.0,)}):
        keys.add(key([files[0], replace(files[1], **change), files[2]]))
    os.utime(paths[2], ns=(0, 0))
    keys.add(key(files))
    assert len(keys) == 6


def test_a_catalogs_date_goes_before_the_files(make_scene: MakeScene) -> None:
    path = make_scene(bands=1, transform=TEN)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME="2020:01:02 03:04:05")
    assert describe_scene(path).acquired == "2020-01-02T03:04:05Z"
    assert describe_scene(path, source=SceneSource(acquired="2024-05-06T00:00:00Z")).acquired == "2024-05-06T00:00:00Z"


def test_a_run_follows_every_file_of_a_scene(make_scene: MakeScene, tmp_path: Path) -> None:
    """Done, then known as done, then done anew when any file changes, then in quarantine for the damage of one."""
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu")
    paths = [make_scene(bands=1, height=64, width=64, transform=TEN, tiled=16, name=f"{name}.tif") for name in NAMES]
    files = tuple(band_file(path, name) for path, name in zip(paths, NAMES, strict=True))
    entry = CatalogEntry(id="s", location=str(paths[0]), files=files, acquired="2024-05-06T07:08:09Z")
    spec = SegmentSpec(tiling=TilingSpec(tile_size=64, overlap=8))

    def run() -> SceneReport:
        return next(iter(segment_catalog([entry], tmp_path / "out", predictor=predictor, spec=spec)))

    assert (run().status, run().status) == ("done", "skipped")
    (planned,) = plan_run([entry], spec, models=[tmp_path / "m.safetensors"], out_dir=tmp_path / "out")
    assert (planned.action, run().inputs.date) == ("done", "2024-05-06T07:08:09Z")
    (planned,) = plan_run([entry], spec)
    assert planned.reason == "64 x 64 px of 10 m, 3 bands of uint8 in 3 files"
    os.utime(paths[2], ns=(0, 0))
    assert (run().status, run().status) == ("done", "skipped")
    content = paths[1].read_bytes()
    paths[1].write_bytes(content[:-2000])
    failed = run()
    assert failed.status == "failed"
    assert "green.tif: truncated" in str(failed.reason)
    assert run().status == "quarantined"
    paths[1].write_bytes(content)
    assert run().status == "done"


def test_the_report_and_the_item_name_every_file_wherever_they_are_now(make_scene: MakeScene, tmp_path: Path) -> None:
    predictor = load_predictor(write_checkpoint(tmp_path / "m.safetensors"), "cpu")
    paths = [make_scene(bands=1, height=64, width=64, transform=TEN, name=f"in/{name}.tif") for name in NAMES]
    spec, out = SegmentSpec(tiling=TilingSpec(tile_size=64, overlap=8)), tmp_path / "out"

    def run(places: Sequence[Path]) -> SceneReport:
        files = tuple(band_file(path, name) for path, name in zip(places, NAMES, strict=True))
        entry = CatalogEntry(id="s", location=str(places[0]), files=files)
        return next(iter(segment_catalog([entry], out, predictor=predictor, spec=spec)))

    wanted = sorted(map(str, paths))
    assert sorted(run(paths).inputs.files) == wanted
    stored = json.loads((out / "s" / "report.json").read_text())
    assert (sorted(stored["files"]), stored["location"]) == (wanted, stored["files"][0])
    assert _origins(out) == [Path(path).as_uri() for path in stored["files"]]
    (out / "s" / "report.json").write_text(json.dumps({k: v for k, v in stored.items() if k != "files"}))
    (tmp_path / "in").rename(tmp_path / "moved")
    again = run([tmp_path / "moved" / path.name for path in paths])
    assert (again.status, len(again.inputs.files)) == ("skipped", 3)
    assert {Path(path).parent.name for path in again.inputs.files} == {"moved"}
    assert _origins(out) == [Path(path).as_uri() for path in again.inputs.files]


def test_the_report_of_a_scene_of_one_file_lists_no_files(make_scene: MakeScene, tmp_path: Path) -> None:
    report = segment_scene(make_scene(), tmp_path, predictor=lambda tiles: tiles[:, :1] / 255, card=CARD)
    assert report.inputs.files == []


def _origins(out: Path) -> list[str]:
    links = json.loads((out / "s" / "item.json").read_text())["links"]
    return [link["href"] for link in links if link["rel"] == "derived_from"]
