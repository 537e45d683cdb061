"""Checkpoints of a scene's completed stages, from which a rerun resumes.

A record is written after its files and holds their digests and its own, so a truncated or changed file or record is
rejected. It holds the key of the stage's inputs: another key is another stage.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.storage import atomic_write, ensure_dir, is_file, read_file, sha256_file, sha256_of_json

RECORDS = "stages"
"""Folder of the records in a work folder."""
MAX_RECORD_BYTES = 64 * 2**20
"""A longer record is invalid; the plan of a scene takes about 30 bytes for each region."""


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
            content = _read(self._path(stage))
            if content is None or content["key"] != key:
                return None
            files = {self._folder / name: known for name, known in content["files"].items()}
            whole = all(is_file(file) and sha256_file(file) == known for file, known in files.items())
        except OSError:
            return None
        facts: Mapping[str, object] = content["facts"]
        return facts if whole else None

    def discard(self, pattern: str = "*") -> None:
        """Delete the records of stages whose names match; their files are no longer verified."""
        for path in (self._folder / RECORDS).glob(f"{pattern}.json"):
            path.unlink(missing_ok=True)

    def digests(self) -> dict[Path, str]:
        """The digests of all recorded files; raises OSError if a record cannot be read now."""
        contents = filter(None, map(_read, self._records()))
        return {self._folder / name: digest for content in contents for name, digest in content["files"].items()}

    def remove_unrecorded(self) -> None:
        """Remove every file that no record names: those an interrupted run was still writing. No link is followed.

        Raises:
            OSError: a record cannot be read now, e.g. for lack of file handles; then nothing is removed.
        """
        kept = {*self._records(), *self.digests()}
        for folder, folders, names in os.walk(self._folder):
            links = [path for path in (Path(folder, name) for name in folders) if path.is_symlink()]
            files = [path for path in (Path(folder, name) for name in names) if path not in kept or path.is_symlink()]
            for path in (*links, *files):
                path.unlink(missing_ok=True)

    def _records(self) -> list[Path]:
        return [path for path in (self._folder / RECORDS).glob("[!.]*.json") if is_file(path)]

    def _path(self, stage: str) -> Path:
        return self._folder / RECORDS / f"{stage}.json"


def stage_key(*parts: object) -> str | None:
    """Hash of a stage's inputs, 64 hexadecimal digits; None if a part, such as the previous stage's key, is None."""
    if any(part is None for part in parts):
        return None
    return sha256_of_json(parts)


def _read(record: Path) -> dict[str, Any] | None:
    """The content of a record with its own digest, whose files are in the work folder; None if it is invalid.

    Raises:
        OSError: it exists and cannot be read now.
    """
    try:
        text = read_file(record, max_bytes=MAX_RECORD_BYTES)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EFBIG, errno.ELOOP, errno.EISDIR):
            return None
        raise
    try:
        content = json.loads(text)
        whole = content.pop("sha256") == sha256_of_json(content)
        typed = isinstance(content["key"], str) and isinstance(content["facts"], dict)
        return (
            content if whole and typed and all(map(_is_inside, content["files"], content["files"].values())) else None
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _is_inside(name: str, digest: object) -> bool:
    """Whether a name is a path below the work folder, and a digest is text.

    >>> _is_inside("result/mask.tif", "ab12"), _is_inside("../../secret", "ab12"), _is_inside("/etc/passwd", "ab12")
    (True, False, False)
    """
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and isinstance(digest, str)
