"""What a power cut would keep: the order in which files reach the disk and names appear, as tests record it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class DiskSteps:
    """The flushes and renames of this process, in order."""

    steps: list[tuple[str, object]] = field(default_factory=list)
    """`("flush", inode)` and `("rename", path)`, the target's."""

    def flushed_before(self, path: Path, place: int) -> bool:
        """Whether a file or folder was flushed before a step."""
        return ("flush", path.stat().st_ino) in self.steps[:place]

    def flushed_after(self, path: Path, place: int) -> bool:
        """The same after it."""
        return ("flush", path.stat().st_ino) in self.steps[place + 1 :]

    def appearance(self, path: Path) -> int:
        """The step that gave a file or folder its name, for the last time."""
        return max(k for k, step in enumerate(self.steps) if step == ("rename", path))

    def survives_a_power_cut(self, path: Path, inside: Sequence[Path] = ()) -> bool:
        """Whether a path has its content on the disk before its name, and its name as soon as the call returns."""
        place = self.appearance(path)
        content = all(self.flushed_before(each, place) for each in (path, *inside))
        return content and self.flushed_after(path.parent, place)


def record_disk_steps(monkeypatch: pytest.MonkeyPatch) -> DiskSteps:
    """Record every `os.fsync`, `os.rename` and `os.replace` from now on."""
    found = DiskSteps()
    flush, rename, replace = os.fsync, os.rename, os.replace

    def flushed(handle: int) -> None:
        flush(handle)
        found.steps.append(("flush", os.fstat(handle).st_ino))

    def renamed(call: Any) -> Any:
        def run(source: Any, target: Any, **how: Any) -> None:
            call(source, target, **how)
            found.steps.append(("rename", Path(target)))

        return run

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(os, "rename", renamed(rename))
    monkeypatch.setattr(os, "replace", renamed(replace))
    return found
