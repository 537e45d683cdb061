"""Whatever happens in a run, and in which order, every scene ends in exactly one way, and `run.json` tells it."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models import write_checkpoint

from pipeline.catalog.entry import CatalogEntry
from pipeline.config import RunSpec, SegmentSpec
from pipeline.errors import ModelError, SceneError, TransientError
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.results.report import SceneReport, exit_code
from pipeline.run.ledger import RunLedger, open_ledger
from pipeline.run.quarantine import Quarantine

OUTCOMES = ("done", "skipped", "scene", "model", "world", "bug")


def entries_in(folder: Path, count: int) -> list[CatalogEntry]:
    """Scenes with a file each, so that quarantine knows them."""
    for number in range(count):
        (folder / f"s{number}.tif").write_bytes(b"scene")
    return [CatalogEntry(id=f"s{number}", location=str(folder / f"s{number}.tif")) for number in range(count)]


def outcome_of(entry: CatalogEntry, kind: str) -> SceneReport | Exception:
    faults = {"scene": SceneError("s"), "model": ModelError("m"), "world": TransientError("w"), "bug": ValueError("v")}
    if kind in faults:
        return faults[kind]
    return SceneReport(scene=entry.id, location=entry.location, status="skipped" if kind == "skipped" else "done")


def ledger_of(entries: list[CatalogEntry], out: Path, **spec: int) -> RunLedger:
    return RunLedger(entries, out, spec=RunSpec(**spec), quarantine=Quarantine(out, inputs="", drivers=()))  # type: ignore[arg-type]


@given(kinds=st.lists(st.sampled_from(OUTCOMES), max_size=12), data=st.data())
def test_every_scene_ends_in_exactly_one_way_whatever_fails_in_whatever_order(
    kinds: list[str], data: st.DataObject
) -> None:
    limit, at_once = data.draw(st.integers(0, 4)), data.draw(st.integers(1, 3))
    stop_after = data.draw(st.integers(0, len(kinds)))
    with tempfile.TemporaryDirectory() as folder:
        entries, out = entries_in(Path(folder), len(kinds)), Path(folder) / "out"
        for _ in range(2):  # the second run meets the quarantine of the first
            ledger = ledger_of(entries, out, max_failures=limit)
            in_work: list[CatalogEntry] = []
            for entry in entries[:stop_after]:
                if len(in_work) == at_once:
                    ended = in_work.pop(data.draw(st.integers(0, at_once - 1)))
                    ledger.record(ended, outcome_of(ended, kinds[entries.index(ended)]))
                if ledger.skip(entry) is None:
                    in_work.append(entry)
            counts = Counter(report.status for report in ledger.reports)
            assert [report.scene for report in ledger.reports] == [entry.id for entry in entries]
            assert counts["not run"] >= len(entries) - stop_after
            for entry in in_work:
                ledger.record(entry, outcome_of(entry, kinds[entries.index(entry)]))
            counts = Counter(report.status for report in ledger.reports)
            assert counts.keys() <= {"done", "skipped", "failed", "quarantined", "not run"}
            assert counts.total() == len(entries)
            assert not limit or counts["failed"] < limit + at_once
            assert all((report.reason is None) == (report.status in ("done", "skipped")) for report in ledger.reports)


def test_after_max_failures_no_scene_is_started_and_those_running_are_recorded(tmp_path: Path) -> None:
    one, two, three, four = entries = entries_in(tmp_path, 4)
    ledger = ledger_of(entries, tmp_path / "out", max_failures=1)
    assert ledger.skip(one) is None
    assert ledger.skip(two) is None
    ledger.record(one, TransientError("away"))
    ledger.record(two, outcome_of(two, "done"))
    for entry in (three, four):
        skipped = ledger.skip(entry)
        assert skipped is not None
        assert skipped.reason == "the run was stopped after 1 failures (run.max_failures)"
    assert [report.status for report in ledger.reports] == ["failed", "done", "not run", "not run"]


def test_quarantine_is_passed_over_with_its_reason_and_counts_as_no_failure(tmp_path: Path) -> None:
    entries, out = entries_in(tmp_path, 2), tmp_path / "out"
    ledger_of(entries, out).record(entries[0], SceneError("no CRS"))
    ledger = ledger_of(entries, out, max_failures=1)
    held = ledger.skip(entries[0])
    assert held is not None
    assert held.status == "quarantined"
    assert str(held.reason).endswith(": no CRS")
    assert ledger.skip(entries[1]) is None
    assert ledger_of(entries, out, retry_quarantined=True).skip(entries[0]) is None


@pytest.mark.parametrize("kind", ["scene", "model"])
def test_a_scene_that_is_damaged_or_does_not_fit_the_model_is_quarantined(tmp_path: Path, kind: str) -> None:
    (entry,) = entries_in(tmp_path, 1)
    ledger_of([entry], tmp_path / "out").record(entry, outcome_of(entry, kind))
    held = ledger_of([entry], tmp_path / "out").skip(entry)
    assert held is not None
    assert held.status == "quarantined"


def test_a_row_that_was_refused_is_not_quarantined(tmp_path: Path) -> None:
    """Its table is read anew by every run, and so is the row."""
    entry = CatalogEntry(id="list.csv, line 3", location="b.tif", refused="no path")
    ledger = ledger_of([entry], tmp_path / "out")
    assert ledger.record(entry, SceneError("no path")).status == "failed"
    assert not (tmp_path / "out" / "quarantine.json").exists()
    assert ledger_of([entry], tmp_path / "out").skip(entry) is None


@pytest.mark.parametrize("kind", ["world", "bug"])
def test_errors_other_than_data_errors_never_lead_to_quarantine(tmp_path: Path, kind: str) -> None:
    (entry,) = entries_in(tmp_path, 1)
    ledger_of([entry], tmp_path / "out").record(entry, outcome_of(entry, kind))
    assert ledger_of([entry], tmp_path / "out").skip(entry) is None


def test_a_scene_fails_as_ever_when_the_disk_refuses_the_quarantine(tmp_path: Path) -> None:
    (entry,) = entries_in(tmp_path, 1)
    ledger = ledger_of([entry], tmp_path / "out")
    (tmp_path / "out").write_text("a file where a folder is due")
    assert ledger.record(entry, SceneError("no CRS")).reason == "no CRS"


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> LoadedPredictor:
    return load_predictor(write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors"), "cpu")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_stopped_run_leaves_a_complete_record(
    tmp_path: Path, predictor: LoadedPredictor, stop: type[BaseException]
) -> None:
    entries = entries_in(tmp_path, 3)

    def run() -> None:
        with open_ledger(entries, tmp_path, predictor=predictor, spec=SegmentSpec()) as ledger:
            ledger.skip(entries[0])
            ledger.record(entries[0], outcome_of(entries[0], "done"))
            ledger.skip(entries[1])
            raise stop

    with pytest.raises(stop):
        run()
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["counts"] == {"done": 1, "skipped": 0, "failed": 0, "quarantined": 0, "not run": 2}
    assert "while it was in work" in run["scenes"][1]["reason"]
    assert "before its turn" in run["scenes"][2]["reason"]


def test_a_run_that_is_stopped_before_any_scene_leaves_the_previous_record(
    tmp_path: Path, predictor: LoadedPredictor
) -> None:
    with open_ledger(entries_in(tmp_path, 1), tmp_path / "out", predictor=predictor, spec=SegmentSpec()):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("statuses", "code"),
    [
        ([], 0),
        (["done", "skipped"], 0),
        (["done", "failed", "quarantined"], 1),
        (["done", "not run"], 1),
        (["skipped", "quarantined"], 3),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_exit_code_follows_from_the_outcomes_of_the_scenes(statuses: list[str], code: int) -> None:
    reports = [SceneReport(scene="s", location="l", status=status) for status in statuses]  # type: ignore[arg-type]
    assert exit_code(reports) == code
