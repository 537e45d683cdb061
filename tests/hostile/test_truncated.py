"""A truncated TIFF is called truncated, before GDAL reads it, wherever it was cut; tags of gigabytes are not read."""

from __future__ import annotations

import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from conftest import MakeScene
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cli.app import main
from pipeline.errors import DamagedSceneError, SceneError
from pipeline.scene.describe import describe_scene
from pipeline.storage.truncation import tiff_extent

RGB = ("red", "green", "blue")
PIXELS = np.random.default_rng(0).integers(0, 255, (3, 70, 90), np.uint8)
LAYOUTS = {
    "strips": {},
    "tiles": {"tiled": 32, "compress": "deflate"},
    "bands apart": {"interleave": "band", "compress": "lzw"},
    "bigtiff": {"BIGTIFF": "YES", "tiled": 32},
    "big-endian": {"ENDIANNESS": "BIG"},
    "mask": {"tiled": 32, "compress": "deflate", "mask": PIXELS[0] > 20},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Whole files of several layouts, among them one whose directory lies at its end."""
    folder = tmp_path_factory.mktemp("whole")
    files = {}
    for name, options in LAYOUTS.items():
        options = dict(options)
        side, mask = options.pop("tiled", None), options.pop("mask", None)
        path = folder / f"{name}.tif"
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(
            path, "w", driver="GTiff", count=3, height=70, width=90, dtype="uint8", crs="EPSG:32633",
            transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000), photometric="rgb",
            **({"tiled": True, "blockxsize": side, "blockysize": side} if side else {}), **options,
        ) as dataset:  # fmt: skip
            dataset.write(PIXELS)
            if mask is not None:
                dataset.write_mask(mask)
        files[name] = path.read_bytes()
    rasterio.shutil.copy(folder / "strips.tif", folder / "cog.tif", driver="COG", blocksize=128)
    files["cog"] = (folder / "cog.tif").read_bytes()[:-4]  # GDAL ends the file with four bytes that nothing reads
    shutil.copy(folder / "strips.tif", folder / "end.tif")
    with rasterio.open(folder / "end.tif", "r+") as dataset:
        dataset.set_band_description(1, "coastal")
        dataset.update_tags(note="x" * 3000)
    files["directory at the end"] = (folder / "end.tif").read_bytes()
    return files


@given(share=st.floats(0, 1, exclude_max=True), layout=st.sampled_from([*LAYOUTS, "cog", "directory at the end"]))
def test_a_file_cut_anywhere_is_shorter_than_it_says(
    whole: dict[str, bytes], share: float, layout: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = whole[layout]
    cut = content[: 8 + int(share * (len(content) - 8))]
    assert tiff_extent(lambda at, count: content[at : at + count], len(content)) <= len(content)
    assert tiff_extent(lambda at, count: cut[at : at + count], len(cut)) > len(cut)


@pytest.mark.parametrize("layout", [*LAYOUTS, "cog", "directory at the end"])
@pytest.mark.parametrize("share", [0.0, 0.002, 0.004, 0.3, 0.999])
def test_a_truncated_scene_is_called_so(whole: dict[str, bytes], layout: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    kept = 9 + int(share * (len(whole[layout]) - 10))
    path.write_bytes(whole[layout][:kept])
    with pytest.raises(DamagedSceneError, match=rf"cut.tif: truncated: it has {kept:,} bytes, but .* fetch or write"):
        describe_scene(path)


def test_the_command_says_it_once_and_does_not_ask_for_band_names(
    whole: dict[str, bytes], model: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = whole["directory at the end"]
    for name, kept in (("tail", len(content) - 900), ("middle", 9_000)):
        (tmp_path / f"{name}.tif").write_bytes(content[:kept])
    for times, arguments in (
        (2, ["segment", *map(str, tmp_path.glob("*.tif")), "--model", model, "--out", str(tmp_path / "out")]),
        (1, ["inspect", str(tmp_path / "tail.tif")]),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 1
        said = "".join(capfd.readouterr())  # with what GDAL itself writes to the terminal
        assert said.count("truncated") == times
        assert "reading.bands" not in said
        assert "TIFF" not in said


def test_a_mask_that_was_cut_off_does_not_make_every_pixel_valid(whole: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "cut.tif"
    path.write_bytes(whole["mask"][:-10])
    with pytest.raises(DamagedSceneError, match="truncated"):
        describe_scene(path)


# What is not truncated


def test_a_last_strip_that_is_counted_too_large_is_no_truncation(make_scene: MakeScene) -> None:
    # Some writers give every uncompressed strip the size of a whole one; GDAL reads the rows that exist.
    path = make_scene(PIXELS[0], BLOCKYSIZE=32)
    content = path.read_bytes()
    sizes = struct.pack("<3I", 90 * 32, 90 * 32, 90 * 6), struct.pack("<3I", 90 * 32, 90 * 32, 90 * 32)
    short = struct.pack("<3H", 90 * 32, 90 * 32, 90 * 6), struct.pack("<3H", 90 * 32, 90 * 32, 90 * 32)
    assert content.count(sizes[0]) + content.count(short[0]) == 1
    path.write_bytes(content.replace(*sizes).replace(*short))
    with rasterio.open(path) as dataset:
        np.testing.assert_array_equal(dataset.read(1), PIXELS[0])
    assert describe_scene(path).grid.shape == (70, 90)


def test_sparse_files_and_other_formats_are_whole(make_scene: MakeScene, tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=5000, width=7000, dtype="uint8", crs="EPSG:32633", sparse_ok=True,
        tiled=True, transform=rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000),
    ):  # fmt: skip
        pass
    assert describe_scene(path).grid.shape == (5000, 7000)
    for content in (b"", b"II", b"\xff\xd8\xff\xe0" + bytes(50), b"II*\0" + bytes(30)):
        assert tiff_extent(lambda at, count, content=content: content[at : at + count], len(content)) <= len(content)


def test_directories_that_refer_to_each_other_end(make_scene: MakeScene) -> None:
    content = bytearray(make_scene().read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (tags,) = struct.unpack_from("<H", content, first)
    struct.pack_into("<I", content, first + 2 + 12 * tags, first)
    assert tiff_extent(lambda at, count: bytes(content[at : at + count]), len(content)) <= len(content)


# Tags that need too much memory.

BYTE, ASCII, SHORT, UNDEFINED = 1, 2, 3, 7
"""Types of the values of tags."""


def write_large_tags(path: Path, *tags: tuple[int, int], size: int, copies: int = 1) -> None:
    """Append a directory of a scene's own tags and further ones, whose values are the same sparse bytes.

    Args:
        path: a scene.
        tags: number and type of each.
        size: bytes of the values of each.
        copies: how many directories have them.
    """
    content = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, first)
    own = [struct.unpack_from("<HHII", content, first + 2 + 12 * number) for number in range(count)]
    widths = {BYTE: 1, ASCII: 1, SHORT: 2, UNDEFINED: 1}
    end = len(content) + len(content) % 2 + copies * (6 + 12 * (count + len(tags)))
    entries = {tag: (tag, kind, size // widths[kind], end) for tag, kind in tags}
    entries = {**{entry[0]: entry for entry in own}, **entries}
    content += bytes(len(content) % 2)
    struct.pack_into("<I", content, 4, len(content))
    for number in range(copies):
        content += struct.pack("<H", len(entries))
        content += b"".join(struct.pack("<HHII", *entries[tag]) for tag in sorted(entries))
        content += struct.pack("<I", len(content) + 4 if number < copies - 1 else 0)
    path.write_bytes(content)
    os.truncate(path, end + size)


@pytest.mark.parametrize(
    "tag", [(700, BYTE), (34675, UNDEFINED), (42112, ASCII), (270, ASCII), (320, SHORT), (258, SHORT), (65000, BYTE)]
)
def test_a_tag_of_gigabytes_is_refused_before_it_is_read(tag: tuple[int, int], make_scene: MakeScene) -> None:
    """GDAL took two to four gigabytes of memory for one such tag of a sparse file."""
    scene = make_scene()
    write_large_tags(scene, tag, size=2_000_000_000)
    with pytest.raises(SceneError, match=r"its tags hold 2000\d{6} bytes of metadata, over 536870912"):
        describe_scene(scene)


def test_tags_that_share_their_bytes_count_each(make_scene: MakeScene) -> None:
    scene = make_scene()
    write_large_tags(scene, (700, BYTE), (34675, UNDEFINED), (65000, BYTE), size=2**28)
    with pytest.raises(SceneError, match=r"its tags hold 53687\d{4} bytes"):
        describe_scene(scene)
    scene = make_scene(name="pages.tif")
    write_large_tags(scene, (65000, BYTE), size=2**20, copies=1000)
    with pytest.raises(SceneError, match=r"its tags hold 53\d{7} bytes"):
        describe_scene(scene)


def test_tags_of_megabytes_are_read(make_scene: MakeScene) -> None:
    scene = make_scene()
    write_large_tags(scene, (700, BYTE), (65000, BYTE), size=2**22)
    describe_scene(scene)
