"""Pipes, sockets and devices among scenes, catalogs, areas, labels and models are refused before they are opened."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Call, MakeScene
from support.range_server import serving

from pipeline.errors import LabelError, SceneError
from pipeline.scene import describe_scene
from pipeline.storage.formats.sidecars import MAX_LISTED
from pipeline.training.labels.vectors import read_areas

QUICK = ("--set", "tiling.tile_size=32", "--set", "inference.precision=float32")
"""Settings of a run on a scene of a few pixels."""
DEADLINE_S = 60
"""After this, a test that waits for a pipe is ended; the tests take a second."""


def make_special(kind: str, path: Path) -> None:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            folder = os.open(path.parent, os.O_RDONLY)
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
            os.close(folder)
    else:
        path.symlink_to("/dev/zero")


@pytest.fixture
def impatient() -> Iterator[None]:
    """A test that opens a pipe would wait for ever, in C code; this ends it with the place."""
    faulthandler.dump_traceback_later(DEADLINE_S, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
def test_pipes_sockets_and_devices_are_refused_before_they_are_opened(
    kind: str, make_scene: MakeScene, model: str, call: Call, tmp_path: Path
) -> None:
    good = make_scene(name="scenes/good.tif")
    for name in (
        "scenes/x.tif",
        "x.csv",
        "x.txt",
        "x.geojson",
        "x.gpkg",
        "x.json",
        "x.parquet",
        "x.safetensors",
        "x.pt2",
    ):
        make_special(kind, tmp_path / name)
    code, _, err = call("segment", good.parent, "--model", model, "--out", tmp_path / "out", *QUICK)
    assert code == 1
    assert "x.tif: is no regular file, but a pipe, socket or device" in " ".join(err.split())
    rows = {row["scene"]: row["status"] for row in json.loads((tmp_path / "out" / "run.json").read_text())["scenes"]}
    assert rows == {"good": "done", "x": "failed"}
    for name in ("x.csv", "x.txt", "x.geojson", "x.gpkg", "x.json", "x.parquet"):
        code, _, err = call("catalog", tmp_path / name)
        assert (code, "is no regular file" in " ".join(err.split())) == (2, True), (name, err)
    for name in ("x.geojson", "x.gpkg", "x.parquet"):
        code, _, err = call("catalog", good, "--area", tmp_path / name)
        assert (code, "is no regular file" in " ".join(err.split())) == (2, True), (name, err)
        with pytest.raises(LabelError, match="is no regular file"):
            read_areas(tmp_path / name)
    for name in ("x.safetensors", "x.pt2"):
        code, _, err = call("inspect", tmp_path / name)
        assert code == 2, (name, err)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("name", ["town.tif.aux.xml", "town.tif.msk", "town.tif.ovr", "town.tfw", "town_RPC.TXT"])
def test_a_pipe_among_the_sidecars_is_refused_before_it_is_opened(name: str, make_scene: MakeScene) -> None:
    scene = make_scene(name="town.tif")
    os.mkfifo(scene.with_name(name))
    with pytest.raises(SceneError, match=f"{name}: cannot be read as a sidecar of town.tif: is no regular file"):
        describe_scene(scene)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("scene", "name"),
    [
        *(("IMG-x.tif", name) for name in ("HDR-x.txt", "RPC-x.txt", "Summary.txt", "metadata.dim", "IMG-x.pvl")),
        *(("IMG_PHR_R1C1.tif", name) for name in ("DIM_PHR.XML", "RPC_PHR_R1C1.XML")),
        *(("LC8_B1.tif", name) for name in ("LC8_MTL.txt", "LC8_B1.xml", "LC8_B1_METADATA.txt")),
        *(("a.b.tif", name) for name in ("a.pass", "a.PASS")),
    ],
)
@pytest.mark.parametrize("others", [0, MAX_LISTED + 10])
def test_a_pipe_among_the_metadata_of_a_satellite_is_refused(
    scene: str, name: str, others: int, make_scene: MakeScene
) -> None:
    """GDAL derives their names from that of the scene; a large folder is not listed, neither by GDAL nor by us."""
    path = make_scene(name=scene)
    for number in range(others):
        path.with_name(f"0{number}").touch()
    os.mkfifo(path.with_name(name if not others or name != "Summary.txt" else "summary.txt"))
    with pytest.raises(SceneError, match=f"cannot be read as a sidecar of {scene}: is no regular file"):
        describe_scene(path)


@pytest.mark.parametrize(
    "name", ["town.tif.aux.xml", "town.IMD", "town_rpc.txt", "town.xml", "town.PASS", "summary.txt"]
)
def test_metadata_of_gigabytes_are_refused_before_gdal_reads_them_whole(name: str, make_scene: MakeScene) -> None:
    scene = make_scene(name="town.tif")
    with scene.with_name(name).open("wb") as file:
        file.truncate(2**34)  # sparse
    with pytest.raises(SceneError, match=rf"{name}: has 17179869184 bytes, over the 16777216 .* metadata"):
        describe_scene(scene)
    with scene.with_name(name).open("wb") as file:
        file.truncate(0)
    describe_scene(scene)


def test_large_metadata_on_a_server_are_refused_before_gdal_fetches_them(make_scene: MakeScene, tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    scene = tmp_path / "served" / "town.tif"
    scene.write_bytes(make_scene().read_bytes())
    with Path(f"{scene}.aux.xml").open("wb") as file:
        file.truncate(2**24 + 1)
    with serving(scene.parent) as address, pytest.raises(SceneError, match=r"town\.tif\.aux\.xml: has 16777217 bytes"):
        describe_scene(f"{address}/town.tif")


def test_a_scene_whose_sidecars_could_have_no_name_that_short_is_described(make_scene: MakeScene) -> None:
    describe_scene(make_scene(name="n" * 250 + ".tif"))
