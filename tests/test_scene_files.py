"""A scene whose bands lie in several files reads as one raster with all of them would."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from rasterio.windows import Window

from pipeline.band_file import BandFile
from pipeline.card import ModelCard
from pipeline.config import SegmentSpec
from pipeline.errors import SceneError
from pipeline.scene import ReadingSpec, Scene, SceneReader, describe_scene
from pipeline.segment import segment_scene

NAMES = ("blue", "green", "red")
CARD = ModelCard(bands=("red", "blue", "green"), classes=("bright",))
TEN = Affine(10, 0, 600_000, 0, -10, 5_300_000)
TWENTY = TEN @ Affine.scale(2)


def band_file(path: Path | str, *names: str | None, **told: Sequence[float | None]) -> BandFile:
    unknown = (None,) * len(names)
    facts = {"nodata": unknown, "scales": unknown, "offsets": unknown} | {k: tuple(v) for k, v in told.items()}
    return BandFile(location=str(path), names=names, **facts)


def describe(files: Sequence[BandFile], card: ModelCard | None = CARD, **reading: Any) -> Scene:
    return describe_scene(files[0].location, ReadingSpec(**reading), card=card, scene_id="s", files=files)


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


def test_files_say_what_the_catalog_does_not(make_scene: MakeScene) -> None:
    """Names of the catalog, then descriptions; a band that nobody names goes by the name of its file."""
    described = make_scene(bands=2, transform=TEN, descriptions=["Red", None])
    named = make_scene(bands=1, transform=TEN, descriptions=["nonsense"])
    files = [band_file(described, None, "green"), band_file(named, "blue")]
    assert describe(files).band_numbers == (1, 1, 2)
    assert describe(files, None).bands == ("Red", "green", "blue")
    unnamed = band_file(make_scene(bands=1, name="B04.tif", transform=TEN), None)
    assert describe([unnamed, files[1]], None).bands == ("B04", "blue")


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
    """Each pixel of the scene is the mean of the valid stored pixels it lies in, by area; past the file, nodata."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    fine = np.ones((1, 20, 24), np.float32)
    coarse = rng.integers(1, 200, (1, 13, 12)).astype(np.float32)
    coarse[rng.random(coarse.shape) < 0.2] = -1
    moved = Affine(size, 0, TEN.c + east, 0, -size, TEN.f - south)
    with folder() as place:
        files = [
            band_file(write(place / "fine.tif", fine), "blue"),
            band_file(write(place / "coarse.tif", coarse, moved, nodata=-1), "red"),
        ]
        card = ModelCard(bands=("red", "blue"), classes=("x",))
        scene = describe(files, card, nodata_when="any_band")
        window = data.draw(windows(20, 24))
        got, valid = read(scene, window)
    step, (top, left) = 10 / size, (-south / size, -east / size)
    mean, share = _area_mean(coarse[0], top, left, step, (20, 24))
    mean, share = mean[window.toslices()], share[window.toslices()]
    sure = np.abs(share - 0.5) > 0.02  # positions are kept to a thousandth of a pixel
    np.testing.assert_array_equal(valid[sure], (share >= 0.5)[sure])
    np.testing.assert_allclose(got[0][valid & sure], mean[valid & sure], atol=0.5)


def _area_mean(
    band: NDArray[Any], top: float, left: float, step: float, shape: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Brute force: mean over valid stored pixels under each output pixel, and which share of it they cover."""
    mean, share = np.zeros(shape), np.zeros(shape)
    for row, col in np.ndindex(shape):
        rows = _lengths(band.shape[0], top + row * step, step)
        cols = _lengths(band.shape[1], left + col * step, step)
        weights = np.outer(rows, cols)
        weights *= band >= 0
        share[row, col] = weights.sum() / step**2
        mean[row, col] = (weights * band).sum() / max(weights.sum(), 1e-12)
    return mean, share


def _lengths(count: int, low: float, step: float) -> NDArray[np.float64]:
    places = np.arange(count)
    return np.clip(np.minimum(places + 1, low + step) - np.maximum(places, low), 0, None)
