"""Stages of a scene's work, each with a record that vouches for its files: what a rerun goes on from.

A record is written after its files and names their sizes and digests, so a file that was torn or changed is not
believed, and neither is a record that was. It bears the key of what went in: another key is another stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.storage import atomic_write, ensure_dir, sha256_file

RECORDS = "stages"
"""Folder of the records in a work folder."""


class StageRecords:
    """The stages of one scene that are done; it pickles."""

    def __init__(self, folder: Path) -> None:
        """`folder` holds the records and, at any depth, the files that they vouch for."""
        self._folder = folder

    def record(self, stage: str, key: str | None, facts: Mapping[str, object], files: Iterable[Path] = ()) -> None:
        """Vouch for a stage and its files; without a key there is nothing to know it by again.

        Raises:
            TransientError: the disk refuses.
        """
        if key is None:
            return
        digests = {str(file.relative_to(self._folder)): sha256_file(file) for file in files}
        content = {"key": key, "facts": facts, "files": digests}
        ensure_dir(self._folder / RECORDS)
        atomic_write(self._path(stage), json.dumps({"sha256": _sha256(content), **content}) + "\n")

    def find(self, stage: str, key: str | None) -> Mapping[str, object] | None:
        """The facts of a stage that is done with this key and whose files are what they were; None otherwise."""
        if key is None:
            return None
        try:
            content = json.loads(self._path(stage).read_bytes())
            whole = content.pop("sha256") == _sha256(content) and content["key"] == key
            if whole and all(sha256_file(self._folder / name) == known for name, known in content["files"].items()):
                facts: Mapping[str, object] = content["facts"]
                return facts
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return None

    def discard(self, pattern: str = "*") -> None:
        """Forget the stages whose names match; what lies in their files no longer counts."""
        for path in (self._folder / RECORDS).glob(f"{pattern}.json"):
            path.unlink(missing_ok=True)

    def digests(self) -> dict[Path, str]:
        """The digests of all files that are recorded."""
        return {self._folder / name: digest for path in self._records() for name, digest in _files_of(path).items()}

    def sweep(self) -> None:
        """Remove every file that no record names: what was under way when the work was stopped."""
        kept = {*self._records(), *self.digests()}
        for path in self._folder.rglob("*"):
            if not path.is_dir() and path not in kept:
                path.unlink(missing_ok=True)

    @property
    def any_done(self) -> bool:
        """Whether anything is recorded that would have to be done again."""
        return bool(self.digests())

    def _records(self) -> list[Path]:
        return [*(self._folder / RECORDS).glob("[!.]*.json")]

    def _path(self, stage: str) -> Path:
        return self._folder / RECORDS / f"{stage}.json"


def stage_key(*parts: object) -> str | None:
    """The key of what goes into a stage, 64 hexadecimal digits; None where a part, such as the key before, is None."""
    if any(part is None for part in parts):
        return None
    return _sha256(parts)


def _files_of(record: Path) -> dict[str, str]:
    try:
        return dict(json.loads(record.read_bytes())["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _sha256(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
