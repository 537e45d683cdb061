"""A scene opens nothing but itself and its own sidecars: no file, no address and no pipe that it names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio._env
from conftest import MakeScene
from rasterio.env import set_gdal_config
from support import hostile_calls
from support.clusters import ROOT, RealCluster
from support.hostile_rasters import CASES, Loot, write_plain

from pipeline.errors import SceneError, SettingsError
from pipeline.mosaic.reader import MosaicReader, read_mask
from pipeline.scene import ReadingSpec, describe_scene
from pipeline.scene.file import reopen_file
from pipeline.storage import (
    allow_drivers,
    import_pyogrio,
    known_drivers,
    open_raster,
    resolve_location,
)
from pipeline.storage.formats import drivers
from pipeline.storage.formats.sidecars import check_folder

REASONS = {
    "leak": "leak.tif.msk: is no TIFF",
    "write": "write.tif.msk: is no TIFF",
    "foreign_mask": "foreign_mask.tif.msk: is no TIFF",
    "overview_tag": "its tag OVERVIEW_FILE names another file or address",
    "overview_pam": "its tag OVERVIEW_FILE names another file or address",
    "overview_file": "overview_file.tif.ovr: is no TIFF",
    "overview_fifo": "its tag OVERVIEW_FILE names another file or address",
}
"""Case -> the words of its refusal."""
ACCEPTED_REMOTE = {"overview_file"}
"""Overviews are not asked for over a network, so there the scene is harmless."""
QUICK = ("--set", "tiling.tile_size=32", "--set", "inference.precision=float32")
"""Settings of a run on scenes of a few pixels."""
DEADLINE_S = 100
"""For processes that may hang; they take seconds."""


@pytest.fixture(scope="module")
def scenes(loot: Loot) -> dict[str, Path]:
    """The scene of each case, in the folder that the server serves, and a good one."""
    served = loot.log.parent
    paths = {name: served / f"{name}.tif" for name in (*CASES, "good")}
    for name, write in CASES.items():
        write(paths[name], loot)
    write_plain(paths["good"])
    return paths


def check_outcomes(outcomes: dict[str, str]) -> None:
    """Refused for the true reason, or accepted where nothing foreign is read."""
    for address, outcome in outcomes.items():
        name = Path(address).stem
        if name == "good" or ("://" in address and name in ACCEPTED_REMOTE):
            assert outcome.startswith("accepted"), (address, outcome)
        else:
            assert outcome.startswith("SceneError"), (address, outcome)
            assert REASONS[name] in outcome, (address, outcome)


def addresses(scenes: dict[str, Path], loot: Loot) -> list[str]:
    """Each scene as a local path and as an address."""
    return [*map(str, scenes.values()), *(f"{loot.url}/{path.name}" for path in scenes.values())]


def run_python(code: str, *arguments: str) -> Any:
    """Run code in a process of its own, which prints its result as JSON."""
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **path}, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# The seven cases of the review


def test_the_main_process_refuses_each_case_and_reaches_nothing(scenes: dict[str, Path], loot: Loot) -> None:
    code = "import json, sys; from support.hostile_calls import describe; "
    code += "print(json.dumps({each: describe(each) for each in sys.argv[1:]}))"
    check_outcomes(run_python(code, *addresses(scenes, loot)))
    loot.check_untouched()


def test_without_our_checks_gdal_has_no_driver_for_a_mask_that_is_no_tiff(scenes: dict[str, Path], loot: Loot) -> None:
    code = "import json, sys; from support.hostile_calls import open_with_gdal; "
    code += "print(json.dumps({each: open_with_gdal(sys.argv[1], each) for each in sys.argv[2:]}))"
    names = ["leak", "write", "foreign_mask", "overview_file"]
    paths = [str(scenes[name]) for name in names] + [f"/vsicurl/{loot.url}/{name}.tif" for name in names]
    outcomes = run_python(code, str(scenes["good"]), *paths)
    assert set(outcomes.values()) == {"all_valid 1 nothing COG,GTiff,MEM,Memory"}
    loot.check_untouched()


def test_a_worker_of_a_cluster_refuses_each_case_and_reaches_nothing(scenes: dict[str, Path], loot: Loot) -> None:
    from distributed import Client

    with ExitStack() as processes:
        cluster = RealCluster(processes).add(1)
        client = processes.enter_context(Client(cluster.address, set_as_default=False))
        described = {each: client.submit(hostile_calls.describe, each) for each in addresses(scenes, loot)}
        check_outcomes({each: future.result(timeout=DEADLINE_S) for each, future in described.items()})
        raw = client.submit(hostile_calls.open_with_gdal, str(scenes["good"]), str(scenes["leak"]))
        assert raw.result(timeout=DEADLINE_S) == "all_valid 1 nothing COG,GTiff,MEM,Memory"
    loot.check_untouched()


def test_a_run_refuses_each_case_and_finishes_the_good_scenes(
    scenes: dict[str, Path], loot: Loot, model: str, tmp_path: Path
) -> None:
    sources = addresses(scenes, loot)
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "segment", *sources]
    command += ["--model", model, "--out", str(tmp_path), *QUICK]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.returncode == 1, done.stderr
    outcomes = {}
    for row in json.loads((tmp_path / "run.json").read_text())["scenes"]:
        # Stems collide, so the ids are folder and stem.
        scheme = "http://" if row["scene"].startswith("127.0.0.1") else ""
        name = next(name for name in scenes if row["scene"].endswith(f"_{name}"))
        outcomes[f"{scheme}{name}.tif"] = "accepted" if row["status"] == "done" else f"SceneError: {row['reason']}"
    assert len(outcomes) == 2 * len(scenes)
    check_outcomes(outcomes)
    loot.check_untouched()


# Sidecars


def plant(kind: str, raster: Path, loot: Loot) -> None:
    """Plant a hostile sidecar or tag at a raster that exists."""
    if kind == "tag":
        with rasterio.open(raster, "r+") as dataset:
            dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(loot.fifo))
        return
    if kind == "tag of a mask":
        write_plain(Path(f"{raster}.msk"), overviews=str(loot.fifo))
        return
    if kind == "metadata of a mask":
        write_plain(Path(f"{raster}.msk"))
        raster = Path(f"{raster}.msk")
    suffix = {
        "metadata": ".aux.xml", "metadata of a mask": ".aux.xml", "mask": ".msk", "MASK": ".MSK", "overviews": ".OvR",
        "mask of a mask": ".msk.msk", "overviews of a mask": ".msk.ovr", "mask of overviews": ".ovr.msk",
    }[kind]  # fmt: skip
    name, write = ("overview_pam", CASES["overview_pam"]) if suffix == ".aux.xml" else ("leak", CASES["leak"])
    scene = loot.secret.with_name(f"{name}.tif")
    write(scene, loot)
    shutil.copy(f"{scene}{'.aux.xml' if suffix == '.aux.xml' else '.msk'}", f"{raster}{suffix}")


KINDS = {
    "tag": "OVERVIEW_FILE",
    "metadata": "OVERVIEW_FILE",
    "mask": "is no TIFF",
    "MASK": "is no TIFF",
    "overviews": "is no TIFF",
    "tag of a mask": r"\.msk: its tag OVERVIEW_FILE",
    "metadata of a mask": r"\.msk: its tag OVERVIEW_FILE",
    "mask of a mask": r"\.msk\.msk: is no TIFF",
    "overviews of a mask": r"\.msk\.ovr: is no TIFF",
    "mask of overviews": r"\.ovr\.msk: is no TIFF",
}
"""What is planted -> the words of the refusal."""


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_is_refused_for_what_lies_beside_it(kind: str, make_scene: MakeScene, loot: Loot) -> None:
    scene = make_scene(name="town.tif")
    plant(kind, scene, loot)
    with pytest.raises(SceneError, match=KINDS[kind]):
        describe_scene(scene)
    loot.check_untouched()


@pytest.mark.parametrize("kind", ["mask", "MASK"])
def test_a_sidecar_in_a_folder_of_thousands_is_found(kind: str, make_scene: MakeScene, loot: Loot) -> None:
    scene = make_scene(name="town.tif")
    for number in range(1500):
        scene.with_name(f"{number}.txt").touch()
    plant(kind, scene, loot)
    with pytest.raises(SceneError, match=KINDS[kind]):
        describe_scene(scene)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mosaic_of_a_results_folder_is_refused_like_a_scene(kind: str, make_scene: MakeScene, loot: Loot) -> None:
    mosaic = make_scene(name="probability.tif", bands=1)
    plant(kind, mosaic, loot)
    with pytest.raises(SceneError, match=KINDS[kind]):
        MosaicReader(mosaic)
    with pytest.raises(SceneError, match=KINDS[kind]):
        read_mask(mosaic, (4, 4))
    loot.check_untouched()


def test_a_worker_that_opens_a_described_scene_reads_no_tag_that_came_later(make_scene: MakeScene, loot: Loot) -> None:
    scene = make_scene(name="town.tif")
    described = describe_scene(scene)
    plant("tag", scene, loot)
    with pytest.raises(SceneError, match="OVERVIEW_FILE"):
        reopen_file(described.files[0])


@pytest.mark.parametrize("suffix", [".msk", ".MSK"])
def test_a_mask_over_http_is_checked_whatever_the_case_of_its_name(suffix: str, loot: Loot) -> None:
    scene = loot.log.parent / f"shout{suffix[1:]}.tif"
    write_plain(scene)
    shutil.copy(loot.log.parent / "evil.png", f"{scene}{suffix}")
    with pytest.raises(SceneError, match=rf"{scene.name}\{suffix}: is no TIFF.*remove it"):
        describe_scene(f"{loot.url}/{scene.name}")
    os.remove(f"{scene}{suffix}")
    write_plain(Path(f"{scene}{suffix}"), overviews=f"/vsicurl/{loot.url}/evil.tif")
    with pytest.raises(SceneError, match=rf"{scene.name}\{suffix}: its tag OVERVIEW_FILE"):
        describe_scene(f"{loot.url}/{scene.name}")
    loot.check_untouched()


def test_the_refusal_of_a_remote_scene_shows_its_address_without_the_signature(loot: Loot) -> None:
    write_plain(loot.log.parent / "signed.tif", overviews="/etc/passwd")
    with pytest.raises(SceneError, match="OVERVIEW_FILE") as refused:
        describe_scene(f"{loot.url}/signed.tif?X-Amz-Signature=hunter2")
    assert str(refused.value).startswith(f"{loot.url}/signed.tif")
    assert "hunter2" not in str(refused.value)


def test_a_server_that_answers_with_a_page_for_every_name_has_no_sidecars(loot: Loot) -> None:
    scene = loot.log.parent / "paged.tif"
    write_plain(scene)
    for suffix in (".msk", ".MSK", ".aux.xml"):
        Path(f"{scene}{suffix}").write_text("<!DOCTYPE html><title>Not here</title>")
    assert describe_scene(f"{loot.url}/paged.tif").files[0].mask == "none"


def test_sidecars_that_gdal_writes_are_accepted(make_scene: MakeScene) -> None:
    scene = make_scene(name="town.tif", height=300, width=300)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=False, TIFF_USE_OVR=True), rasterio.open(scene, "r+") as dataset:
        dataset.write_mask(np.tri(300, dtype=bool))
        dataset.build_overviews([2])
    item = '<Metadata><MDI key="STATISTICS_MEAN">127</MDI></Metadata>'
    Path(f"{scene}.aux.xml").write_text(f'<PAMDataset><PAMRasterBand band="1">{item}</PAMRasterBand></PAMDataset>')
    names = {path.name for path in scene.parent.iterdir()}
    assert {"town.tif.msk", "town.tif.ovr"} < names
    assert describe_scene(scene).files[0].mask == "dataset"


def test_broken_overviews_are_named_as_what_to_remove(make_scene: MakeScene) -> None:
    scene = make_scene(name="town.tif")
    Path(f"{scene}.ovr").write_bytes(b"II*\0" + bytes(60))
    with pytest.raises(SceneError, match=r"town\.tif\.ovr: cannot be opened as a TIFF: .*; remove it"):
        describe_scene(scene)


def test_a_sidecar_that_may_not_be_read_is_not_ignored(make_scene: MakeScene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = make_scene(name="town.tif")
    write_plain(Path(f"{scene}.msk"))
    opened = Path.open

    def denied(path: Path, *arguments: str) -> object:
        if path.suffix == ".msk":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments)

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(
        SceneError, match=r"town\.tif\.msk: cannot be read as a sidecar .*: Permission denied; remove it"
    ):
        describe_scene(scene)


def test_a_plain_raster_with_a_file_from_another_folder_is_refused(make_scene: MakeScene) -> None:
    location = resolve_location(make_scene(name="town.tif"))
    own = [location.gdal_path, f"{location.gdal_path}.msk"]
    check_folder(own, location)
    for foreign in ("/etc/passwd", f"{Path(location.gdal_path).parent}/../x.tif", "/vsicurl/http://127.0.0.1/x.tif"):
        with pytest.raises(SceneError, match="names a file outside its folder"):
            check_folder([*own, foreign], location)


# The registry


def test_a_process_starts_with_the_drivers_of_our_own_files() -> None:
    code = "import json; from pipeline.storage import allow_drivers, import_pyogrio; import rasterio._env as env; "
    code += "allow_drivers(); gdal = env.GDALEnv(); first = sorted(gdal.drivers()); allow_drivers('PNG'); "
    code += "print(json.dumps([first, sorted(gdal.drivers()), sorted(import_pyogrio().list_drivers())]))"
    assert run_python(code) == [
        ["COG", "GTiff", "MEM", "Memory"],
        ["COG", "GTiff", "MEM", "Memory", "PNG"],
        ["ESRI Shapefile", "FlatGeobuf", "GPKG", "GeoJSON", "MEM"],
    ]


def test_an_environment_variable_cannot_keep_a_driver_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GDAL_SKIP", "VRT,PNG")
    code = "import json, rasterio; from pipeline.storage import allow_drivers; import rasterio._env as env; "
    code += "rasterio.Env().__enter__(); allow_drivers('PNG'); print(json.dumps(sorted(env.GDALEnv().drivers())))"
    assert run_python(code) == ["COG", "GTiff", "MEM", "Memory", "PNG"]


def test_drivers_that_a_host_program_registers_again_are_removed_again(make_scene: MakeScene) -> None:
    scene = make_scene()
    allow_drivers()
    before = {*rasterio._env.GDALEnv().drivers()}
    set_gdal_config("GDAL_SKIP", "")
    rasterio._env._have_registered_drivers = False
    with rasterio.Env() as env:
        assert "VRT" in env.drivers()
    open_raster(scene).close()
    assert {*rasterio._env.GDALEnv().drivers()} == before


def test_a_library_whose_drivers_stay_registered_opens_nothing() -> None:
    registry = drivers._Registry("x", ["GTiff"], registered=lambda: {"GTiff", "VRT"}, register_except=lambda skip: None)
    for _ in range(2):
        with pytest.raises(SettingsError, match="GDAL drivers of x cannot be removed: VRT"):
            registry.allow()


def test_a_driver_that_refers_to_other_files_is_logged_as_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    here: set[str] = set()
    registry = drivers._Registry("x", ["GTiff"], registered=lambda: here, register_except=lambda skip: here.clear())
    registry.allow(["PNG"])
    assert caplog.messages == []
    registry.allow(["PNG", "VRT"])
    registry.allow(["VRT"])
    assert len(caplog.messages) == 1
    assert "VRT may open any file and address that a scene or its sidecar names" in caplog.text


def test_settings_know_the_drivers_of_the_build_that_are_not_registered() -> None:
    assert {"VRT", "JP2OpenJPEG", "netCDF", "HTTP"} - known_drivers() <= {"netCDF", "HTTP"}
    with pytest.raises(SettingsError, match="did you mean VRT"):
        ReadingSpec(drivers=("VTR",))


def test_vector_files_of_other_formats_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("WKT,class\nPOINT (0 0),a\n")
    pyogrio = import_pyogrio()
    with pytest.raises(pyogrio.errors.DataSourceError, match="not recognized"):
        pyogrio.read_info(tmp_path / "x.csv")
