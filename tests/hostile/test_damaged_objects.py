"""Damaged objects of stores and web servers are damage, as files are; faults of the network are not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeScene
from support.object_stores import Store
from support.range_server import serving

from pipeline.catalog.read import read_catalog
from pipeline.config import InferenceSpec, RunSpec, SegmentSpec
from pipeline.errors import DamagedSceneError, SceneError, TransientError
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.run.models import load_run_models
from pipeline.run.scenes import segment_catalog
from pipeline.scene.describe import describe_scene
from pipeline.scene.reader import SceneReader
from pipeline.storage import gdal
from pipeline.storage.retries import RetryPolicy

PIXELS = np.random.default_rng(0).integers(1, 255, (1, 512, 512), np.uint8)
Put = Callable[[str, bytes], str]
"""Name and content of a file -> its address."""


@pytest.fixture(params=["s3", "http"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Put]:
    """Publishes a file, in a store or on a web server."""
    if request.param == "s3":
        store: Store = request.getfixturevalue("store")
        yield store.put
        return
    (tmp_path / "served").mkdir()
    with serving(tmp_path / "served") as server:

        def write(name: str, content: bytes) -> str:
            (tmp_path / "served" / name).write_bytes(content)
            return f"{server}/{name}"

        yield write


@pytest.fixture
def whole(make_scene: MakeScene) -> bytes:
    """A tiled, compressed scene with its directory in front of its blocks."""
    return make_scene(PIXELS, name="whole.tif", tiled=64, compress="deflate", descriptions=["red"]).read_bytes()


def read(address: str) -> None:
    scene = describe_scene(address)
    with SceneReader(scene) as reader:
        reader.read(scene.grid.window)


def with_directory_at_the_end(content: bytes) -> bytes:
    """The same little-endian TIFF, with a copy of its first directory at its end."""
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    directory = content[start : start + 2 + 12 * count + 4]
    return content[:4] + struct.pack("<I", len(content)) + content[8:] + directory


@pytest.mark.parametrize("share", [0.999, 0.7, 0.3])
def test_a_truncated_object_is_called_truncated(put: Put, whole: bytes, share: float) -> None:
    content = whole[: int(share * len(whole))]
    with pytest.raises(DamagedSceneError, match=rf"truncated: it has {len(content):,} bytes, but .* refers to"):
        read(put("cut.tif", content))


@pytest.mark.parametrize("lost", [8, 100, 100_000])
def test_an_object_without_its_directory_is_called_truncated(put: Put, whole: bytes, lost: int) -> None:
    content = with_directory_at_the_end(whole)
    read(put("whole.tif", content))
    with pytest.raises(DamagedSceneError, match="truncated: it has"):
        read(put("cut.tif", content[:-lost]))


def test_an_object_with_a_damaged_directory_is_damaged(put: Put, whole: bytes) -> None:
    (start,) = struct.unpack_from("<I", whole, 4)
    content = whole[: start + 2] + b"\xff" * 60 + whole[start + 62 :]
    with pytest.raises(DamagedSceneError, match=r"cannot be opened|header is damaged"):
        read(put("bad.tif", content))


def test_an_object_with_a_damaged_block_is_damaged(put: Put, whole: bytes) -> None:
    content = whole[: len(whole) // 2] + b"\xff" * 4000 + whole[len(whole) // 2 + 4000 :]
    with pytest.raises(DamagedSceneError, match=r"damaged at rows .*nothing of it was published"):
        read(put("bad.tif", content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>Sign in</title>", "is a web page, perhaps an error page"),
        (b"\n\n<html>", "is a web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "is a PNG picture"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(100), "is a zip archive"),
        (b"hello", "is not a raster this system knows"),
    ],
)
def test_an_object_of_another_format_is_named(put: Put, content: bytes, message: str) -> None:
    with pytest.raises(SceneError, match=message):
        describe_scene(put("other.tif", content))


def test_a_directory_that_refers_everywhere_costs_few_requests(store: Store, whole: bytes) -> None:
    """Directories in 10,000 places of a large object."""
    step = 300_000
    content = bytearray(whole[:8] + bytes(40 * step))
    for number in range(40):
        at = 8 + number * step
        struct.pack_into("<H", content, at, 0)
        struct.pack_into("<I", content, at + 2, at + step if number < 39 else 0)
    struct.pack_into("<I", content, 4, 8)
    address = store.put("many.tif", bytes(content))
    before = len(store.requests)
    with pytest.raises(SceneError):
        describe_scene(address)
    assert len(store.requests) - before < 100


# Faults of the network.


def test_a_connection_that_drops_is_no_damage(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.remote.REQUEST_RETRIES", RetryPolicy((0.0,)))
    monkeypatch.setitem(gdal._REMOTE_OPTIONS, "GDAL_HTTP_MAX_RETRY", "0")
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.tif").write_bytes(whole)
    with serving(folder) as server:
        scene = describe_scene(f"{server}/a.tif")
        (folder / "failing").touch()
        with pytest.raises(TransientError), SceneReader(scene) as reader:
            reader.read(scene.grid.window)
        with pytest.raises(TransientError):
            describe_scene(f"{server}/a.tif")
        # GDAL alone is refused: neither is that damage.
        (folder / "failing").unlink()
        (folder / "redirects.json").write_text(json.dumps({"/a.tif": 503}))
        with pytest.raises(TransientError, match="check the address, credentials and network"):
            describe_scene(f"{server}/a.tif")


# Runs.


def test_a_damaged_object_is_quarantined_at_once_and_runs_when_it_is_replaced(
    store: Store, make_scene: MakeScene, model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = make_scene(np.repeat(PIXELS, 3, axis=0), tiled=64, descriptions=["red", "green", "blue"]).read_bytes()
    addresses = [store.put("in/cut.tif", whole[: len(whole) // 2]), store.put("in/page.tif", b"<!DOCTYPE html>")]
    spec = SegmentSpec(
        tiling=TilingSpec(tile_size=64),
        inference=InferenceSpec(device="cpu", precision="float32"),
        run=RunSpec(retries=3, retry_delay_s=0),
    )
    predictor = load_run_models([model], spec)

    def run() -> list[tuple[str, str]]:
        entries = [*read_catalog(addresses)]
        reports = segment_catalog(entries, tmp_path / "out", predictor=predictor, spec=spec)
        return [(report.scene, report.status) for report in reports]

    assert run() == [("cut", "failed"), ("page", "failed")]
    assert "trying again" not in caplog.text
    assert "rasterio" not in caplog.text, "lines of GDAL"
    listed = json.loads((tmp_path / "out" / "quarantine.json").read_text())["scenes"]
    assert [(each["scene"], each["kind"]) for each in listed] == [("cut", "DamagedSceneError"), ("page", "SceneError")]
    assert "truncated" in listed[0]["reason"]
    assert "web page" in listed[1]["reason"]
    assert run() == [("cut", "quarantined"), ("page", "quarantined")]

    store.put("in/cut.tif", whole)
    store.put("in/page.tif", whole)
    assert run() == [("cut", "done"), ("page", "done")]
