"""Odd rasters are processed as plain numpy would, or refused at once with the reason and a remedy that works."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import MakeScene
from numpy.typing import DTypeLike, NDArray
from PIL import Image
from support.pointwise import CARD, check_result, run_pointwise

from pipeline.config import SegmentSpec
from pipeline.errors import SceneError
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
