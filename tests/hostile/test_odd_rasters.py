"""Odd rasters are processed as plain numpy would, or refused at once with the reason and a remedy that works."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import Call, MakeScene
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from rasterio.crs import CRS
from support.pointwise import CARD, check_result, run_pointwise

from pipeline.config import SegmentSpec
from pipeline.errors import SceneError, SettingsError
from pipeline.model.card import ModelCard
from pipeline.polygons.shaping import PolygonSpec
from pipeline.scene.describe import describe_scene
from pipeline.scene.spec import ReadingSpec

ALL = SegmentSpec(polygons=PolygonSpec(min_area_m2=0))
GDAL_TYPES = {"uint8": "Byte", "int16": "Int16", "uint16": "UInt16", "int32": "Int32", "float32": "Float32"}
TWO = ModelCard(bands=("red", "nir"), classes=("bright",))


def graded_pixels(height: int, width: int, dtype: DTypeLike = "uint8") -> NDArray[np.generic]:
    """Pixels of 0..100."""
    return np.random.default_rng(0).integers(0, 101, (height, width)).astype(dtype)


# Extreme shapes


@pytest.mark.parametrize("shape", [(3000, 1), (1700, 1), (1, 5000), (1, 1)])
def test_a_scene_of_one_row_or_column_is_processed_and_has_a_preview(
    make_scene: MakeScene, tmp_path: Path, shape: tuple[int, int]
) -> None:
    path = make_scene(graded_pixels(*shape), name="line.tif", descriptions=["red"])
    run_pointwise(path, tmp_path / "out", ALL)
    check_result(path, tmp_path / "out" / "line", np.ones(shape, bool))
    with Image.open(tmp_path / "out" / "line" / "preview.png") as preview:
        assert min(preview.size) == 1
        assert max(preview.size) <= 1600


def test_a_scene_of_three_rows_and_a_hundred_thousand_columns_is_processed(
    make_scene: MakeScene, tmp_path: Path
) -> None:
    path = make_scene(graded_pixels(3, 100_000), name="line.tif", descriptions=["red"])
    run_pointwise(path, tmp_path / "out", ALL)
    check_result(path, tmp_path / "out" / "line", np.ones((3, 100_000), bool))


# Nodata values that no float holds


def with_nodata(path: Path, value: int) -> Path:
    """Rewrite the nodata tag of a file, which rasterio writes as a float: -9.2233720368547758e+18."""
    content, found = re.subn(
        rb"-?9\.22[0-9e+]+|9007199254740992",
        lambda old: f"{value}".encode().ljust(len(old[0]), b"\0"),
        path.read_bytes(),
    )
    assert found
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("dtype", "value", "near"),
    [
        ("int64", 2**63 - 1, 2**63 - 2),
        ("int64", -(2**63), -(2**63) + 1),
        ("uint64", 2**64 - 1, 2**64 - 2),
        ("int64", 2**53 + 1, 2**53),
    ],
)
def test_nodata_at_the_end_of_64_bits_is_exact(
    make_scene: MakeScene, tmp_path: Path, dtype: str, value: int, near: int
) -> None:
    pixels = graded_pixels(60, 50, dtype)
    pixels[:20], pixels[20:25] = value, near
    written = {2**63 - 1: -(2**63), 2**64 - 1: 2**63, 2**53 + 1: 2**53}.get(value, value)
    path = with_nodata(make_scene(pixels, name="s.tif", descriptions=["red"], nodata=written), value)
    with rasterio.open(path) as dataset:
        assert (dataset.read_masks(1) == 0).mean() == pytest.approx(1 / 3)
    run_pointwise(path, tmp_path / "out", ALL)
    check_result(path, tmp_path / "out" / "s", np.repeat([False, True], [20, 40])[:, None] & np.ones(50, bool))


def test_settings_replace_a_nodata_value_of_64_bits(make_scene: MakeScene) -> None:
    path = with_nodata(make_scene(graded_pixels(60, 50, "int64"), nodata=-(2**63)), 2**63 - 1)
    assert describe_scene(path).files[0].mask == "band"
    assert describe_scene(path, ReadingSpec(ignore_nodata=True)).files[0].mask == "none"
    assert describe_scene(path, ReadingSpec(nodata=7)).nodata == (7,)


# Types


@pytest.mark.parametrize("dtype", ["complex_int16", "complex64", "complex128"])
def test_complex_numbers_are_refused_in_words(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "sar.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=30, width=40, dtype=dtype, crs="EPSG:32633",
        transform=rasterio.Affine(1, 0, 500_000, 0, -1, 5_400_000),
    ):  # fmt: skip
        pass
    with pytest.raises(SceneError, match=rf"holds complex numbers \({dtype}\).*write amplitude or intensity"):
        describe_scene(path)


@pytest.mark.parametrize("types", [("uint8", "float32"), ("int16", "uint16"), ("uint8", "int32")])
def test_a_virtual_raster_of_two_types_is_read_band_by_band(
    make_scene: MakeScene, tmp_path: Path, types: tuple[str, str]
) -> None:
    parts = [make_scene(graded_pixels(40, 50, dtype)[None], name=f"{dtype}.tif") for dtype in types]
    bands = "".join(
        f'<VRTRasterBand dataType="{GDAL_TYPES[dtype]}" band="{k}"><Description>{name}</Description>'
        f'<SimpleSource><SourceFilename relativeToVRT="1">{dtype}.tif</SourceFilename><SourceBand>1</SourceBand>'
        "</SimpleSource></VRTRasterBand>"
        for k, name, dtype in zip((1, 2), ("red", "nir"), types, strict=True)
    )
    path = tmp_path / "mixed.vrt"
    with rasterio.open(parts[0]) as first:
        numbers = ", ".join(f"{value}" for value in first.transform.to_gdal())
        path.write_text(
            f'<VRTDataset rasterXSize="50" rasterYSize="40"><SRS>{first.crs.to_wkt()}</SRS>'
            f"<GeoTransform>{numbers}</GeoTransform>{bands}</VRTDataset>"
        )
    spec = SegmentSpec(reading=ReadingSpec(drivers=("VRT",)))
    report = run_pointwise(path, tmp_path / "out", spec, card=TWO)
    check_result(path, tmp_path / "out" / "mixed", np.ones((40, 50), bool))
    assert report.statistics.valid_pixels == 2000


# Tags that are no numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_scale_that_is_no_scale_names_band_tag_and_setting(
    make_scene: MakeScene, tmp_path: Path, value: float
) -> None:
    path = make_scene(graded_pixels(40, 50), name="s.tif", descriptions=["red"], scales=[value], offsets=[0.0])
    with pytest.raises(SceneError, match=rf"s.tif: band 'red' has the scale {value:g}.*reading.ignore_scale=true"):
        describe_scene(path, card=CARD)
    run_pointwise(path, tmp_path / "out", SegmentSpec(reading=ReadingSpec(ignore_scale=True)))
    check_result(path, tmp_path / "out" / "s", np.ones((40, 50), bool))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_an_offset_that_is_no_number_names_band_tag_and_setting(make_scene: MakeScene, value: float) -> None:
    path = make_scene(bands=2, descriptions=["red", "nir"], scales=[1, 2.0], offsets=[0, value])
    with pytest.raises(SceneError, match=rf"band 'nir' has the offset {value:g}.*reading.ignore_scale=true"):
        describe_scene(path)
    assert describe_scene(path, card=CARD).scales == (1,)  # of a band that the model does not use, nothing is asked
    assert describe_scene(path, ReadingSpec(ignore_scale=True)).scales == (1, 1)


# Where a scene lies


@pytest.mark.parametrize(
    ("crs", "transform", "reason"),
    [
        ("EPSG:4326", Affine(0.2, 0, 5, 0, -0.2, 120), "latitudes run from 112.1 to 119.9 degrees"),
        ("EPSG:4326", Affine(0.1, 0, 5, 0, -0.1, 91), "latitudes run from 87.05 to 90.95 degrees"),
        ("EPSG:4326", Affine(1e-3, 0, -33, 0, -1e-3, 150), "see whether x and y are swapped"),
        ("EPSG:32633", Affine(10, 0, 5e7, 0, -10, 5.4e6), "x 50000000 to 50000500"),
        ("EPSG:32633", Affine(10, 0, 1e8, 0, -10, 5.4e6), "x 1e.08 to 1.000005e.08"),
    ],
)
def test_a_scene_off_the_earth_is_refused_before_any_work(
    make_scene: MakeScene, model: str, call: Call, tmp_path: Path, crs: str, transform: Affine, reason: str
) -> None:
    path = make_scene(name="lost.tif", crs=crs, transform=transform, colorinterp=["red", "green", "blue"])
    good = make_scene(name="good.tif", colorinterp=["red", "green", "blue"])
    code, out, err = call("segment", path, good, "--model", model, "--out", tmp_path / "out")
    said = " ".join((out + err).split())
    assert code == 1
    assert re.search(rf"lost.tif: leads off the Earth: .*{reason}", said), said
    assert "gdal_edit -a_ullr" in said
    assert not (tmp_path / "out" / "lost").exists()
    assert (tmp_path / "out" / "good" / "report.json").exists()


@pytest.mark.parametrize("crs", ["IAU_2015:30100", "ESRI:104905", "+proj=sinu +R=3396190 +units=m"])
def test_another_planet_is_refused_by_name_and_not_taken_as_a_setting(make_scene: MakeScene, crs: str) -> None:
    path = make_scene(
        name="crater.tif", crs=CRS.from_user_input(crs).to_wkt(), transform=Affine(0.01, 0, 1, 0, -0.01, 1)
    )
    for spec in (ReadingSpec(), ReadingSpec(crs="EPSG:4326")):
        with pytest.raises(
            SceneError, match=r"crater.tif: its CRS .* is not on the Earth: .* radius of [13],.* km"
        ) as caught:
            describe_scene(path, spec)
        assert "PROJ" not in str(caught.value).replace("PROJCS", "")
    with pytest.raises(SettingsError, match="crs must be tied to the Earth"):
        ReadingSpec(crs=crs)


def with_changed_crs(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (struct.pack("<d", 29.5), struct.pack("<d", float("nan"))),
        (struct.pack("<d", 29.5), struct.pack("<d", float("inf"))),
        (struct.pack("<d", 37.5), struct.pack("<d", 1e300)),
        (b"unknown", b"unkno\xff\xfe"),
    ],
    ids=["NaN", "infinite", "huge", "undecodable name"],
)
def test_a_crs_that_nobody_understands_can_be_replaced_by_the_setting(
    make_scene: MakeScene, tmp_path: Path, old: bytes, new: bytes
) -> None:
    albers = CRS.from_proj4("+proj=aea +lat_1=29.5 +lat_2=45.5 +lat_0=37.5 +lon_0=-96 +ellps=GRS80 +units=m")
    path = make_scene(graded_pixels(40, 50), name="s.tif", descriptions=["red"], crs=albers.to_wkt())
    with_changed_crs(path, old, new)
    with pytest.raises(SceneError, match=r"s.tif: its CRS is not understood \(.*--crs EPSG:32633"):
        describe_scene(path)
    run_pointwise(path, tmp_path / "out", SegmentSpec(reading=ReadingSpec(crs="EPSG:32633")))
    with rasterio.open(tmp_path / "out" / "s" / "mask.tif") as mask:
        assert mask.crs == CRS.from_epsg(32633)
        assert mask.transform == Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)


# Masks of another size


@pytest.mark.parametrize("shape", [(20, 50), (80, 100), (40, 51)])
def test_a_mask_of_another_size_is_refused_with_both_sizes(make_scene: MakeScene, shape: tuple[int, int]) -> None:
    path = make_scene(height=40, width=50, name="s.tif")
    with rasterio.open(
        f"{path}.msk", "w", driver="GTiff", count=1, height=shape[0], width=shape[1], dtype="uint8",
        transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000),
    ) as mask:  # fmt: skip
        mask.write(np.full((1, *shape), 255, np.uint8))
        mask.update_tags(INTERNAL_MASK_FLAGS_1=2)
    with pytest.raises(SceneError) as caught:
        describe_scene(path)
    said = f"s.tif: its mask s.tif.msk has {shape[0]} x {shape[1]} px, but the scene has 40 x 50; write it again, or"
    assert str(caught.value).endswith(f"{said} remove it")
