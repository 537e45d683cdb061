"""Results are published atomically, whatever kills the process, and found by their content key."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MakeScene

from pipeline.config import SegmentSpec, load_settings
from pipeline.errors import TransientError
from pipeline.results import publish as publish_module
from pipeline.results.publish import content_key, finished_report, publishing, recover_report
from pipeline.results.report import SceneReport
from pipeline.scene.describe import Scene, describe_scene
from pipeline.scene.spec import ReadingSpec


def publish(folder: Path, **files: str) -> None:
    with publishing(folder) as work:
        for name, text in files.items():
            (work / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


# Atomic


def test_a_folder_appears_with_everything_in_it(tmp_path: Path) -> None:
    with publishing(tmp_path / "out" / "scene") as work:
        (work / "a").write_text("1")
        assert not (tmp_path / "out" / "scene").exists()
    assert contents(tmp_path / "out" / "scene") == {"a": "1"}
    assert os.listdir(tmp_path / "out") == ["scene"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_no_file_and_keeps_the_previous_result(tmp_path: Path, error: type[BaseException]) -> None:
    publish(tmp_path / "scene", a="old")

    def fail() -> None:
        with publishing(tmp_path / "scene") as work:
            (work / "a").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert contents(tmp_path / "scene") == {"a": "old"}
    assert os.listdir(tmp_path) == ["scene"]


def test_a_new_result_replaces_the_previous_one_and_keeps_foreign_files(tmp_path: Path) -> None:
    publish(tmp_path / "scene", a="old")
    (tmp_path / "scene" / "notes.txt").write_text("mine")
    (tmp_path / "scene" / "project").mkdir()
    publish(tmp_path / "scene", a="new", b="new")
    assert contents(tmp_path / "scene" / "project") == {}
    (tmp_path / "scene" / "project").rmdir()
    assert contents(tmp_path / "scene") == {"a": "new", "b": "new", "notes.txt": "mine"}


def test_files_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    work = tmp_path / ".scene.partial"
    work.mkdir()
    (work / "half").write_text("half")
    publish(tmp_path / "scene", a="new")
    assert contents(tmp_path / "scene") == {"a": "new"}
    assert os.listdir(tmp_path) == ["scene"]


def test_two_runs_never_write_one_folder(tmp_path: Path) -> None:
    with publishing(tmp_path / "scene") as work:
        (work / "a").write_text("first")
        with pytest.raises(TransientError, match=r"scene: another run is writing this folder; wait for it"):
            publish(tmp_path / "scene", a="second")
        assert finished_report(tmp_path / "scene", "k") is None
    assert contents(tmp_path / "scene") == {"a": "first"}
    publish(tmp_path / "scene", a="third")
    assert contents(tmp_path / "scene") == {"a": "third"}


def test_runs_write_different_folders_side_by_side(tmp_path: Path) -> None:
    with publishing(tmp_path / "one") as one, publishing(tmp_path / "two") as two:
        (one / "a").touch()
        (two / "a").touch()
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_disk_error_is_transient(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(TransientError, match=r"cannot be written: .*check the disk"),
        publishing(tmp_path / "file" / "x"),
    ):
        pass
    with pytest.raises(TransientError, match=r"writing failed: .*disk full"), publishing(tmp_path / "scene"):
        raise OSError(28, "disk full")
    assert os.listdir(tmp_path) == ["file"]


def test_the_previous_result_is_restored_when_the_last_rename_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "scene", a="old")
    rename = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name == "result":
            raise OSError(5, "input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(TransientError, match="input/output error"):
        publish(tmp_path / "scene", a="new")
    assert contents(tmp_path / "scene") == {"a": "old"}


KILLED_EVERYWHERE = """
import itertools, os, shutil, sys
from pathlib import Path
from pipeline.results.publish import publishing, recover_report

root = Path(sys.argv[1])
left = [0]

def kill(event, args):
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree") and left[0]:
        left[0] -= 1
        if not left[0]:
            os._exit(9)

sys.addaudithook(kill)

def publish(folder, text):
    with publishing(folder) as work:
        (work / "a").write_text(text)
        (work / "b").write_text(text)

for steps in itertools.count(1):
    folder = root / str(steps) / "scene"
    publish(folder, "old")
    (folder / "mine").write_text("mine")
    child = os.fork()
    if not child:
        left[0] = steps
        publish(folder, "new")
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    recover_report(folder, "any key")
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found in ({"a": text, "b": text, "mine": "mine"} for text in ("old", "new")), (steps, found)
    publish(folder, "newer")
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == {"a": "newer", "b": "newer", "mine": "mine"}, (steps, found)
    assert os.listdir(folder.parent) == ["scene"], steps
    if code == 0:
        break
print(steps)
"""


def test_a_kill_between_any_two_steps_leaves_one_whole_result_and_all_foreign_files(tmp_path: Path) -> None:
    """A child is killed before its first, second, third ... change to the disk, until it comes through."""
    command = [sys.executable, "-W", "ignore", "-c", KILLED_EVERYWHERE, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 6


# Found by content key


def write_report(folder: Path, **facts: object) -> None:
    (folder / "mask.tif").touch()
    report = {"content_key": "k", "outputs": {"mask": "mask.tif"}} | facts
    report = {"scene": folder.name, "location": "scene.tif", "status": "done"} | report
    (folder / "report.json").write_text(json.dumps(report))


def test_a_finished_scene_is_found_by_its_key(tmp_path: Path) -> None:
    write_report(tmp_path)
    found = finished_report(tmp_path, "k")
    assert found is not None
    assert (found.inputs.content_key, found.outputs.names, found.reason) == ("k", {"mask": "mask.tif"}, None)
    assert finished_report(tmp_path, "other") is None
    assert finished_report(tmp_path, None) is None
    assert finished_report(tmp_path / "absent", "k") is None


def test_a_result_that_lost_an_output_is_not_finished(tmp_path: Path) -> None:
    write_report(tmp_path, outputs={"mask": "mask.tif", "polygons": "polygons.gpkg"})
    assert finished_report(tmp_path, "k") is None


def test_looking_for_a_result_repairs_nothing_and_a_run_does(tmp_path: Path) -> None:
    """Killed between the two renames of a swap: only the previous folder is there."""
    folder, previous = tmp_path / "scene", tmp_path / ".scene.former"
    folder.mkdir()
    write_report(folder)
    folder.rename(previous)
    found = finished_report(folder, "k")
    assert isinstance(found, SceneReport)
    assert os.listdir(tmp_path) == [".scene.former"]
    assert recover_report(folder, "k") == found
    assert os.listdir(tmp_path) == ["scene"]


@pytest.mark.parametrize("text", ["", "{", "[]", '"k"', "null", '{"content_key": "k"}', "\udcff"])
def test_an_invalid_report_verifies_no_result(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert finished_report(tmp_path, "k") is None


def key(scene: Scene, *overrides: str, model: str = "m") -> str:
    return content_key(scene, model, load_settings(SegmentSpec, None, overrides).result_settings())


def test_a_key_is_the_same_for_the_same_inputs(make_scene: MakeScene) -> None:
    path = make_scene()
    assert key(describe_scene(path)) == key(describe_scene(path))
    assert len(key(describe_scene(path))) == 64


@pytest.mark.parametrize(
    "override",
    [
        "reading.bands={red: 1}",
        "reading.nodata=3",
        "reading.ignore_nodata=true",
        "reading.ignore_alpha=true",
        "reading.ignore_scale=true",
        "reading.nodata_when=any_band",
        "reading.resolution_m=2",
        "tiling.tile_size=256",
        "tiling.overlap=8",
        "blend=crop",
        "inference.precision=float32",
        "mosaic.dtype=uint16",
        "mosaic.compress=deflate",
        "polygons.threshold=0.4",
        "polygons.min_area_m2=1",
        "polygons.fill_holes_m2=1",
        "polygons.simplify_m=1",
        "polygons.connectivity=8",
    ],
)
def test_every_setting_that_changes_the_result_changes_the_key(make_scene: MakeScene, override: str) -> None:
    scene = describe_scene(make_scene())
    assert key(scene, override) != key(scene)


@pytest.mark.parametrize(
    "override",
    ["reading.threads=3", "inference.batch_size=2", "distribute.regions=5", "distribute.scheduler=tcp://a:1"],
)
def test_how_the_work_is_distributed_does_not_change_the_key(make_scene: MakeScene, override: str) -> None:
    scene = describe_scene(make_scene())
    assert key(scene, override) == key(scene)


def test_another_model_is_another_key(make_scene: MakeScene) -> None:
    scene = describe_scene(make_scene())
    assert key(scene, model="m") != key(scene, model="n")


def test_changed_bytes_change_the_key(make_scene: MakeScene) -> None:
    path = make_scene()
    before = key(describe_scene(path))
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b" ")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    longer = key(describe_scene(path))
    path.write_bytes(path.read_bytes()[:-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert len({before, longer, key(describe_scene(path))}) == 3


def test_a_scene_keeps_its_key_wherever_it_lies_and_however_it_is_named(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_scene(name="scene.tif")
    before = key(describe_scene(path))
    monkeypatch.chdir(tmp_path)
    assert key(describe_scene("scene.tif")) == before
    (tmp_path / "moved").mkdir()
    path.rename(tmp_path / "moved" / "scene.tif")
    assert key(describe_scene("moved/scene.tif")) == before


def test_a_header_read_otherwise_is_another_scene(make_scene: MakeScene) -> None:
    path = make_scene(crs=None)
    one, two = (describe_scene(path, ReadingSpec(crs=crs)) for crs in ("EPSG:32633", "EPSG:32634"))
    assert content_key(one, "m", {}) != content_key(two, "m", {})
    assert content_key(replace(one, id="other"), "m", {}) != content_key(one, "m", {})


def test_a_work_folder_is_deleted_even_while_a_worker_adds_files_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, late = publish_module.shutil.rmtree, ["region-2.tif", "region-3.tif"]

    def remove_while_written_to(path: Path, ignore_errors: bool = False) -> None:
        remove(path, ignore_errors=ignore_errors)
        if path.name == ".town.partial" and late:
            path.mkdir()
            (path / late.pop()).touch()

    def fail() -> None:
        with publishing(tmp_path / "town"):
            monkeypatch.setattr(publish_module.shutil, "rmtree", remove_while_written_to)
            raise RuntimeError("a region failed")

    with pytest.raises(RuntimeError):
        fail()
    assert [*tmp_path.iterdir()] == []
