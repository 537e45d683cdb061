"""Scenes behind `s3://`, served on loopback as S3 serves path-style addresses: by HEAD and ranged GET."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from conftest import MakeScene
from rasterio.windows import Window

from pipeline.band_file import BandFile
from pipeline.card import ModelCard
from pipeline.errors import WorldError
from pipeline.location import resolve_location
from pipeline.scene import SceneReader, describe_scene, remote_fingerprint
from pipeline.segment import segment_scene

CARD = ModelCard(bands=("red",), classes=("bright",))
COARSE = Affine(1, 0, 500_000, 0, -1, 5_400_000)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a local object store that GDAL's usual variables lead to."""
    folder = tmp_path / "store"
    (folder / "bucket").mkdir(parents=True)
    command = [sys.executable, str(Path(__file__).with_name("range_server.py")), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        monkeypatch.setenv("AWS_S3_ENDPOINT", f"127.0.0.1:{server.stdout.readline().strip()}")
        monkeypatch.setenv("AWS_HTTPS", "NO")
        monkeypatch.setenv("AWS_VIRTUAL_HOSTING", "FALSE")
        monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
        yield folder
        server.kill()


def test_a_scene_on_s3_gives_the_mosaic_of_the_local_one(store: Path, make_scene: MakeScene, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(1, 255, (1, 700, 900), np.uint8)
    local = make_scene(pixels, name="store/bucket/far.tif", descriptions=["red"], tiled=256)
    reports = [
        segment_scene(place, tmp_path / name, predictor=lambda tiles: tiles / 255, card=CARD)
        for name, place in (("near", local), ("far", "s3://bucket/far.tif"))
    ]
    near, far = (rasterio.open(Path(report.folder) / "probability.tif") for report in reports)
    with near, far:
        assert (near.read() == far.read()).all()
    assert reports[1].scene == "far"
    fetched = (store / "requests.log").read_text().splitlines()
    assert any("bytes=" in line for line in fetched), "the scene was fetched whole instead of by ranges"


def test_a_scene_of_several_files_on_s3_reads_like_the_local_one(store: Path, make_scene: MakeScene) -> None:
    """Bands of 0.5 and 1 m, each in its file; only what the model wants is fetched."""
    make_scene(bands=1, height=400, width=400, name="store/bucket/fine.tif", tiled=128, nodata=0)
    make_scene(bands=1, height=200, width=200, name="store/bucket/coarse.tif", tiled=128, transform=COARSE, seed=1)
    make_scene(bands=1, name="store/bucket/unwanted.tif")
    card = ModelCard(bands=("nir", "red"), classes=("bright",))
    read = []
    for folder in (str(store / "bucket"), "s3://bucket"):
        files = [
            BandFile(location=f"{folder}/{name}.tif", names=(band,), nodata=(None,), scales=(None,), offsets=(None,))
            for name, band in (("fine", "red"), ("unwanted", "blue"), ("coarse", "nir"))
        ]
        scene = describe_scene(files[0].location, card=card, scene_id="s", files=files)
        with SceneReader(scene) as reader:
            read.append(reader.read(Window(30, 50, 300, 200)))
    np.testing.assert_array_equal(read[0][0], read[1][0])
    np.testing.assert_array_equal(read[0][1], read[1][1])
    assert all(file.fingerprint for file in scene.files)
    assert scene.modified_ns is None
    assert not any("unwanted" in line for line in (store / "requests.log").read_text().splitlines())


def test_the_fingerprint_of_a_remote_scene_follows_its_content(store: Path, make_scene: MakeScene) -> None:
    prints = []
    for height in (300, 500):
        make_scene(np.ones((1, height, 300), np.uint8), name=f"store/bucket/{height}.tif", tiled=128)
        address = f"s3://bucket/{height}.tif"
        prints.append(remote_fingerprint(resolve_location(address), ("GTiff",)))
        assert prints[-1] == describe_scene(address).files[0].fingerprint
    assert prints[0] != prints[1]


def test_a_scene_that_is_not_on_s3_is_a_fault_of_the_world(store: Path) -> None:
    with pytest.raises(WorldError, match=r"missing\.tif"):
        describe_scene("s3://bucket/missing.tif")
