"""Reports in a bucket that someone else wrote: they name no other file, here or in the bucket, and no other content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Call, MakeScene
from support.object_stores import Store

from pipeline.errors import AccessError
from pipeline.results.report import OUTPUTS
from pipeline.results.results import Results, open_results
from pipeline.results.stored_scene import StoredReport
from pipeline.storage import folders

FAST = [
    *("--set", "tiling.tile_size=32", "--set", "reading.threads=1", "--set", "run.retries=0"),
    *("--set", "inference.device=cpu", "--set", "inference.precision=float32"),
]
CONTENT = b"attacker"
OBJECT = {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}


def publish(results: Results, text: str = "x") -> None:
    with results.scenes.publishing("town") as work:
        for name in OUTPUTS.values():
            (work / name).write_text(text)
        report = {"scene": "town", "location": "town.tif", "status": "done", "outputs": OUTPUTS}
        (work / "report.json").write_text(json.dumps({**report, "content_key": "k", "mosaic_key": "m"}))


def tamper(store: Store, change: Callable[[dict[str, Any]], object]) -> None:
    report = json.loads(store.get("out/town/report.json"))
    change(report)
    store.put("out/town/report.json", json.dumps(report).encode())


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "name", ["../../../victim", "/tmp/victim-of-scenemill", "sub/mask.tif", ".lock", "item.json", ""]
)
def test_a_report_that_names_other_objects_is_none(store: Store, tmp_path: Path, name: str) -> None:
    """H1 of the review: the name of an object became the name of a local file."""
    results = open_results(f"s3://{store.bucket}/out", tmp_path / "work")
    publish(results)
    store.put(f"out/town/{name}", CONTENT)
    assert results.scenes.previous_result("town", "m") is not None
    tamper(store, lambda report: report["objects"].update({name: OBJECT}))
    before = tree(tmp_path)
    assert results.scenes.previous_result("town", "m") is None
    assert results.scenes.finished("town", "k") is None
    assert tree(tmp_path) == before
    assert not Path("/tmp/victim-of-scenemill").exists()


@pytest.mark.parametrize("name", ["../other/report.json", "/x", "report.json", "notes.txt"])
def test_a_report_that_replaces_other_objects_deletes_none(store: Store, tmp_path: Path, name: str) -> None:
    results = open_results(f"s3://{store.bucket}/out", tmp_path / "work")
    publish(results)
    tamper(store, lambda report: report.update(replaced=[name]))
    content = store.get("out/town/report.json")
    assert StoredReport.read(content, "town") is None
    store.put("out/town/.partial/report.json", content)
    store.put("out/town/notes.txt", b"mine")
    results.scenes.recover("town", "k")
    assert store.get("out/town/notes.txt") == b"mine"


@pytest.mark.parametrize("change", ["content", "size"])
def test_a_download_that_differs_from_the_report_is_not_used(
    store: Store, tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    results = open_results(f"s3://{store.bucket}/out", tmp_path / "work")
    publish(results)
    store.put("out/town/mask.tif", b"y" if change == "content" else b"xx")
    assert results.scenes.previous_result("town", "m") is None
    assert "mask.tif: differs from its report and is not used" in caplog.text
    assert [name for name in tree(tmp_path) if "fetched" in name] == []


@pytest.mark.parametrize(
    "fact",
    [
        {"size": "1", "sha256": "0" * 64},
        {"size": 1, "sha256": "../x"},
        {"size": 1, "sha256": 5},
        {"size": 1},
        {"size": 1, "sha256": "0" * 64, "etag": 3},
        {"size": 1, "sha256": "0" * 64, "more": 3},
        3,
        None,
    ],
    ids=str,
)
def test_a_report_of_other_types_is_none(store: Store, tmp_path: Path, fact: object) -> None:
    results = open_results(f"s3://{store.bucket}/out", tmp_path / "work")
    publish(results)
    tamper(store, lambda report: report["objects"].update({"mask.tif": fact}))
    assert results.scenes.finished("town", "k") is None


@pytest.mark.parametrize("scene", ["../town", "other", ""])
def test_a_report_of_another_scene_is_none(store: Store, tmp_path: Path, scene: str) -> None:
    results = open_results(f"s3://{store.bucket}/out", tmp_path / "work")
    publish(results)
    tamper(store, lambda report: report.update(scene=scene))
    assert results.scenes.finished("town", "k") is None


def test_a_run_over_a_bucket_that_was_tampered_with_writes_nothing_else_on_the_worker(
    store: Store, tmp_path: Path, call: Call, make_scene: MakeScene, model: str
) -> None:
    """The review's attack, through the command: the next run with other polygon settings downloads the mosaic."""
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "keys").write_text("mine")
    scene, out = make_scene(name="town.tif"), f"s3://{store.bucket}/out"
    command = ["segment", scene, "--model", model, "--out", out, *FAST, "--set", f"run.work_dir={tmp_path / 'work'}"]
    assert call(*command)[0] == 0
    for name in (str(victim / "keys"), "../../../victim/new"):
        store.put(f"out/town/{name}", CONTENT)
        tamper(store, lambda report, name=name: report["objects"].update({name: OBJECT}))
    assert call(*command, "--set", "polygons.min_area_m2=20")[0] == 0
    assert tree(victim) == {"keys"}
    assert (victim / "keys").read_text() == "mine"
    assert {*json.loads(store.get("out/town/report.json"))["objects"]} == {*OUTPUTS.values()}


def test_the_local_work_folder_of_a_bucket_is_private(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = open_results(f"s3://{store.bucket}/out", tmp_path / "work")
    publish(results)
    (folder,) = (tmp_path / "work").iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(folders, "_owner_of_new_files", lambda _: 65534)
    with pytest.raises(AccessError, match="belongs to another user"):
        publish(results)
    folder.rename(tmp_path / "aside")
    folder.symlink_to(tmp_path / "aside")
    with pytest.raises(AccessError, match="is a symbolic link"):
        publish(results)
