"""Storage blocks of any size: each is decoded once, memory follows the block, and what needs too much is refused."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import rasterio
from conftest import MakeScene
from numpy.typing import NDArray
from rasterio.windows import Window
from support.pointwise import CARD, check_result, run_pointwise

from pipeline.errors import SceneError
from pipeline.inference.tiling.chunks import chunk_shape
from pipeline.inference.tiling.strips import read_strips
from pipeline.inference.tiling.tiles import Tiling, plan_tiles
from pipeline.results.stage_records import stage_key
from pipeline.scene import checks, reader
from pipeline.scene.describe import Scene, describe_scene
from pipeline.scene.identity import identity_facts
from pipeline.scene.reader import SceneReader
from pipeline.storage import gdal

PLACE = rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)
PIXELS = np.random.default_rng(0).integers(0, 101, (3, 170, 130), np.uint8)


def write(path: Path, height: int, width: int, dtype: str = "uint8", *, count: int = 1, **options: object) -> Path:
    """A sparse file: a few hundred bytes, whatever its size."""
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=dtype, crs="EPSG:32633",
        transform=PLACE, sparse_ok=True, **options,
    ):  # fmt: skip
        pass
    return path


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few kilobytes count as large."""
    monkeypatch.setattr(checks, "LARGE_ROW_BYTES", 1000)
    monkeypatch.setattr(checks, "LARGE_BLOCK_BYTES", 1000)
    monkeypatch.setattr("pipeline.inference.tiling.chunks.CHUNK_ROWS", 24)


# Refused before anything is read


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "need"),
    [
        ((66_000, 20_000), "uint16", {"count": 1, "blockysize": 60_000, "compress": "deflate"}, "4.5 GiB"),
        ((40_000, 40_000), "uint8", {"count": 3, "tiled": True, "blockxsize": 16_384, "blockysize": 16_384}, "3.8 GiB"),
        ((9_000, 66_000), "int32", {"count": 3, "blockysize": 4_096, "interleave": "pixel"}, "9.1 GiB"),
        ((9_000, 66_000), "int32", {"count": 3, "blockysize": 4_096, "interleave": "band"}, "4.0 GiB"),
        ((9_000, 66_000), "float64", {"count": 4, "blockysize": 512}, "3.0 GiB"),
    ],
    ids=["one strip", "tiles", "interleaved strips", "strips of bands", "low and wide strips"],
)
def test_blocks_that_need_too_much_memory_are_refused_with_the_need(
    tmp_path: Path, shape: tuple[int, int], dtype: str, options: dict[str, object], need: str
) -> None:
    path = write(tmp_path / "s.tif", *shape, dtype, **options)
    with pytest.raises(SceneError, match=rf"s.tif: stored in blocks of .* needs {need} of memory, over the limit of "
                       r"2.1 GiB; rewrite it tiled, e.g. gdal_translate -of COG"):  # fmt: skip
        describe_scene(path)


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((9_000, 66_000), "int32", {"blockysize": 4_096, "compress": "deflate"}),
        ((6_000, 33_000), "uint8", {"count": 8, "blockysize": 2_800, "compress": "deflate"}),
        ((30_000, 30_000), "uint16", {"tiled": True, "blockxsize": 8_192, "blockysize": 8_192, "compress": "lzw"}),
        ((16, 300_000), "float32", {"blockysize": 16}),
        ((300_000, 16), "float32", {"tiled": True, "blockxsize": 16, "blockysize": 65_536}),
        ((9_000, 66_000), "float32", {"count": 4, "blockysize": 512, "compress": "deflate"}),
        ((9_000, 66_000), "uint8", {"count": 4, "tiled": True, "blockxsize": 512, "blockysize": 512}),
    ],
)
def test_blocks_that_fit_are_accepted(
    tmp_path: Path, shape: tuple[int, int], dtype: str, options: dict[str, object]
) -> None:
    scene = describe_scene(write(tmp_path / "s.tif", *shape, dtype, **options))
    rows, cols = chunk_shape(scene)
    if scene.files[0].resident_bytes:
        assert 64 <= rows <= 512
        assert cols == shape[1]
    chunk = min(rows, shape[0]) * min(cols, shape[1])
    assert chunk * len(scene.bands) * np.dtype(dtype).itemsize < 2**28


def test_the_blocks_of_a_mask_count_too(make_scene: MakeScene, small_limits: None) -> None:
    plain, masked = (
        describe_scene(scene_in(make_scene, "strips", mask=mask)).files[0] for mask in (None, PIXELS[0] > 9)
    )
    assert (plain.mask, masked.mask) == ("none", "dataset")
    assert (plain.resident_bytes, masked.resident_bytes) == (48 * 130 * 3, 48 * 130 * 4)


# Read by parts


LAYOUTS = {
    "strips": {"blockysize": 48, "compress": "deflate"},
    "strips that parts do not divide": {"blockysize": 37, "compress": "deflate"},
    "tiles": {"tiled": True, "blockxsize": 48, "blockysize": 80, "compress": "lzw"},
    "bands apart": {"blockysize": 61, "compress": "deflate", "interleave": "band"},
    "one block": {"tiled": True, "blockxsize": 144, "blockysize": 176},
}


def scene_in(make_scene: MakeScene, layout: str, **options: object) -> Path:
    return make_scene(PIXELS, name="s.tif", descriptions=["red", "green", "blue"], **LAYOUTS[layout], **options)


def count_blocks(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[int, int]]:
    """Reads all strips of a scene; how often each row of blocks became the one that is read."""
    rows: Counter[tuple[int, int]] = Counter()
    last = [-1]
    read = reader.read_stored

    def spy(dataset: object, file: object, window: Window, **kwargs: object) -> object:
        height = scene.files[0].block_shape[0]
        first, final = int(window.row_off) // height, int(window.row_off + window.height - 1) // height
        assert first == final
        if last[0] != first:
            rows[first, 0] += 1
            last[0] = first
        return read(dataset, file, window, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(reader, "read_stored", spy)
    plan = plan_tiles(scene.grid.shape, Tiling(tile_size=32, overlap=8))
    for _ in read_strips(scene, plan, (range(plan.shape[0]), range(plan.shape[1])), threads=3):
        pass
    return rows


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_row_of_large_blocks_is_decoded_once(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch, small_limits: None, layout: str
) -> None:
    scene = describe_scene(scene_in(make_scene, layout))
    assert scene.files[0].resident_bytes
    counted = count_blocks(scene, monkeypatch)
    assert set(counted.values()) == {1}
    assert len(counted) == -(-170 // scene.files[0].block_shape[0])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mask", [False, True])
def test_parts_of_large_blocks_give_the_same_result(
    make_scene: MakeScene, tmp_path: Path, small_limits: None, layout: str, mask: bool
) -> None:
    valid: NDArray[np.bool_] = PIXELS[1] > 20 if mask else np.ones((170, 130), bool)
    path = scene_in(make_scene, layout, mask=valid if mask else None)
    assert describe_scene(path, card=CARD).files[0].resident_bytes
    run_pointwise(path, tmp_path / "out")
    check_result(path, tmp_path / "out" / "s", valid)


def test_windows_of_many_threads_are_right(make_scene: MakeScene, small_limits: None) -> None:
    from concurrent.futures import ThreadPoolExecutor

    scene = describe_scene(scene_in(make_scene, "strips"))
    windows = [Window(col, row, 40, 50) for row in range(0, 120, 11) for col in range(0, 90, 13)]
    with SceneReader(scene) as source, ThreadPoolExecutor(4) as pool:
        for window, (pixels, _) in zip(windows, pool.map(source.read, windows), strict=True):
            rows, cols = window.toslices()
            np.testing.assert_array_equal(pixels, PIXELS[:, rows, cols])


def test_how_blocks_are_read_is_no_part_of_the_key(make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scene_in(make_scene, "strips")
    plain = identity_facts(describe_scene(path))
    monkeypatch.setattr(checks, "LARGE_ROW_BYTES", 1000)
    monkeypatch.setattr(checks, "LARGE_BLOCK_BYTES", 1000)
    large = describe_scene(path)
    assert large.files[0].resident_bytes
    assert identity_facts(large) == plain
    assert "resident_bytes" not in str(plain)
    assert stage_key("x", plain) == stage_key("x", identity_facts(large))


def test_the_cache_is_as_small_as_before_when_a_reader_is_closed(
    make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch, small_limits: None
) -> None:
    monkeypatch.delenv("GDAL_CACHEMAX", raising=False)
    sizes: list[int] = []
    monkeypatch.setattr(gdal, "set_gdal_config", lambda name, value: sizes.append(value))
    scene = describe_scene(scene_in(make_scene, "strips"))
    with SceneReader(scene) as first, SceneReader(scene) as second:
        first.read(Window(0, 0, 10, 10))
        second.read(Window(0, 0, 10, 10))
    once = scene.files[0].resident_bytes
    assert sizes == [gdal.CACHE_BYTES + k * once for k in (1, 2, 1, 0)]


# Memory


CHILD = """
import sys
from pathlib import Path
from pipeline.inference.tiling.strips import read_strips
from pipeline.inference.tiling.tiles import Tiling, plan_tiles
from pipeline.scene.describe import describe_scene
scene = describe_scene(sys.argv[1])
plan = plan_tiles(scene.grid.shape, Tiling(tile_size=512, overlap=64))
def peak():  # ru_maxrss would count the parent's peak
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
for strip in read_strips(scene, plan, (range(plan.shape[0]), range(plan.shape[1]))):
    pass
print(peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
@pytest.mark.parametrize(
    ("shape", "dtype", "options", "times"),
    [
        ((6_000, 33_000), "int32", {"blockysize": 2_048}, 2.2),
        ((3_000, 20_000), "uint8", {"count": 8, "blockysize": 1_900}, 3.0),
        ((6_000, 12_000), "uint16", {"tiled": True, "blockxsize": 4_096, "blockysize": 4_096, "count": 3}, 2.2),
    ],
    ids=["strips", "interleaved", "tiles"],
)
def test_memory_is_a_small_multiple_of_a_row_of_blocks(
    tmp_path: Path, shape: tuple[int, int], dtype: str, options: dict[str, object], times: float
) -> None:
    path = write(tmp_path / "s.tif", *shape, dtype, compress="deflate", **options)
    row_bytes = describe_scene(path).files[0].resident_bytes
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True)
    print(f"{path.name}: a row of blocks {row_bytes / 2**20:.0f} MiB, reading {int(done.stdout) / 2**20:.0f} MiB")
    assert int(done.stdout) < times * row_bytes + 2**28
