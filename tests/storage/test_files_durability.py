"""A written file survives a power cut, and a lock is held by one at a time."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.disk_steps import record_disk_steps

from pipeline.storage import atomic_write, directory_lock


@pytest.mark.parametrize("existing", [False, True])
def test_a_file_and_its_name_are_on_the_disk_when_a_write_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, existing: bool
) -> None:
    path = tmp_path / "run.json"
    if existing:
        path.write_text("old")
    steps = record_disk_steps(monkeypatch)
    atomic_write(path, "new")
    assert steps.survives_a_power_cut(path)


def test_no_change_under_a_lock_is_lost(tmp_path: Path) -> None:
    """Four threads read, change and write one document in turn; without the lock they overwrite each other."""
    document = tmp_path / "count"
    document.write_text("0")

    def count_up(times: int) -> None:
        for _ in range(times):
            with directory_lock(tmp_path):
                document.write_text(str(int(document.read_text() or "0") + 1))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(count_up, [50] * 4))
    finally:
        sys.setswitchinterval(interval)
    assert document.read_text() == "200"
