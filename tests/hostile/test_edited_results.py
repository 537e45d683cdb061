"""Results that were edited after they were written: named when a run skips or merges them, made again on request."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from conftest import Call, MakeScene

from pipeline.merge import MergeSpec, merge_scenes
from pipeline.results import OUTPUTS
from pipeline.results import report as report_module

FAST = [
    *("--set", "tiling.tile_size=32", "--set", "reading.threads=1", "--set", "run.retries=0"),
    *("--set", "inference.device=cpu", "--set", "inference.precision=float32"),
]
Segment = Callable[..., tuple[int, dict[str, object], str]]


@pytest.fixture
def segment(tmp_path: Path, call: Call, make_scene: MakeScene, model: str) -> Segment:
    """Run the command over a scene that has a result already; exit code, its row in `run.json`, and stderr."""
    scene, out = make_scene(name="a.tif"), tmp_path / "out"

    def run(*settings: str) -> tuple[int, dict[str, object], str]:
        code, _, stderr = call("segment", scene, "--model", model, "--out", out, *FAST, *settings)
        (row,) = json.loads((out / "run.json").read_text())["scenes"]
        return code, row, " ".join(stderr.split())

    assert run()[1]["status"] == "done"
    return run


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in OUTPUTS.values()}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def flip(path: Path) -> None:
    """Change the last byte, and the time of the file as any editor does."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    _newer(path)


def flip_unseen(path: Path) -> None:
    """Change the last byte, and set the time of the file back."""
    before = path.stat()
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _newer(path: Path) -> None:
    after = path.with_name("report.json").stat().st_mtime_ns + 1_000_000_000
    os.utime(path, ns=(after, after))


@pytest.mark.parametrize("name", OUTPUTS.values())
@pytest.mark.parametrize("edit", [truncate, append, flip, flip_unseen])
def test_an_edited_file_is_named_and_the_result_stays(
    segment: Segment, tmp_path: Path, name: str, edit: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    edit(tmp_path / "out" / "a" / name)
    edited = files(tmp_path / "out" / "a")
    code, row, stderr = segment()
    assert (code, row["status"]) == (0, "skipped")
    assert str(row["reason"]).startswith(f"changed after it was written: {name} (")
    assert f"changed after it was written: {name}" in stderr
    assert f"changed after it was written: {name}" in caplog.text
    assert files(tmp_path / "out" / "a") == edited


@pytest.mark.parametrize("name", OUTPUTS.values())
def test_a_run_that_repairs_makes_the_same_bytes_again(segment: Segment, tmp_path: Path, name: str) -> None:
    before = files(tmp_path / "out" / "a")
    truncate(tmp_path / "out" / "a" / name)
    code, row, _ = segment("--set", "run.repair=true")
    assert (code, row["status"], row["reason"]) == (0, "done", None)
    assert files(tmp_path / "out" / "a") == before
    reused = json.loads((tmp_path / "out" / "a" / "report.json").read_text())["reused"]
    assert ("mosaic" in reused) == (name != "probability.tif")
    assert segment("--set", "run.repair=true")[1]["status"] == "skipped"


def test_deleted_polygons_are_noticed_though_the_file_keeps_its_size(segment: Segment, tmp_path: Path) -> None:
    path = tmp_path / "out" / "a" / "polygons.gpkg"
    size = path.stat().st_size
    with closing(sqlite3.connect(path)) as database, database:
        for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            database.execute(f'DROP TRIGGER "{name}"')
        database.execute("UPDATE polygons SET class = 'deleted'")
    assert path.stat().st_size == size
    assert "polygons.gpkg (its content differs)" in str(segment()[1]["reason"])


def test_a_missing_file_is_made_again_without_any_setting(segment: Segment, tmp_path: Path) -> None:
    before = files(tmp_path / "out" / "a")
    (tmp_path / "out" / "a" / "preview.png").unlink()
    assert segment()[1]["status"] == "done"
    assert files(tmp_path / "out" / "a") == before


def test_a_copy_with_new_times_is_unchanged(segment: Segment, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "a"
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(folder)
    (tmp_path / "copy").rename(folder)
    for name in OUTPUTS.values():
        _newer(folder / name)
    assert (segment()[1]["status"], segment()[1]["reason"]) == ("skipped", None)


def test_large_files_are_hashed_only_if_they_are_newer_than_the_report(
    segment: Segment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_module, "HASHED_BYTES", 0)
    hashed: list[str] = []
    sha256 = report_module.sha256_file

    def count(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr(report_module, "sha256_file", count)
    assert (segment()[1]["reason"], hashed) == (None, [])
    flip(tmp_path / "out" / "a" / "probability.tif")
    assert "probability.tif" in str(segment()[1]["reason"])
    assert hashed == ["probability.tif"]


def test_an_older_report_without_sizes_and_digests_stays_valid(segment: Segment, tmp_path: Path) -> None:
    path = tmp_path / "out" / "a" / "report.json"
    record = json.loads(path.read_text())
    del record["sizes"], record["digests"]
    path.write_text(json.dumps(record | {"a_key_of_a_later_version": 1}))
    truncate(tmp_path / "out" / "a" / "preview.png")
    _, row, _ = segment()
    assert (row["status"], row["reason"]) == ("skipped", None)


def test_the_catalog_names_edited_files(segment: Segment, tmp_path: Path, call: Call, model: str) -> None:
    truncate(tmp_path / "out" / "a" / "mask.tif")
    command = ["catalog", tmp_path / "a.tif", "--model", model, "--out", tmp_path / "out", *FAST]
    _, stdout, _ = call(*command)
    assert "done    a" in stdout
    assert "changed after it was written: mask.tif (100 bytes" in stdout
    _, stdout, _ = call(*command, "--set", "run.repair=true")
    assert "runs    a" in stdout


def test_a_merge_says_that_a_result_was_edited_and_merges_what_is_there(
    segment: Segment, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    first = merge_scenes(out, MergeSpec())
    assert first is not None
    assert (first.changed, first.edited) == (True, [])
    with closing(sqlite3.connect(out / "a" / "polygons.gpkg")) as database, database:
        database.execute("UPDATE gpkg_contents SET description = 'by hand'")
    merged = merge_scenes(out, MergeSpec())
    assert merged is not None
    assert (merged.changed, merged.edited) == (True, ["a"])
    assert "changed after it was written: polygons.gpkg" in caplog.text
    assert json.loads((out / "merge.json").read_text())["edited"] == ["a"]
    again = merge_scenes(out, MergeSpec())
    assert again is not None
    assert not again.changed


# Names of scenes that a run cannot have


def test_scenes_named_like_the_documents_of_a_run_get_folders_of_their_own(
    tmp_path: Path, call: Call, make_scene: MakeScene, model: str
) -> None:
    names = ("run.json", "collection.json", "quarantine.json", "merge.json", "é" * 110)
    scenes = [make_scene(name=f"in/{name}.tif") for name in names]
    out = tmp_path / "out"
    code, _, _ = call("segment", *scenes, "--model", model, "--out", out, *FAST)
    rows = {row["scene"]: row["status"] for row in json.loads((out / "run.json").read_text())["scenes"]}
    ids = {"run_json", "collection_json", "quarantine_json", "merge_json", "é" * 100}
    assert (code, rows) == (0, dict.fromkeys(ids, "done"))
    assert {path.name for path in out.iterdir()} == {*ids, "run.json", "collection.json"}
