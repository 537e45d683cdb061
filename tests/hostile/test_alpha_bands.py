"""A band tagged alpha hides pixels only where its values are a mask; near infrared is never dropped silently."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import Call, MakeScene
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from support.models import RGB

from pipeline.errors import SceneError
from pipeline.model.card import ModelCard
from pipeline.scene.describe import describe_scene
from pipeline.scene.reader import SceneReader
from pipeline.scene.spec import ReadingSpec
from pipeline.scene.validity import stray_share

CARD = ModelCard(bands=RGB, classes=("roof",))
SIDE = 300
ROWS, COLS = np.mgrid[:SIDE, :SIDE]
BLOB = np.hypot(ROWS - 140, COLS - 150)
"""Distance from a point of the scene, px."""


def near_infrared(top: float = 255, seed: int = 0) -> NDArray[np.uint8]:
    """Reflectances with dark water, 0 here and there, and fields that saturate where `top` is large."""
    noise = np.random.default_rng(seed).normal(0, 12, (SIDE, SIDE))
    land = 60 + (top - 60) * (0.5 + 0.5 * np.sin(ROWS / 40) * np.cos(COLS / 55)) + noise
    return np.clip(np.where(BLOB < 60, noise / 6, land), 0, 255).astype(np.uint8)


MASKS = {
    "hard": np.where(BLOB < 120, 255, 0).astype(np.uint8),
    "all opaque": np.full((SIDE, SIDE), 255, np.uint8),
    "all transparent": np.zeros((SIDE, SIDE), np.uint8),
    "half transparent throughout": np.where(BLOB < 120, 128, 0).astype(np.uint8),
    "soft edge": np.clip((125 - BLOB) * 26, 0, 255).astype(np.uint8),
    "thin line with soft edges": np.clip(255 - np.abs(ROWS - COLS // 3 - 80) * 60, 0, 255).astype(np.uint8),
    "uint16": np.where(BLOB < 120, 65535, 0).astype(np.uint16),
    "uint16 with 255": np.where(BLOB < 120, 255, 0).astype(np.uint16),
    "float": np.where(BLOB < 120, 1, 0).astype(np.float32),
}
DATA = {
    "near infrared": near_infrared(),
    "near infrared, saturated": near_infrared(900),
    "reflectance of 12 bits": near_infrared().astype(np.uint16) * 16,
    "a gradient over the whole scene": np.linspace(0, 255, SIDE * SIDE).reshape(SIDE, SIDE).astype(np.uint8),
    "elevation": (100 + BLOB).astype(np.float32),
}


@pytest.fixture
def tagged(make_scene: MakeScene) -> object:
    """Scenes of red, green, blue and a band tagged alpha."""

    def make(alpha: NDArray[np.generic], **options: object) -> Path:
        colours = np.random.default_rng(1).integers(1, 100, (3, *alpha.shape)).astype(alpha.dtype)
        names = ["red", "green", "blue", "alpha"]
        return make_scene(np.concatenate([colours, alpha[None]]), name="s.tif", colorinterp=names, **options)

    return make


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_hides_what_is_transparent(tagged: object, name: str) -> None:
    scene = describe_scene(tagged(MASKS[name], tiled=64), card=CARD)  # type: ignore[operator]
    assert scene.files[0].alpha_number == 4
    with SceneReader(scene) as reader:
        np.testing.assert_array_equal(reader.read(scene.grid.window)[1], MASKS[name] > 0)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_a_mask_of_jpeg_is_still_one(tagged: object, quality: int) -> None:
    path = tagged(MASKS["hard"], tiled=64, compress="jpeg", JPEG_QUALITY=quality)  # type: ignore[operator]
    with rasterio.open(path) as dataset:
        assert len(np.unique(dataset.read(4))) > 2
    assert describe_scene(path, card=CARD).files[0].alpha_number == 4


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("layout", [{"tiled": 64}, {}], ids=["tiles", "strips"])
def test_data_tagged_alpha_is_refused_with_both_remedies(tagged: object, name: str, layout: dict[str, int]) -> None:
    path = tagged(DATA[name], **layout)  # type: ignore[operator]
    with pytest.raises(SceneError, match=r"s.tif: band 4 is tagged alpha .* hardly a mask; near infrared .*"
                       r"reading.ignore_alpha=true; if it is a mask, reading.ignore_alpha=false"):  # fmt: skip
        describe_scene(path, card=CARD)

    scene = describe_scene(path, ReadingSpec(ignore_alpha=True), card=CARD)
    with SceneReader(scene) as reader:
        assert reader.read(scene.grid.window)[1].all()
    scene = describe_scene(path, ReadingSpec(ignore_alpha=False), card=CARD)
    with SceneReader(scene) as reader:
        np.testing.assert_array_equal(reader.read(scene.grid.window)[1], DATA[name] > 0)
    wanted = ModelCard(bands=(*RGB, "nir"), classes=("roof",))
    with pytest.raises(SceneError, match=r"needs band\(s\) nir, .*band 4 is tagged alpha .*ignore_alpha=true too"):
        describe_scene(path, card=wanted)
    both = ReadingSpec(bands={"nir": 4}, ignore_alpha=True)
    assert describe_scene(path, both, card=wanted).band_numbers == (1, 2, 3, 4)


def test_the_run_and_inspect_say_so(tagged: object, model: str, call: Call, tmp_path: Path) -> None:
    path = tagged(DATA["near infrared"])  # type: ignore[operator]
    code, out, err = call("segment", path, "--model", model, "--out", tmp_path / "out")
    assert code == 1
    assert "reading.ignore_alpha=true" in " ".join((out + err).split())
    code, out, err = call("inspect", path)
    assert code == 1
    assert "hardly a mask" in " ".join((out + err).split())
    code, out, _ = call("inspect", path, "--set", "reading.ignore_alpha=true")
    assert (code, "band_4" in out) == (0, True)
    code, out, _ = call("inspect", path, "--set", "reading.ignore_alpha=false")
    assert (code, "alpha band 4 over 0" in out) == (0, True)


def test_a_damaged_block_of_alpha_is_reported_where_it_is_read(tagged: object) -> None:
    path = tagged(MASKS["hard"], tiled=64, compress="deflate")  # type: ignore[operator]
    content = path.read_bytes()
    path.write_bytes(content[:-3000] + b"\xff" * 3000)
    assert describe_scene(path, card=CARD).files[0].alpha_number == 4


@given(radius=st.floats(20, 120), width=st.floats(0.5, 14), top=st.sampled_from([200, 255, 4095, 65535]))
def test_any_edge_up_to_fourteen_pixels_wide_is_one_of_a_mask(radius: float, width: float, top: int) -> None:
    alpha = np.clip((radius - BLOB) / width * top + top / 2, 0, top).astype(np.uint16)
    assert stray_share([alpha]) == 0


@given(seed=st.integers(0, 10**6), top=st.floats(90, 2000))
def test_reflectances_are_never_a_mask(seed: int, top: float) -> None:
    assert stray_share([near_infrared(top, seed)]) > 0.02


def test_real_near_infrared_is_told_from_real_masks(shared_data: Path) -> None:
    chips = sorted((shared_data / "mangrove_4band").rglob("*.tif"))
    assert len(chips) == 12
    for chip in chips:
        with rasterio.open(chip) as dataset:
            assert ColorInterp.alpha in dataset.colorinterp
        with pytest.raises(SceneError, match="hardly a mask"):
            describe_scene(chip)
    for name in ("alpha.tif", "cog_rgba.tif", "dummy_fotomap_small.tif", "RGBA.uint16.tif", "rgba8_cog_big.tiff"):
        assert describe_scene(shared_data / "zoo" / name).files[0].alpha_number == 4
