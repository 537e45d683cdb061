"""The zoo: every odd raster is segmented correctly, or refused with a reason that names its quirk.

`docs/reference/formats.md` holds the table of outcomes. Each test compares its own row with the committed one; after a
deliberate change, rewrite them with `SCENEMILL_UPDATE_FORMATS=1 pytest tests/scene/test_zoo.py -m ""`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window

from pipeline.cli import main
from pipeline.config import SegmentSpec
from pipeline.errors import ScenemillError
from pipeline.model.card import ModelCard
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.networks.unet import UNet, UNetSpec, receptive_field
from pipeline.results.report import SceneReport
from pipeline.scene.describe import Scene, describe_scene
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene

ZOO = Path(__file__).parents[3] / "shared" / "data" / "zoo"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "formats.md"
BEGIN, END = "<!-- outcomes: begin -->", "<!-- outcomes: end -->"
HEAD = ("| file | quirk | settings | outcome |", "|---|---|---|---|")
OUTPUTS = {"probability.tif", "mask.tif", "polygons.gpkg", "preview.png", "report.json"}

pytestmark = pytest.mark.skipif(not ZOO.is_dir(), reason="the shared real data (../shared/data) is not here")


@dataclass(frozen=True, kw_only=True)
class Animal:
    """One file of the zoo and what should become of it."""

    file: str
    quirk: str
    bands: tuple[str, ...] | None = None
    """What the model asks for; None takes all that the file offers."""
    reading: dict[str, object] = field(default_factory=dict)
    """Settings of the section `reading`."""
    refused: str | None = None
    """Part of the reason; None when the file is to be processed."""
    cut: float | None = None
    """A pixel of the first band above it is the class; None takes the 80th percentile."""
    slow: bool = False

    @property
    def spec(self) -> ReadingSpec:
        return ReadingSpec(**self.reading)  # type: ignore[arg-type]

    @property
    def settings(self) -> str:
        shown = {"bands": ", ".join(self.bands or ())} if self.bands else {}
        shown |= {f"reading.{key}": json.dumps(value) for key, value in self.reading.items()}
        return "; ".join(f"{key} {value}" if key == "bands" else f"`{key}={value}`" for key, value in shown.items())


RGB = ("red", "green", "blue")
FIRST_THREE = {"bands": {"red": 1, "green": 2, "blue": 3}}
ANIMALS = (
    Animal(file="201404_13SED190110_201404_0x1500m_CL_1_extmask.tif", quirk="validity in a .msk sidecar", bands=RGB),
    Animal(file="2020.tif", quirk="degrees; nodata 0 occurs inside"),
    Animal(file="4band_test.tif", quirk="degrees, uint16"),
    Animal(file="above_cog.tif", quirk="31 bands, 64 px blocks", reading={"bands": {"first": 1, "last": 31}},
           bands=("first", "last")),
    Animal(file="all-nodata.tif", quirk="every pixel is nodata"),
    Animal(file="alpha.tif", quirk="JPEG, half transparent, by the antimeridian", bands=RGB),
    Animal(file="big.endian.tiff", quirk="no georeferencing", bands=RGB, refused="has no geotransform"),
    Animal(file="byte_inconsistent_georef.tif", quirk="contradicting sidecar", refused="contradicts its .aux.xml"),
    Animal(file="cog_dateline.tif", quirk="UTM 60 across the antimeridian"),
    Animal(file="cog_nodata_nan.tif", quirk="NaN pixels while the tag says 0"),
    Animal(file="cog_rgb_mask.tif", quirk="internal mask", bands=RGB),
    Animal(file="cog_rgba.tif", quirk="alpha band", bands=RGB),
    Animal(file="cogeo.tif", quirk="JPEG, internal mask, overviews", bands=RGB),
    Animal(file="dummy_fotomap_small.tif", quirk="2 cm pixels, alpha", bands=RGB),
    Animal(file="float_nan.tif", quirk="no CRS", refused="no CRS; .* --crs"),
    Animal(file="float_nan.tif", quirk="nodata NaN", reading={"crs": "EPSG:32633"}),
    Animal(file="gcps.tif", quirk="control points only", refused="110 control points .* gdalwarp"),
    Animal(file="goes.tif", quirk="geostationary view, no EPSG code", bands=RGB),
    Animal(file="image_missing_nodata.tif", quirk="-9999 without a tag", reading={"nodata": -9999}),
    Animal(file="image_web_z5_z11.tif", quirk="8448 px, mostly empty", bands=RGB),
    Animal(file="int16_big_endian.tif", quirk="big-endian"),
    Animal(file="inverted_lat.tif", quirk="south-up, the whole globe, all of it nodata"),
    Animal(file="L7_ETMs.tif", quirk="6 unnamed bands", refused="needs band.* red, green, blue, but the file offers",
           bands=RGB),
    Animal(file="L7_ETMs.tif", quirk="6 unnamed bands", reading=FIRST_THREE, bands=RGB),
    Animal(file="lc.tif", quirk="palette of classes"),
    Animal(file="m_3607824_se_17_1_20160620_sub.tif", quirk="near infrared untagged",
           reading={"bands": {"nir": 4}}, bands=("nir", "red")),
    Animal(file="model_transformation.tif", quirk="64 bands int8, south-up by ModelTransformation"),
    Animal(file="OAM-386700-220246-19.tif", quirk="a JPEG named .tif", refused="is a JPEG picture.*reading.drivers"),
    Animal(file="OAM-386700-220246-19.tif", quirk="a JPEG named .tif",
           reading={"drivers": ["JPEG"], "nodata": 255}, bands=RGB),
    Animal(file="rgb.tif", quirk="uint16, colours untagged", reading=FIRST_THREE, bands=RGB),
    Animal(file="rgb_lzw.tif", quirk="pixels not square, slanted nodata border", bands=RGB),
    Animal(file="RGBA.uint16.tif", quirk="band order blue, green, red, alpha", bands=RGB),
    Animal(file="rgba8_cog_big.tiff", quirk="BigTIFF, 16 px blocks", bands=RGB),
    Animal(file="rgbn_suba.tif", quirk="fourth band untagged", reading={"bands": {"nir": 4}}, bands=(*RGB, "nir")),
    Animal(file="rgbn_subb.tif", quirk="fourth band untagged", reading={"bands": {"nir": 4}}, bands=(*RGB, "nir")),
    Animal(file="rgbsmall_JPEG_ycbcr.tif", quirk="JPEG YCbCr", bands=RGB),
    Animal(file="rgbsmall_LERC_ZSTD_tiled_separate.tif", quirk="LERC, bands apart", bands=RGB),
    Animal(file="rgbsmall_WEBP.tif", quirk="WEBP", bands=RGB),
    Animal(file="rotated.tif", quirk="no CRS", refused="no CRS; .* --crs"),
    Animal(file="rotated.tif", quirk="rotated and sheared", reading={"crs": "EPSG:32633"}),
    Animal(file="S2A_MSIL2A_20170725T142751_N9999_R053_T19GBQ_20240410T040247_expected_output.tif",
           quirk="10980 px, classes 0 to 3", cut=0.5),
    Animal(file="sample_geotiff.tif", quirk="uint16, strips"),
    Animal(file="sar_hh.tif", quirk="complex numbers", refused="complex numbers .complex64.* amplitude or intensity"),
    Animal(file="section_2_sentinel.tif", quirk="nodata 9999, slanted border"),
    Animal(file="sparse.tiff", quirk="20480 px in 28 kB, all transparent", bands=RGB, slow=True),
    Animal(file="test_rpcs.tif", quirk="camera model only", refused="camera model .RPC.* gdalwarp -rpc"),
    Animal(file="broken/byte_truncated.tif", quirk="cut off", refused="truncated: it has 374 bytes"),
    Animal(file="broken/corrupt.tif", quirk="damaged half-way", bands=RGB, refused="damaged at rows 512.*, columns"),
    Animal(file="broken/invalid.tif", quirk="empty file", refused="empty file .0 bytes"),
    Animal(file="broken/lfs_pointer.tif", quirk="Git LFS pointer", refused="Git LFS pointer.* git lfs pull"),
    Animal(file="broken/lzw_corrupted.tif", quirk="no georeferencing, damaged", refused="has no geotransform"),
    Animal(file="broken/rgbsmall_JXL.tif", quirk="JPEG XL", refused="missing codec JXL.*with a codec this build has"),
    Animal(file="broken/toomanyblocks.tif", quirk="3.6 billion blocks", refused="Too many blocks"),
    Animal(file="broken/truncated.tiff", quirk="no georeferencing, cut off", refused="truncated: it has 1,024 bytes"),
    Animal(file="broken/unknown_compression.tif", quirk="compression 65535", refused="missing codec of code 65535"),
)  # fmt: skip


def cases(animals: Sequence[Animal]) -> list[object]:
    return [
        pytest.param(animal, id=f"{animal.file[:24]} {animal.settings}", marks=[pytest.mark.slow] * animal.slow)
        for animal in animals
    ]


# One scene has the pixel plane for its coordinates, which rasterio doubts that GDAL keeps; the test sees that it does.
@pytest.mark.parametrize("animal", cases([a for a in ANIMALS if a.refused is None]))
def test_what_is_processed_equals_plain_numpy_on_the_same_grid(animal: Animal, tmp_path: Path) -> None:
    scene = describe_scene(ZOO / animal.file, animal.spec)
    if animal.bands:
        scene = describe_scene(ZOO / animal.file, animal.spec, card=ModelCard(bands=animal.bands, classes=("x",)))
    rule = Rule.of(scene, animal)
    report = segment_scene(
        ZOO / animal.file,
        tmp_path,
        predictor=rule,
        card=ModelCard(bands=scene.bands, classes=("bright",)),
        spec=SegmentSpec(reading=animal.spec),
    )
    folder = tmp_path / scene.id
    assert {path.name for path in folder.iterdir()} == OUTPUTS
    valid = compare_with_numpy(scene, folder, rule)
    assert report.statistics.valid_pixels == valid
    compare_polygons(folder, report)
    settle(animal, processed(scene, report))


@pytest.mark.parametrize("animal", cases([a for a in ANIMALS if a.refused is not None]))
def test_a_refusal_names_the_reason_and_leaves_nothing(animal: Animal, tmp_path: Path) -> None:
    card = ModelCard(bands=animal.bands or ("gray",), classes=("bright",))
    with pytest.raises(ScenemillError) as refusal:
        segment_scene(
            ZOO / animal.file, tmp_path, predictor=lambda tiles: tiles[:, :1] * 0, card=card,
            spec=SegmentSpec(reading=animal.spec),
        )  # fmt: skip
    reason = str(refusal.value)
    assert re.search(str(animal.refused), reason)
    assert [*tmp_path.iterdir()] == []
    place, _, rest = reason.partition(": ")
    assert place == str(ZOO / animal.file)
    settle(animal, f"refused: {rest}")


def test_every_file_of_the_zoo_has_a_row() -> None:
    rasters = {str(path.relative_to(ZOO)) for path in [*ZOO.glob("*.tif*"), *ZOO.glob("broken/*")]}
    rasters = {name for name in rasters if not name.endswith((".xml", ".msk"))}
    assert {animal.file for animal in ANIMALS} == rasters
    assert [row.split(" | ")[:2] for row in committed_rows()] == [
        [f"| {animal.file}", animal.quirk] for animal in ANIMALS
    ]


def test_damage_half_way_fails_its_scene_alone(tmp_path: Path, checkpoint: Path) -> None:
    scenes = [ZOO / "broken" / "corrupt.tif", ZOO / "cog_rgb_mask.tif", ZOO / "sar_hh.tif"]
    with pytest.raises(SystemExit) as exit_:
        main(["segment", *map(str, scenes), "--model", str(checkpoint), "--out", str(tmp_path / "out")])
    assert exit_.value.code == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "cog_rgb_mask",
        "run.json",
        "collection.json",
        "quarantine.json",
    }
    assert {path.name for path in (tmp_path / "out" / "cog_rgb_mask").iterdir()} == OUTPUTS | {"item.json"}
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["counts"] == {"done": 1, "skipped": 0, "failed": 2, "quarantined": 0, "not run": 0}
    assert "damaged at rows 384..639" in run["scenes"][0]["reason"]
    assert "the model needs band(s) red, green, blue" in run["scenes"][2]["reason"]


def test_a_folder_with_odd_scenes_finishes_the_good_ones(tmp_path: Path, checkpoint: Path) -> None:
    for name in ("rgbsmall_WEBP.tif", "rotated.tif", "rgbsmall_JPEG_ycbcr.tif"):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).symlink_to(ZOO / name)
    with pytest.raises(SystemExit) as exit_:
        main(["segment", str(tmp_path / "in"), "--model", str(checkpoint), "--out", str(tmp_path / "out")])
    assert exit_.value.code == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"rgbsmall_WEBP", "rgbsmall_JPEG_ycbcr", "run.json", "collection.json", "quarantine.json"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained U-Net for RGB."""
    torch.manual_seed(0)
    shape = UNetSpec(bands=3, classes=1, depth=2, base_channels=8)
    card = ModelCard(
        bands=RGB, classes=("bright",), outputs="logits", stride=shape.stride, receptive_field=receptive_field(shape)
    )
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(path, UNet(shape), card)
    return path


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The pointwise predictor: 1 where the first band exceeds `cut`, else 0..0.4 by the mean of all bands."""

    cut: float
    low: float
    high: float

    @classmethod
    def of(cls, scene: Scene, animal: Animal) -> Rule:
        pixels, valid = oracle(scene, Window(0, 0, min(scene.grid.width, 2048), min(scene.grid.height, 2048)))
        values = pixels[:, valid].astype(np.float64)
        if not values.size:
            return cls(cut=0.0, low=0.0, high=1.0)
        cut = float(np.float32(np.quantile(values[0], 0.8))) if animal.cut is None else animal.cut
        return cls(cut=cut, low=float(values.min()), high=float(values.max()) + 1e-6)

    def __call__(self, tiles: NDArray[np.float32]) -> NDArray[np.float32]:
        graded = 0.4 * np.clip((tiles.mean(axis=1) - self.low) / (self.high - self.low), 0, 1)
        return np.where(tiles[:, 0] > self.cut, np.float32(1), graded.astype(np.float32))[:, None]


def oracle(scene: Scene, window: Window) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """Pixels and validity by rasterio's own means."""
    with rasterio.open(scene.location.gdal_path) as dataset:
        pixels = dataset.read(scene.band_numbers, window=window)
        valid = dataset.dataset_mask(window=window) > 0
        if scene.nodata != tuple(dataset.nodatavals[n - 1] for n in scene.band_numbers) and scene.nodata[0] is not None:
            valid = (pixels != scene.nodata[0]).any(axis=0)  # named in the settings, or NaN
    return pixels, valid & ~np.isnan(pixels).any(axis=0)


def compare_with_numpy(scene: Scene, folder: Path, rule: Rule) -> int:
    """Hold both rasters against plain numpy, a stripe at a time; returns the number of valid pixels."""
    count = 0
    with (
        rasterio.open(folder / "probability.tif") as mosaic,
        rasterio.open(folder / "mask.tif") as mask,
        rasterio.open(scene.location.gdal_path) as source,
    ):
        for raster in (mosaic, mask):
            assert raster.shape == source.shape
            assert raster.transform.almost_equals(source.transform, precision=1e-9)
            assert raster.crs == (source.crs or scene.grid.crs)
            assert raster.nodata == 255
        for top in range(0, source.height, 1024):
            window = Window(0, top, source.width, min(1024, source.height - top))
            pixels, valid = oracle(scene, window)
            stored = mosaic.read(1, window=window)
            expected = rule(pixels[None].astype(np.float32))[0, 0]
            np.testing.assert_array_equal(stored == 255, ~valid)
            assert np.abs(stored[valid] - expected[valid] * 254).max(initial=0) <= 0.5 + 1e-3
            np.testing.assert_array_equal(mask.read(1, window=window), np.where(valid, expected == 1, 255))
            count += int(valid.sum())
    return count


def compare_polygons(folder: Path, report: SceneReport) -> None:
    """Every pixel of the class lies in exactly one polygon of a true, finite area."""
    table = pyogrio.read_dataframe(folder / "polygons.gpkg", layer="polygons", read_geometry=False)
    with rasterio.open(folder / "mask.tif") as mask:
        bright = sum(int((mask.read(1, window=w) == 1).sum()) for _, w in mask.block_windows(1))
    assert len(table) == report.polygons
    assert table["pixel_count"].sum() == bright
    assert np.isfinite(table["area_m2"]).all()
    assert (table["area_m2"] > 0).all()


def processed(scene: Scene, report: SceneReport) -> str:
    """What the table says of a scene that came through."""
    code = scene.grid.crs.to_epsg()
    crs = f"EPSG:{code}" if code else "a CRS without EPSG code"
    valid = f"{report.statistics.valid_pixels:,} of {report.statistics.pixels:,} px valid"
    rows, cols = scene.grid.shape
    return f"processed: {rows} x {cols} px, {len(scene.bands)} band(s) {scene.dtype}, {crs}, {valid}"


def settle(animal: Animal, outcome: str) -> None:
    """Compare a row with the committed one, or write it."""
    row = f"| {animal.file} | {animal.quirk} | {animal.settings} | {outcome.replace('|', '/')} |"
    if os.environ.get("SCENEMILL_UPDATE_FORMATS"):
        write_row(animal, row)
    assert row in committed_rows(), f"docs/reference/formats.md does not hold this row:\n{row}"


def committed_rows() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return text[text.index(BEGIN) + len(BEGIN) : text.index(END)].strip().splitlines()[len(HEAD) :]


def write_row(animal: Animal, row: str) -> None:
    keys = {(a.file, a.quirk, a.settings): k for k, a in enumerate(ANIMALS)}
    rows = {tuple(old.removeprefix("| ").split(" | ")[:3]): old for old in committed_rows()}
    rows[animal.file, animal.quirk, animal.settings] = row
    ordered = sorted((key for key in rows if key in keys), key=keys.__getitem__)
    text = PAGE.read_text(encoding="utf-8")
    table = "\n".join([*HEAD, *(rows[key] for key in ordered)])
    PAGE.write_text(text[: text.index(BEGIN)] + f"{BEGIN}\n{table}\n{END}" + text[text.index(END) + len(END) :])
