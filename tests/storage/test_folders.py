"""Folders that only this user may write: what is opened is what was looked at."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.storage import folders
from pipeline.storage.folders import open_own_folder


def test_a_link_that_replaces_a_folder_after_the_look_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, victim = tmp_path / "own", tmp_path / "victim"
    folder.mkdir()
    victim.mkdir()
    os.close(open_own_folder(folder))

    def swap(looked_at: Path) -> bool:
        looked_at.rename(tmp_path / "aside")
        looked_at.symlink_to(victim)
        return True

    monkeypatch.setattr(folders, "real_folder", swap)
    with pytest.raises(OSError, match="own"):
        open_own_folder(folder)
