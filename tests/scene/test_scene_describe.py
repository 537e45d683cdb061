"""Scenes are described once, read by windows with their validity, or refused with the way out."""

from __future__ import annotations

import pickle
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import MakeScene
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.windows import Window
from support import range_server

from pipeline.errors import DamagedSceneError, SceneError, ScenemillError, SettingsError, TransientError
from pipeline.inference.tiling.strips import read_strips
from pipeline.inference.tiling.tiles import Tiling, plan_tiles
from pipeline.model.card import REAL_DTYPES, ModelCard
from pipeline.scene.describe import Scene, describe_scene
from pipeline.scene.reader import SceneReader
from pipeline.scene.spec import ReadingSpec
from pipeline.scene.validity import NodataWhen, finite_pixels, present_pixels
from pipeline.storage.retries import RetryPolicy

RGB = ModelCard(bands=("red", "green", "blue"), classes=("roof",))


def read_all(scene: Scene) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    with SceneReader(scene) as reader:
        return reader.read(scene.grid.window)


def read_path(path: Path, card: ModelCard | None = None, **reading: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    return read_all(describe_scene(path, ReadingSpec(**reading), card=card))


def valid_pixels(pixels: NDArray[Any], nodata: Sequence[float | None], when: NodataWhen) -> NDArray[np.bool_]:
    present, finite = present_pixels(pixels, nodata, when), finite_pixels(pixels)
    return present if finite is None else present & finite


def card_for(*bands: str, **facts: Any) -> ModelCard:
    return ModelCard(bands=bands, classes=("roof",), **facts)


# Pixels


@pytest.mark.parametrize("dtype", [name for name in REAL_DTYPES if name != "float16"])
def test_every_real_type_is_read_as_stored(make_scene: MakeScene, dtype: str) -> None:
    path = make_scene(dtype=dtype, bands=2, tiled=16)
    pixels, valid = read_path(path)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(pixels, dataset.read())
    assert pixels.dtype == dtype
    assert valid.all()


@given(st.integers(0, 39), st.integers(0, 49), st.integers(1, 40), st.integers(1, 50))
def test_a_window_holds_what_a_slice_of_the_whole_holds(row: int, col: int, height: int, width: int) -> None:
    height, width = min(height, 40 - row), min(width, 50 - col)
    with SceneReader(HELD.scene) as reader:
        pixels, valid = reader.read(Window(col, row, width, height))
    np.testing.assert_array_equal(pixels, HELD.pixels[:, row : row + height, col : col + width])
    np.testing.assert_array_equal(valid, HELD.valid[row : row + height, col : col + width])


@dataclass
class Held:
    """What drawn tests share within one test, made by the fixture below."""

    scene: Scene = field(init=False)
    pixels: NDArray[Any] = field(init=False)
    valid: NDArray[np.bool_] = field(init=False)
    content: bytes = field(init=False)
    folder: Path = field(init=False)


HELD = Held()


@pytest.fixture(autouse=True)
def _held_scene(make_scene: MakeScene, request: pytest.FixtureRequest) -> None:
    if "damaged_bytes_anywhere" in request.node.name:
        path = make_scene(bands=2, height=12, width=12, compress="lzw", nodata=3, mask=np.eye(12), name="sound.tif")
        HELD.content, HELD.folder = path.read_bytes(), path.parent
    if "slice_of_the_whole" in request.node.name:
        mask = np.random.default_rng(1).random((40, 50)) > 0.3
        HELD.scene = describe_scene(make_scene(mask=mask, tiled=16, name="held.tif"))
        HELD.pixels, HELD.valid = read_all(HELD.scene)
        np.testing.assert_array_equal(HELD.valid, mask)


def test_many_threads_read_the_same_pixels_as_one(make_scene: MakeScene) -> None:
    scene = describe_scene(make_scene(height=300, width=300, tiled=32, compress="deflate", nodata=7))
    whole, valid = read_all(scene)
    windows = [Window(col, row, 60, 50) for row in range(0, 250, 25) for col in range(0, 240, 30)] * 3
    with SceneReader(scene) as reader, ThreadPoolExecutor(8) as pool:
        for window, (pixels, good) in zip(windows, pool.map(reader.read, windows), strict=True):
            np.testing.assert_array_equal(pixels, whole[(slice(None), *window.toslices())])
            np.testing.assert_array_equal(good, valid[window.toslices()])


def test_each_storage_block_is_decoded_once(make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    """No two windows of a whole run over a scene touch the same storage block."""
    path = make_scene(bands=1, height=700, width=1500, tiled=64)
    scene = describe_scene(path)
    windows: list[Window] = []
    read = SceneReader.read

    def spy(reader: SceneReader, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        windows.append(window)
        return read(reader, window)

    monkeypatch.setattr(SceneReader, "read", spy)
    plan = plan_tiles(scene.grid.shape, Tiling(tile_size=200, overlap=50))
    for _ in read_strips(scene, plan, (range(plan.shape[0]), range(plan.shape[1]))):
        pass
    decoded = np.zeros((-(-700 // 64), -(-1500 // 64)), int)
    for window in windows:
        rows, cols = window.toslices()
        decoded[rows.start // 64 : -(-rows.stop // 64), cols.start // 64 : -(-cols.stop // 64)] += 1
    assert (decoded == 1).all()


def test_a_described_scene_is_plain_data(make_scene: MakeScene) -> None:
    scene = describe_scene(make_scene())
    assert pickle.loads(pickle.dumps(scene)) == scene


# Bands


def test_bands_come_in_the_order_of_the_model_by_description(make_scene: MakeScene) -> None:
    names = ["Blue", "green", "R", "Near-Infrared"]
    path = make_scene(bands=4, descriptions=names, photometric="minisblack", colorinterp=["undefined"] * 4)
    pixels, _ = read_path(path, card_for("nir", "red", "blue"))
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(pixels, dataset.read([4, 3, 1]))


def test_bands_are_found_by_colour_interpretation(make_scene: MakeScene) -> None:
    path = make_scene(bands=3, colorinterp=["blue", "green", "red"], photometric="minisblack", alpha=np.ones((40, 50)))
    scene = describe_scene(path, card=RGB)
    assert scene.band_numbers == (3, 2, 1)
    assert scene.files[0].alpha_number == 4


def test_an_explicit_mapping_overrides_the_file(make_scene: MakeScene) -> None:
    path = make_scene(bands=3, descriptions=["red", "green", "blue"])
    scene = describe_scene(path, ReadingSpec(bands={"red": 3}), card=card_for("red", "green"))
    assert scene.band_numbers == (3, 2)


def test_a_missing_band_is_reported_with_the_available_bands(make_scene: MakeScene) -> None:
    path = make_scene(bands=2, descriptions=["red", "nir"])
    with pytest.raises(SceneError, match=r"needs band\(s\) green, blue.*offers 1: red, 2: nir.*set reading.bands"):
        describe_scene(path, card=RGB)


def test_a_mapping_beyond_the_file_is_refused(make_scene: MakeScene) -> None:
    with pytest.raises(SceneError, match=r"maps to \{'nir': 9\}, but the file has 3"):
        describe_scene(make_scene(), ReadingSpec(bands={"nir": 9}))


def test_a_wanted_band_that_is_tagged_alpha_points_to_the_setting(make_scene: MakeScene) -> None:
    path = make_scene(bands=3, colorinterp=["red", "green", "blue"], alpha=np.ones((40, 50)), photometric="rgb")
    wanted = card_for("red", "nir")
    with pytest.raises(SceneError, match=r"band 4 is tagged alpha.*reading.ignore_alpha=true"):
        describe_scene(path, card=wanted)
    with pytest.raises(SceneError, match=r"band 4, wanted as 'nir', is tagged alpha.*reading.ignore_alpha=true"):
        describe_scene(path, ReadingSpec(bands={"nir": 4}), card=wanted)
    assert describe_scene(path, ReadingSpec(bands={"nir": 4}, ignore_alpha=True), card=wanted).band_numbers == (1, 4)


def test_a_model_trained_on_another_pixel_type_does_not_fit(make_scene: MakeScene) -> None:
    path = make_scene(descriptions=["red", "green", "blue"], dtype="uint16")
    with pytest.raises(SceneError, match=r"'red' is uint16, but the model was trained on uint8"):
        describe_scene(path, card=card_for("red", dtype="uint8"))


# Validity

small = st.integers(0, 3)


@given(
    hnp.arrays(np.uint8, (3, 5, 6), elements=small),
    st.lists(st.one_of(st.none(), small), min_size=3, max_size=3),
    st.sampled_from(["all_bands", "any_band"]),
)
def test_the_nodata_rule_is_all_or_any(pixels: NDArray[np.uint8], nodata: list[float | None], when: Any) -> None:
    holds = [np.zeros((5, 6), bool) if v is None else band == v for band, v in zip(pixels, nodata, strict=True)]
    expected = ~np.all(holds, axis=0) if when == "all_bands" else ~np.any(holds, axis=0)
    np.testing.assert_array_equal(valid_pixels(pixels, nodata, when), expected)


@pytest.mark.parametrize("when", ["all_bands", "any_band"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_never_valid(bad: float, when: Any) -> None:
    pixels = np.zeros((2, 1, 3), np.float32)
    pixels[1, 0, 1] = bad
    assert valid_pixels(pixels, (None, None), when).tolist() == [[True, False, True]]


@pytest.mark.parametrize(
    ("dtype", "nodata", "pixel", "valid"),
    [
        ("uint8", -9999.0, 0, True),  # a tag outside the type's range hits nothing
        ("uint8", 0.5, 0, True),  # nor does a fraction among whole numbers
        ("float32", -3.4028234663852886e38, np.finfo("float32").min, False),  # written with 17 digits
        ("float32", -1.7976931348623157e308, np.finfo("float32").min, True),
        ("float32", 0.1, np.float32(0.1), False),  # compared as stored
        ("uint16", 65535.0, 65535, False),
        ("int8", -128.0, -128, False),
    ],
)
def test_nodata_is_compared_in_the_pixels_own_type(dtype: str, nodata: float, pixel: float, valid: bool) -> None:
    pixels = np.full((1, 1, 1), pixel, dtype)
    assert valid_pixels(pixels, (nodata,), "all_bands").item() is valid


def test_a_tag_decides_when_all_bands_or_any_band_hold_it(make_scene: MakeScene) -> None:
    pixels = np.ones((2, 2, 2), np.uint8)
    pixels[:, 0, 0] = pixels[0, 1, 1] = 0
    path = make_scene(pixels, nodata=0)
    assert read_path(path)[1].tolist() == [[False, True], [True, True]]
    assert read_path(path, nodata_when="any_band")[1].tolist() == [[False, True], [True, False]]


def test_only_the_bands_that_the_model_uses_decide(make_scene: MakeScene) -> None:
    pixels = np.ones((2, 1, 2), np.uint8)
    pixels[0, 0, 0] = 0
    path = make_scene(pixels, nodata=0, descriptions=["red", "nir"])
    assert read_path(path, card_for("red"))[1].tolist() == [[False, True]]
    assert read_path(path, card_for("nir"))[1].tolist() == [[True, True]]


def test_settings_replace_or_ignore_the_nodata_tag(make_scene: MakeScene) -> None:
    path = make_scene(np.array([[[0, 5, 9]]], np.uint8), nodata=5)
    assert read_path(path)[1].tolist() == [[True, False, True]]
    assert read_path(path, nodata=9)[1].tolist() == [[True, True, False]]
    assert read_path(path, ignore_nodata=True)[1].tolist() == [[True, True, True]]


MASK = np.arange(40 * 50).reshape(40, 50) % 7 > 2


def test_an_internal_mask_decides(make_scene: MakeScene) -> None:
    np.testing.assert_array_equal(read_path(make_scene(mask=MASK))[1], MASK)


def test_a_mask_sidecar_decides(make_scene: MakeScene, tmp_path: Path) -> None:
    path = make_scene(name="side.tif")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(MASK)
    assert (tmp_path / "side.tif.msk").exists()
    np.testing.assert_array_equal(read_path(path)[1], MASK)


def test_an_alpha_band_decides_and_is_not_read_as_a_band(make_scene: MakeScene) -> None:
    pixels, valid = read_path(make_scene(bands=2, alpha=MASK))
    np.testing.assert_array_equal(valid, MASK)
    assert len(pixels) == 2


def test_a_wrong_alpha_can_be_ignored(make_scene: MakeScene) -> None:
    pixels, valid = read_path(make_scene(bands=2, alpha=MASK), ignore_alpha=True)
    assert len(pixels) == 3
    assert valid.all()


def test_a_mask_next_to_an_alpha_band_counts_too(make_scene: MakeScene) -> None:
    path = make_scene(bands=2, alpha=MASK, mask=MASK[::-1])
    np.testing.assert_array_equal(read_path(path)[1], MASK & MASK[::-1])
    np.testing.assert_array_equal(read_path(path, ignore_alpha=True)[1], MASK[::-1])


def test_masks_of_single_bands_follow_the_same_rule(make_scene: MakeScene, tmp_path: Path) -> None:
    """A VRT can give every band its own mask."""
    masks = [MASK, MASK[::-1]]
    for number, mask in enumerate(masks, start=1):
        make_scene(bands=1, mask=mask, name=f"{number}.tif")
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{n}"><SimpleSource><SourceFilename relativeToVRT="1">{n}.tif'
        f"</SourceFilename><SourceBand>1</SourceBand></SimpleSource><MaskBand><VRTRasterBand dataType=\"Byte\">"
        f'<SimpleSource><SourceFilename relativeToVRT="1">{n}.tif</SourceFilename><SourceBand>mask,1</SourceBand>'
        "</SimpleSource></VRTRasterBand></MaskBand></VRTRasterBand>"
        for n in (1, 2)
    )  # fmt: skip
    path = tmp_path / "two.vrt"
    path.write_text(
        '<VRTDataset rasterXSize="50" rasterYSize="40"><SRS>EPSG:32633</SRS>'
        f"<GeoTransform>500000, 0.5, 0, 5400000, 0, -0.5</GeoTransform>{bands}</VRTDataset>"
    )
    np.testing.assert_array_equal(read_path(path, drivers=("VRT",))[1], masks[0] | masks[1])
    valid = read_path(path, drivers=("VRT",), nodata_when="any_band")[1]
    np.testing.assert_array_equal(valid, masks[0] & masks[1])


def test_a_mangrove_chip_keeps_its_near_infrared(shared_data: Path) -> None:
    chip = next((shared_data / "mangrove_4band").rglob("*.tif"))
    reading = ReadingSpec(ignore_alpha=True, bands={"nir": 4})
    scene = describe_scene(chip, reading, card=card_for("red", "green", "blue", "nir"))
    pixels, valid = read_all(scene)
    assert valid.all()
    with rasterio.open(chip) as dataset:
        np.testing.assert_array_equal(pixels, dataset.read())


# Tags and grid


def test_scale_and_offset_tags_travel_with_the_scene(make_scene: MakeScene) -> None:
    path = make_scene(dtype="uint16", bands=2, scales=[1e-4, 2e-4], offsets=[-0.1, 0.5], descriptions=["red", "nir"])
    scene = describe_scene(path, card=card_for("nir", "red"))
    assert scene.scales == (2e-4, 1e-4)
    assert scene.offsets == (0.5, -0.1)


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.5, 0, 5e5, 0, 0.5, 5e6),  # south-up
        Affine(-0.5, 0, 5e5, 0, -0.5, 5e6),  # mirrored
        Affine.translation(5e5, 5e6) @ Affine.rotation(33) @ Affine.scale(0.5, -0.5),
        Affine.translation(5e5, 5e6) @ Affine.shear(20) @ Affine.scale(0.5, -0.7),
    ],
)
def test_odd_transforms_are_kept_as_they_are(make_scene: MakeScene, transform: Affine) -> None:
    path = make_scene(transform=transform)
    scene = describe_scene(path)
    assert scene.grid.transform.almost_equals(transform)
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(read_all(scene)[0], dataset.read())


def test_a_missing_crs_is_asked_for_and_taken_from_the_settings(make_scene: MakeScene) -> None:
    path = make_scene(crs=None)
    with pytest.raises(SceneError, match=r"has a geotransform but no CRS.*--crs EPSG:32633"):
        describe_scene(path)
    assert describe_scene(path, ReadingSpec(crs="EPSG:2056")).grid.crs == CRS.from_epsg(2056)


def test_a_local_crs_is_as_good_as_none(make_scene: MakeScene) -> None:
    path = make_scene(crs='LOCAL_CS["site grid",UNIT["metre",1]]')
    with pytest.raises(SceneError, match=r"local CRS that is not tied to the Earth.*site grid.*--crs"):
        describe_scene(path)
    assert describe_scene(path, ReadingSpec(crs="EPSG:2056")).grid.crs == CRS.from_epsg(2056)


def test_settings_never_overrule_a_scenes_own_crs(make_scene: MakeScene) -> None:
    path = make_scene()
    assert describe_scene(path, ReadingSpec(crs="EPSG:32633")).grid.crs == CRS.from_epsg(32633)
    with pytest.raises(SceneError, match=r"own CRS \(EPSG:32633\), which reading.crs = EPSG:4326 contradicts"):
        describe_scene(path, ReadingSpec(crs="EPSG:4326"))


def test_a_scene_placed_by_control_points_only_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "gcps.tif"
    points = [GroundControlPoint(r, c, 500 + c, 900 - r) for r, c in ((0, 0), (0, 50), (40, 0), (40, 50))]
    profile = {"driver": "GTiff", "height": 40, "width": 50, "count": 1, "dtype": "uint8"}
    rasterio.open(path, "w", gcps=points, crs="EPSG:32633", **profile).close()
    with pytest.raises(SceneError, match=r"4 control points .*gdalwarp -tps"):
        describe_scene(path)


def test_a_plain_picture_has_no_georeference(tmp_path: Path) -> None:
    path = tmp_path / "plain.tif"
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        rasterio.open(path, "w", driver="GTiff", height=3, width=3, count=1, dtype="uint8").close()
    with pytest.raises(SceneError, match=r"has no geotransform.*gdal_edit -a_ullr"):
        describe_scene(path, ReadingSpec(crs="EPSG:32633"))


def test_a_crs_without_a_place_is_no_georeferencing(tmp_path: Path) -> None:
    """GDAL then says that a pixel is one metre and north is up; a scene that really says so is read."""
    profile = {"driver": "GTiff", "height": 3, "width": 3, "count": 1, "dtype": "uint8", "crs": "EPSG:3857"}
    path = tmp_path / "nowhere.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        rasterio.open(path, "w", **profile).close()
        with pytest.raises(SceneError, match="has no geotransform"):
            describe_scene(path)
        rasterio.open(path, "w", transform=Affine.scale(1, -1), **profile).close()
    assert describe_scene(path).grid.transform == Affine.scale(1, -1)


def test_complex_numbers_are_refused(make_scene: MakeScene) -> None:
    with pytest.raises(SceneError, match=r"complex numbers \(complex64\).*amplitude or intensity"):
        describe_scene(make_scene(np.zeros((1, 4, 4), np.complex64)))


def test_a_sidecar_that_contradicts_the_file_is_refused(make_scene: MakeScene, tmp_path: Path) -> None:
    path = make_scene(name="moved.tif")
    sidecar = tmp_path / "moved.tif.aux.xml"
    sidecar.write_text("<PAMDataset><GeoTransform>1, 0.5, 0, 2, 0, -0.5</GeoTransform></PAMDataset>")
    with pytest.raises(SceneError, match=r"inside the file .* contradicts its \.aux\.xml sidecar"):
        describe_scene(path)
    sidecar.write_text("<PAMDataset><GeoTransform>500000, 0.5, 0, 5400000, 0, -0.5</GeoTransform></PAMDataset>")
    assert describe_scene(path).grid.transform.c == 500_000


def test_a_sidecar_may_place_a_file_that_has_no_place_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "placed.tif"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        rasterio.open(path, "w", driver="GTiff", height=3, width=3, count=1, dtype="uint8", crs="EPSG:32633").close()
    sidecar = path.with_name("placed.tif.aux.xml")
    sidecar.write_text("<PAMDataset><GeoTransform>500000, 0.5, 0, 5400000, 0, -0.5</GeoTransform></PAMDataset>")
    assert describe_scene(path).grid.transform == Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)


def test_an_unknown_resolution_is_refused_when_it_matters(make_scene: MakeScene) -> None:
    """The middle of this view of the Earth from space lies beside the Earth, its left edge on it."""
    view = "+proj=geos +h=35785831 +lon_0=-75 +ellps=GRS80 +sweep=x +units=m"
    path = make_scene(crs=CRS.from_proj4(view).to_wkt(), transform=Affine(100_000, 0, 4e6, 0, -1000, 1e5))
    assert describe_scene(path).grid.shape == (40, 50)
    with pytest.raises(SceneError, match="middle lies off the Earth"):
        describe_scene(path, ReadingSpec(resolution_m=10.0))


# Headers that cannot be trusted


def test_a_small_file_that_declares_a_huge_scene_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "uint8", "crs": "EPSG:32633", "sparse_ok": True}
    size = {"height": 400_000, "width": 400_000, "tiled": True, "blockxsize": 4096, "blockysize": 4096}
    rasterio.open(path, "w", transform=Affine(1, 0, 5e5, 0, -1, 5e6), **profile, **size).close()
    assert path.stat().st_size < 1e6
    with pytest.raises(SceneError, match=r"declares 400000 x 400000 px, over reading.max_pixels \(100,000,000,000\)"):
        describe_scene(path)
    assert describe_scene(path, ReadingSpec(max_pixels=10**12)).grid.shape == (400_000, 400_000)


def test_a_scene_stored_in_one_huge_block_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "block.tif"
    profile = {"driver": "GTiff", "count": 1, "dtype": "float64", "crs": "EPSG:32633", "sparse_ok": True}
    size = {"height": 20_000, "width": 20_000, "blockysize": 20_000, "compress": "deflate"}
    rasterio.open(path, "w", transform=Affine(1, 0, 5e5, 0, -1, 5e6), **profile, **size).close()
    with pytest.raises(SceneError, match=r"blocks of 20000 x 20000 px \(3.0 GiB each\).*gdal_translate -of COG"):
        describe_scene(path)


# Drivers


def test_a_vrt_is_opened_only_when_its_driver_is_named(make_scene: MakeScene, tmp_path: Path) -> None:
    make_scene(name="inside.tif", bands=1)
    path = tmp_path / "disguised.tif"
    path.write_text(
        '<VRTDataset rasterXSize="50" rasterYSize="40"><SRS>EPSG:32633</SRS><GeoTransform>0,1,0,0,0,-1</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename relativeToVRT="1">inside.tif'
        "</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with pytest.raises(SceneError, match=r"is a GDAL virtual raster \(VRT\); allowed drivers are GTiff"):
        describe_scene(path)
    assert describe_scene(path, ReadingSpec(drivers=("GTiff", "VRT"))).files[0].driver == "VRT"


def test_other_formats_are_named_in_the_refusal(make_scene: MakeScene) -> None:
    path = make_scene(driver="JPEG", name="photo.jpg")
    with pytest.raises(SceneError, match=r"is a JPEG picture.*add its GDAL driver to reading\.drivers"):
        describe_scene(path)
    assert describe_scene(path, ReadingSpec(drivers=("JPEG",))).bands == ("red", "green", "blue")


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"", DamagedSceneError, "an empty file"),
        (b"hello", SceneError, "is not a raster this system knows"),
        (b"version https://git-lfs.github.com/spec/v1\n", SceneError, "Git LFS pointer.*git lfs pull"),
        (b"<!DOCTYPE html><html>404</html>", SceneError, "a web page"),
        (b"II*\0\x08\0\0\0", DamagedSceneError, "truncated: it has 8 bytes"),
        (b"II*\0\x08" + bytes(20), DamagedSceneError, "a TIFF that cannot be opened"),
        (b"PK\x03\x04....", SceneError, "a zip archive"),
    ],
)
def test_files_that_are_no_rasters_are_distinguished(tmp_path: Path, content: bytes, kind: type, message: str) -> None:
    path = tmp_path / "odd.tif"
    path.write_bytes(content)
    with pytest.raises(SceneError, match=message) as refusal:
        describe_scene(path)
    assert type(refusal.value) is kind


# Faults while reading


def test_damaged_bytes_are_a_data_error(make_scene: MakeScene) -> None:
    path = make_scene(bands=1, height=64, width=64, tiled=32, compress="deflate")
    scene = describe_scene(path)
    content = bytearray(path.read_bytes())
    with rasterio.open(path) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_1_1", "TIFF", bidx=1))
    content[start : start + 200] = b"\xff" * 200
    path.write_bytes(content)
    with SceneReader(scene) as reader:
        reader.read(Window(0, 0, 32, 32))
        with pytest.raises(DamagedSceneError, match=r"damaged at rows 32..63, columns 32..63: .*again") as raised:
            reader.read(Window(32, 32, 32, 32))
    assert str(path) in str(raised.value)


def test_a_file_that_vanishes_is_a_transient_error(make_scene: MakeScene) -> None:
    path = make_scene()
    scene = describe_scene(path)
    path.unlink()
    with SceneReader(scene) as reader, pytest.raises(TransientError, match="check the network or disk and run again"):
        reader.read(Window(0, 0, 4, 4))


@given(st.data())
def test_damaged_bytes_anywhere_end_in_pixels_or_in_one_of_our_errors(data: st.DataObject) -> None:
    """Overwrite a few bytes of a small scene: it is read, or refused; never another exception."""
    content = bytearray(HELD.content)
    for place in data.draw(st.lists(st.integers(0, 1700), min_size=1, max_size=4)):
        content[min(place, len(content) - 1)] = data.draw(st.integers(0, 255))
    path = HELD.folder / "fuzzed.tif"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        try:
            scene = describe_scene(path)
            with SceneReader(scene) as reader:
                reader.read(Window(0, 0, min(8, scene.grid.width), min(8, scene.grid.height)))
        except ScenemillError as error:
            assert str(path) in str(error)  # noqa: PT017


# Resampling


@pytest.mark.parametrize("factor", [2, 3, 7])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int32"])
def test_shrinking_by_a_whole_factor_is_the_plain_average(make_scene: MakeScene, dtype: str, factor: int) -> None:
    path = make_scene(dtype=dtype, bands=2, height=42, width=84, transform=Affine(1, 0, 5e5, 0, -1, 5e6))
    scene = describe_scene(path, ReadingSpec(resolution_m=factor * describe_scene(path).grid.resolution_m))
    assert scene.grid.shape == (42 // factor, 84 // factor)
    pixels, valid = read_all(scene)
    with rasterio.open(path) as dataset:
        blocks = dataset.read().astype(float).reshape(2, 42 // factor, factor, 84 // factor, factor)
    tolerance = 1e-6 if dtype == "float32" else 0.5 + 1e-9
    np.testing.assert_allclose(pixels.astype(float), blocks.mean(axis=(2, 4)), rtol=0, atol=tolerance)
    assert valid.all()


@pytest.mark.parametrize("ratio", [0.4, 0.9, 1.3, 2, 2.7, 13])
@pytest.mark.parametrize("overviews", [False, True])
def test_reading_by_windows_equals_reading_at_once(make_scene: MakeScene, ratio: float, overviews: bool) -> None:
    path = make_scene(height=131, width=173, tiled=32, mask=np.random.default_rng(3).random((131, 173)) > 0.4)
    if overviews:
        with rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2, 4], Resampling.nearest)
    scene = describe_scene(path, ReadingSpec(resolution_m=0.5 * ratio))
    whole, valid = read_all(scene)
    height, width = scene.grid.shape
    with SceneReader(scene) as reader:
        for row in range(0, height, 17):
            for col in range(0, width, 23):
                window = Window(col, row, min(23, width - col), min(17, height - row))
                pixels, good = reader.read(window)
                np.testing.assert_array_equal(pixels, whole[(slice(None), *window.toslices())])
                np.testing.assert_array_equal(good, valid[window.toslices()])


def test_a_large_window_is_resampled_in_parts_to_the_same_pixels(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = describe_scene(make_scene(height=97, width=120), ReadingSpec(resolution_m=3.3))
    whole, valid = read_all(scene)
    monkeypatch.setattr("pipeline.scene.reader.MAX_RESAMPLED_PIXELS", 40)
    pixels, good = read_all(scene)
    np.testing.assert_array_equal(pixels, whole)
    np.testing.assert_array_equal(good, valid)


@pytest.mark.parametrize("reading", [{"nodata": 200}, {"ignore_nodata": True}, {"nodata_when": "any_band"}])
def test_invalid_pixels_never_leak_into_an_average(make_scene: MakeScene, reading: dict[str, Any]) -> None:
    """Whatever the settings call nodata is left out of the mean, and only that."""
    rng = np.random.default_rng(5)
    pixels = rng.choice([0, 10, 20, 200], (2, 40, 40), p=[0.2, 0.35, 0.35, 0.1]).astype(np.uint8)
    path = make_scene(pixels, nodata=0)
    stored, valid = read_path(path, **reading)
    blocks, weights = (a.reshape(*a.shape[:-2], 10, 4, 10, 4) for a in (stored.astype(float), valid))
    counts = weights.sum(axis=(1, 3))
    means = (blocks * weights).sum(axis=(2, 4)) / np.maximum(counts, 1)
    got, enough = read_path(path, resolution_m=4 * describe_scene(path).grid.resolution_m, **reading)
    np.testing.assert_array_equal(enough, counts >= 8)
    assert np.abs(got - means)[:, enough].max() <= 0.5 + 1e-6


def test_enlarging_a_constant_keeps_it_and_a_ramp_stays_a_ramp(make_scene: MakeScene) -> None:
    ramp = np.stack([np.full((12, 20), 7.0), np.tile(np.arange(20.0), (12, 1))]).astype(np.float32)
    path = make_scene(ramp)
    pixels, valid = read_path(path, resolution_m=describe_scene(path).grid.resolution_m / 2)
    assert valid.all()
    assert (pixels[0] == 7).all()
    np.testing.assert_allclose(pixels[1, 5, 1:-1], np.arange(1, 39) / 2 - 0.25, atol=1e-6)


def test_a_model_of_another_resolution_is_refused_or_served(make_scene: MakeScene) -> None:
    path = make_scene(height=100, width=100, colorinterp=["red", "green", "blue"], photometric="rgb")
    coarse = card_for("red", resolution_m=2.0)
    with pytest.raises(SceneError, match=r"pixels are 0.5 m .* trained at 2 m; set reading.resolution_m=model"):
        describe_scene(path, card=coarse)
    scene = describe_scene(path, ReadingSpec(resolution_m="model"), card=coarse)
    assert scene.grid.shape == (25, 25)
    assert scene.grid.resolution_m == pytest.approx(2.0, rel=0.01)
    assert read_all(scene)[0].shape == (1, 25, 25)
    assert not describe_scene(path, ReadingSpec(resolution_tolerance=9), card=coarse).resampled


# Settings and names


@pytest.mark.parametrize(
    ("reading", "message"),
    [
        ({"resolution_m": 0.0}, "resolution_m must be over 0 m and finite, not 0.0"),
        ({"resolution_m": float("nan")}, "resolution_m must be"),
        ({"resolution_m": float("inf")}, "resolution_m must be"),
        ({"resolution_tolerance": -1.0}, "resolution_tolerance must be at least 0"),
        ({"threads": -1}, "threads must be at least 0"),
        ({"max_pixels": 0}, "max_pixels must be at least 1"),
        ({"bands": {"red": 0}}, "bands must map names to 1-based"),
        ({"crs": "EPSG:99999999"}, "crs must be a CRS that PROJ knows"),
        ({"crs": "north"}, "crs must be a CRS that PROJ knows.*'north'"),
        ({"drivers": ()}, "drivers must name at least one"),
        ({"drivers": ("GTif",)}, "not 'GTif'; did you mean GTiff?"),
    ],
)
def test_invalid_settings_name_the_violated_rule(reading: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ReadingSpec(**reading)


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "/etc", "a\\b", "a\0"])
def test_a_scene_cannot_be_named_out_of_the_output_folder(make_scene: MakeScene, name: str) -> None:
    with pytest.raises(SettingsError, match="plain name of a visible folder"):
        describe_scene(make_scene(), scene_id=name)


# Over the network


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Address of the test's folder on a file server."""
    command = [sys.executable, range_server.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        server.terminate()


def test_a_remote_scene_reads_like_a_local_one(make_scene: MakeScene, address: str) -> None:
    path = make_scene(name="remote (1).tif", height=300, width=300, tiled=64, nodata=3, mask=np.tri(300, dtype=bool))
    scene = describe_scene(f"{address}/remote%20(1).tif")
    assert scene.id == "remote_1_"
    assert scene.location.is_remote
    np.testing.assert_array_equal(read_all(scene)[0], read_path(path)[0])
    np.testing.assert_array_equal(read_all(scene)[1], read_path(path)[1])


def test_a_remote_scene_keeps_its_mask_sidecar(make_scene: MakeScene, address: str) -> None:
    path = make_scene(name="side.tif")
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(MASK)
    np.testing.assert_array_equal(read_all(describe_scene(f"{address}/side.tif"))[1], MASK)


def test_new_content_behind_an_address_is_another_scene(make_scene: MakeScene, address: str, tmp_path: Path) -> None:
    """A copy under a second name stands for the new content: GDAL keeps what it has read of the first."""
    for name, seed in (("a.tif", 0), ("b.tif", 0), ("c.tif", 1)):
        (tmp_path / name).unlink(missing_ok=True)
        make_scene(name=name, seed=seed, height=200, width=200, tiled=64, compress="deflate")
    one, same, other = (describe_scene(f"{address}/{name}.tif").files[0].fingerprint for name in "abc")
    assert one == same != other


def test_an_address_without_a_file_is_refused(address: str) -> None:
    with pytest.raises(SceneError, match=r"nothing\.tif: nothing is there \(404\); check the address"):
        describe_scene(f"{address}/nothing.tif")


def test_a_server_that_dies_half_way_is_a_transient_error(make_scene: MakeScene, address: str, tmp_path: Path) -> None:
    make_scene(name="dies.tif", height=2000, width=2000, bands=1, tiled=256)
    scene = describe_scene(f"{address}/dies.tif")
    with SceneReader(scene) as reader:
        reader.read(Window(0, 0, 10, 10))
        (tmp_path / "failing").touch()
        start = time.perf_counter()
        with pytest.raises(TransientError, match=r"rows 1900..1909, columns 1900..1909 failed.*run again"):
            reader.read(Window(1900, 1900, 10, 10))
    assert time.perf_counter() - start < 20


def test_an_unreachable_address_is_a_transient_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.remote.REQUEST_RETRIES", RetryPolicy((0.0,)))
    with pytest.raises(TransientError, match=r"cannot be reached: .*refused; check the address and the network"):
        describe_scene("http://127.0.0.1:9/scene.tif")
