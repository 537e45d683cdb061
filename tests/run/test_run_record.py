"""`run.json` tells of every scene of a run, while it goes on and after it, whoever else writes there."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.catalog.entry import CatalogEntry
from pipeline.config import RunSpec
from pipeline.errors import SceneError, TransientError
from pipeline.results.report import SceneReport, SceneStatistics
from pipeline.results.results import open_results
from pipeline.run.ledger import RunLedger
from pipeline.run.quarantine import QUARANTINE, Quarantine
from pipeline.run.record import RunRecord

DONE = SceneReport(
    scene="town", location="/data/town.tif", status="done", statistics=SceneStatistics(area_m2={"roof": 12.5})
)
FAILED = SceneReport(scene="broken", location="/data/broken.tif", status="failed", reason="truncated")
WAITING = SceneReport(scene="late", location="/data/late.tif", status="not run", reason="its turn had not come")


def record_in(out: Path, clock: Callable[[], float] = lambda: 0.0) -> RunRecord:
    return RunRecord(open_results(out).documents, clock=clock)


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text())
    return found


def scenes(out: Path) -> dict[str, str]:
    return {row["scene"]: row["status"] for row in read(out)["scenes"]}


def test_a_run_lists_every_scene_and_counts_them(tmp_path: Path) -> None:
    record_in(tmp_path / "deep" / "out").write([DONE, FAILED, WAITING], ended=True)
    run = read(tmp_path / "deep" / "out")
    assert run["counts"] == {"done": 1, "skipped": 0, "failed": 1, "quarantined": 0, "not run": 1}
    assert [row["scene"] for row in run["scenes"]] == ["town", "broken", "late"]
    assert [row["reason"] for row in run["scenes"]] == [None, "truncated", "its turn had not come"]
    assert run["scenes"][0]["area_m2"] == {"roof": 12.5}


def test_it_records_whether_the_run_has_ended(tmp_path: Path) -> None:
    record = record_in(tmp_path)
    record.write([WAITING], ended=False)
    assert [run["state"] for run in read(tmp_path)["runs"]] == ["running"]
    record.write([WAITING], ended=True)
    assert [run["state"] for run in read(tmp_path)["runs"]] == ["ended"]


def test_a_new_run_replaces_the_list_of_the_previous(tmp_path: Path) -> None:
    record_in(tmp_path).write([DONE, FAILED], ended=True)
    record_in(tmp_path).write([FAILED], ended=True)
    assert scenes(tmp_path) == {"broken": "failed"}
    assert len(read(tmp_path)["runs"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"scenes": [{"scene": "a"}]}', '{"runs": 3}', "\x00"])
def test_a_list_of_another_version_is_replaced(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    record_in(tmp_path).write([DONE], ended=True)
    assert scenes(tmp_path) == {"town": "done"}


def test_two_runs_at_once_lose_no_scene_of_either(tmp_path: Path) -> None:
    """The first begins, the second begins and ends, the first ends; then a third knows of neither."""
    first, second = record_in(tmp_path), record_in(tmp_path)
    first.write([DONE, WAITING], ended=False)
    second.write([replace(DONE, scene="two", status="not run", reason="later")], ended=False)
    first.write([DONE, WAITING], ended=False)
    assert scenes(tmp_path) == {"town": "done", "late": "not run", "two": "not run"}
    second.write([replace(DONE, scene="two")], ended=True)
    assert scenes(tmp_path) == {"town": "done", "late": "not run", "two": "done"}
    first.write([DONE, replace(DONE, scene="late")], ended=True)
    assert scenes(tmp_path) == {"town": "done", "late": "done", "two": "done"}
    assert read(tmp_path)["counts"]["done"] == 3
    assert [run["state"] for run in read(tmp_path)["runs"]] == ["ended", "ended"]
    record_in(tmp_path).write([FAILED], ended=True)
    assert scenes(tmp_path) == {"broken": "failed"}


def test_of_a_scene_in_two_runs_the_one_with_a_result_counts(tmp_path: Path) -> None:
    first, second = record_in(tmp_path), record_in(tmp_path)
    refused = replace(DONE, status="failed", reason="another run is writing this folder")
    first.write([WAITING], ended=False)
    second.write([refused], ended=False)
    first.write([DONE], ended=True)
    second.write([refused], ended=True)
    assert scenes(tmp_path) == {"town": "done"}


def test_a_run_writes_now_and_then_and_spends_little_on_it(tmp_path: Path) -> None:
    during_the_write, after_it = [10.0, 10.2, 10.2], [20.0]
    record = record_in(tmp_path, lambda: during_the_write.pop(0) if during_the_write else after_it[0])
    record.write([WAITING], ended=False)  # takes 0.2 s: the next is due 10 s later
    during_the_write.clear()
    assert not record.is_due
    after_it[0] = 20.5
    assert record.is_due


def test_the_first_record_is_due_at_once(tmp_path: Path) -> None:
    assert record_in(tmp_path).is_due


def test_a_record_that_cannot_be_written_is_a_transient_error(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(TransientError, match="out: cannot be made"):
        record_in(tmp_path / "out").write([DONE], ended=True)


def entry_in(folder: Path, name: str) -> CatalogEntry:
    (folder / f"{name}.tif").write_bytes(b"scene")
    return CatalogEntry(id=name, location=str(folder / f"{name}.tif"))


def test_after_a_kill_it_lists_finished_running_and_pending_scenes(tmp_path: Path) -> None:
    """What a ledger has written when nobody comes to end it."""
    entries = [entry_in(tmp_path, name) for name in ("a", "b", "c")]
    quarantine = Quarantine(tmp_path, inputs="", drivers=())
    seconds = [0.0]
    ledger = RunLedger(entries, tmp_path, spec=RunSpec(), quarantine=quarantine, clock=lambda: seconds[0])
    ledger.skip(entries[0])
    ledger.record(entries[0], replace(DONE, scene="a"))
    seconds[0] = 60
    ledger.skip(entries[1])
    run = read(tmp_path)
    assert scenes(tmp_path) == {"a": "done", "b": "not run", "c": "not run"}
    assert [str(row["reason"]).split(" when")[0] for row in run["scenes"]] == [
        "None",
        "it was in work",
        "its turn had not come",
    ]
    assert run["runs"][0]["state"] == "running"


def test_many_writers_of_quarantine_lose_no_entry(tmp_path: Path) -> None:
    entries = [entry_in(tmp_path, f"s{number}") for number in range(24)]

    def add(entry: CatalogEntry) -> None:
        Quarantine(tmp_path, inputs="", drivers=()).add(entry, SceneError("no CRS"))

    with ThreadPoolExecutor(8) as pool:
        [*pool.map(add, entries)]
    listed = json.loads((tmp_path / QUARANTINE).read_text())["scenes"]
    assert {scene["scene"] for scene in listed} == {entry.id for entry in entries}
