"""A result that a run has reported survives a power cut, and only one run holds a scene's folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from support.disk_steps import record_disk_steps

from pipeline.errors import TransientError
from pipeline.results import open_results


def publish(out: Path, text: str) -> None:
    with open_results(out).scenes.publishing("town") as work:
        for name in ("mask.tif", "report.json"):
            (work / name).write_text(text)


@pytest.mark.parametrize("existing", [False, True])
def test_a_result_and_its_name_are_on_the_disk_when_it_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    out = tmp_path / "out"
    if existing:
        publish(out, "old")
    steps = record_disk_steps(monkeypatch)
    publish(out, "new")
    assert steps.survives_a_power_cut(out / "town", [*(out / "town").iterdir()])


def test_a_folder_that_another_run_replaced_before_it_was_locked_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock on a deleted folder excludes nobody: the run that got it locks the folder that is there now."""
    out, lock, replaced = tmp_path / "out", fcntl.flock, list[Path]()

    def replace_first(handle: int, operation: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        if not replaced and path.parent == out and path.is_dir():
            replaced.append(path)
            path.rename(tmp_path / "taken away")
            path.mkdir()
        lock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", replace_first)
    with open_results(out).scenes.publishing("town") as work:
        (work / "report.json").write_text("first")
        with pytest.raises(TransientError, match="another run is writing this folder"):
            publish(out, "second")
    assert replaced
    assert (out / "town" / "report.json").read_text() == "first"
