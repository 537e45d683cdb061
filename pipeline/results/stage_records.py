"""Checkpoints of a scene's completed stages, from which a rerun resumes.

A record is written after its files and holds their digests and its own, so a truncated or changed file or record is
rejected. It holds the key of the stage's inputs: another key is another stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.storage import atomic_write, ensure_dir, sha256_file, sha256_of_json

RECORDS = "stages"
"""Folder of the records in a work folder."""


class StageRecords:
    """Records of one scene's completed stages; picklable."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds the records and, at any depth, the files that they verify."""
        self._folder = folder

    def record(self, stage: str, key: str | None, facts: Mapping[str, object], files: Iterable[Path] = ()) -> None:
        """Record a completed stage and its files; nothing without a key.

        Raises:
            TransientError: the disk fails.
        """
        if key is None:
            return
        digests = {str(file.relative_to(self._folder)): sha256_file(file) for file in files}
        content = {"key": key, "facts": facts, "files": digests}
        ensure_dir(self._folder / RECORDS)
        atomic_write(self._path(stage), json.dumps({"sha256": sha256_of_json(content), **content}) + "\n")

    def find(self, stage: str, key: str | None) -> Mapping[str, object] | None:
        """The facts of a stage that was completed with this key and whose files are unchanged; None otherwise."""
        if key is None:
            return None
        try:
            content = json.loads(self._path(stage).read_bytes())
            whole = content.pop("sha256") == sha256_of_json(content) and content["key"] == key
            if whole and all(sha256_file(self._folder / name) == known for name, known in content["files"].items()):
                facts: Mapping[str, object] = content["facts"]
                return facts
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return None

    def discard(self, pattern: str = "*") -> None:
        """Delete the records of stages whose names match; their files are no longer verified."""
        for path in (self._folder / RECORDS).glob(f"{pattern}.json"):
            path.unlink(missing_ok=True)

    def digests(self) -> dict[Path, str]:
        """The digests of all recorded files."""
        return {self._folder / name: digest for path in self._records() for name, digest in _files_of(path).items()}

    def remove_unrecorded(self) -> None:
        """Remove every file that no record names: those an interrupted run was still writing."""
        kept = {*self._records(), *self.digests()}
        for path in self._folder.rglob("*"):
            if not path.is_dir() and path not in kept:
                path.unlink(missing_ok=True)

    def _records(self) -> list[Path]:
        return [*(self._folder / RECORDS).glob("[!.]*.json")]

    def _path(self, stage: str) -> Path:
        return self._folder / RECORDS / f"{stage}.json"


def stage_key(*parts: object) -> str | None:
    """Hash of a stage's inputs, 64 hexadecimal digits; None if a part, such as the previous stage's key, is None."""
    if any(part is None for part in parts):
        return None
    return sha256_of_json(parts)


def _files_of(record: Path) -> dict[str, str]:
    try:
        return dict(json.loads(record.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
