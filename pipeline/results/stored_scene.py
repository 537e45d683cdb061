"""Atomic replacement of one scene's result in an object store.

An object store cannot rename, so `report.json` verifies the result. It is written last and lists size, SHA-256 and
ETag of every file; a result is complete while every file matches.

    1. stage     SCENE/.partial/...     every file is uploaded, then a report that verifies them
    2. swap      SCENE/report.json      the previous report is deleted: no reader accepts the previous result any more
                 SCENE/...              the staged files are copied into place, inside the store
    3. publish   SCENE/report.json      the new report is written
    4. clean up  SCENE/.partial/...

Any later run that finds a complete staged result performs steps 2 to 4; nothing is computed again.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.errors import TransientError
from pipeline.results.lease import Lease
from pipeline.results.report import OUTPUTS, REPORT, SceneReport, read_report
from pipeline.storage import LocalFile, StoredFile, StoreFolder, atomic_write, ensure_dir, is_file, sha256_file

log = logging.getLogger(__name__)

STAGED = ".partial"
"""Staging area in a scene's folder."""
OBJECTS, REPLACED = "objects", "replaced"
"""Keys that only a report in a store has: the files it verifies, and names of the previous result's files."""


@dataclass(frozen=True, kw_only=True)
class ExpectedFile:
    """Expected facts of one file of a result."""

    size: int
    """Bytes."""
    sha256: str
    etag: str | None = None
    """The store's identifier of this version; None while it is staged."""

    def __post_init__(self) -> None:
        if type(self.size) is not int or not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"a file has bytes and a SHA-256, not {self}")
        if not isinstance(self.etag, str | None):
            raise TypeError(f"an ETag is text, not {self.etag!r}")

    def matches(self, found: StoredFile | None) -> bool:
        """Whether the file in the store is the expected one."""
        return found is not None and found.size_bytes == self.size and self.etag in (None, found.etag)


@dataclass(frozen=True, kw_only=True)
class StoredReport:
    """A report in a store."""

    record: Mapping[str, object]
    """The keys of a local report."""
    files: Mapping[str, ExpectedFile]
    """The files it verifies, by name, all of `OUTPUTS`: whoever may write to the store chooses no other path."""
    replaced: tuple[str, ...] = ()
    """Files of the previous result, deleted when this one is in place; of `OUTPUTS` as well."""

    def __post_init__(self) -> None:
        strangers = {*self.files, *self.replaced} - {*OUTPUTS.values()}
        if strangers:
            raise ValueError(f"files are {[*OUTPUTS.values()]}, not {sorted(strangers)}")

    @classmethod
    def read(cls, content: bytes | None, scene_id: str) -> StoredReport | None:
        """The report of a scene in a document; None without a valid one."""
        if not content or read_report(content, scene_id) is None:
            return None
        try:
            record = json.loads(content)
            files = {str(name): ExpectedFile(**fact) for name, fact in record.pop(OBJECTS).items()}
            return cls(record=record, files=files, replaced=tuple(record.pop(REPLACED, ())))
        except (ValueError, TypeError, AttributeError, KeyError):
            return None

    @property
    def report(self) -> SceneReport:
        """The local report."""
        return SceneReport.from_json(self.record, ignore_unknown=True)

    @property
    def content(self) -> str:
        """The report as JSON."""
        files = {
            name: {key: value for key, value in asdict(file).items() if value is not None}
            for name, file in self.files.items()
        }
        more = {REPLACED: self.replaced} if self.replaced else {}
        return json.dumps({**self.record, OBJECTS: files, **more}, indent=2, sort_keys=True) + "\n"

    def is_complete(self, listed: Mapping[str, StoredFile], folder: str = "") -> bool:
        """Whether every file is in a folder and matches."""
        return all(file.matches(listed.get(f"{folder}{name}")) for name, file in self.files.items())


class StoredScene:
    """A scene's folder in a store; methods that take a `Lease` modify it."""

    def __init__(self, store: StoreFolder, scene_id: str) -> None:
        self._store, self._id = store, scene_id

    @property
    def report(self) -> StoredReport | None:
        """The report that verifies the result; None without one."""
        return self._report(REPORT)

    def find(self, key: str | None) -> tuple[SceneReport | None, bool]:
        """The report of the result, if it is complete and has this key, and whether any file is staged."""
        listed = self._store.list_files(self._id)
        return self.finished(key, listed), any(name.startswith(f"{STAGED}/") for name in listed)

    def finished(self, key: str | None, listed: Mapping[str, StoredFile]) -> SceneReport | None:
        """The report of the result, if it has this key and is complete by a listing of the scene's folder."""
        report = self.report
        if report is None or key is None or report.record.get("content_key") != key:
            return None
        differing = [name for name, file in report.files.items() if not file.matches(listed.get(name))]
        if differing:
            log.warning("%s: %s differ from its report", self._store.address(self._id), ", ".join(differing))
            return None
        return report.report

    def fetch(self, report: StoredReport, folder: Path) -> Path | None:
        """Download the result into a new folder, in the form of a local result; None if a file differs from the report.

        The files are downloaded next to the folder, which appears when the size and SHA-256 of each were checked.
        """
        partial = folder.with_name(f".{folder.name}.partial")
        for path in (partial, folder):
            shutil.rmtree(path, ignore_errors=True)
        ensure_dir(partial)
        for name, expected in report.files.items():
            path = partial / name
            self._store.download(f"{self._id}/{name}", path)
            if path.stat().st_size != expected.size or sha256_file(path) != expected.sha256:
                log.warning("%s: differs from its report and is not used", self._store.address(f"{self._id}/{name}"))
                shutil.rmtree(partial, ignore_errors=True)
                return None
        atomic_write(partial / REPORT, json.dumps(report.record))
        partial.rename(folder)
        return folder

    def stage(self, local: Path, lease: Lease) -> None:
        """Step 1; files that an interrupted upload already transferred are not sent again."""
        record = json.loads((local / REPORT).read_text(encoding="utf-8"))
        paths = [local / name for name in sorted(OUTPUTS.values()) if is_file(local / name)]
        # Digests in the run's report save hashing large files again.
        digests = record.get("digests", {})
        files = {path.name: LocalFile(path=path, sha256=digests.get(path.name) or sha256_file(path)) for path in paths}

        # Files first, the report last: a staged report proves that the staged set is complete.
        self._upload_staged(files)
        previous = self.report
        expected = {
            name: ExpectedFile(size=file.path.stat().st_size, sha256=file.sha256) for name, file in files.items()
        }
        replaced = tuple(sorted(previous.files.keys() - expected.keys())) if previous else ()

        # Fail here if another run has taken the lease over: the staging area is now its own.
        lease.renew()
        self._write_report(f"{STAGED}/{REPORT}", StoredReport(record=record, files=expected, replaced=replaced))

    def complete(self, lease: Lease) -> None:
        """Steps 2 to 4 for a complete staged result; without a staged report nothing is done."""
        report = self._report(f"{STAGED}/{REPORT}")
        if report is None:
            return

        # A run killed between steps 3 and 4 has published already: only the cleanup is missing.
        current, listed = self.report, self._store.list_files(self._id)
        is_current = current is not None and current.record == report.record and current.is_complete(listed)
        if report.is_complete(listed, f"{STAGED}/") and not is_current:
            self._swap(report, lease)
        self.remove_staged()

    def remove_staged(self) -> None:
        """Step 4: delete the staged files, the report first, so that a partial set never counts as complete."""
        names = sorted(self._store.list_files(self._staged), key=lambda name: name != REPORT)
        self._store.remove(f"{self._staged}/{name}" for name in names)
        self._store.abort_uploads(self._staged)

    def _upload_staged(self, files: Mapping[str, LocalFile]) -> None:
        """Make the staged files equal to these, by name."""
        there = self._store.list_files(self._staged)
        self._store.remove(f"{self._staged}/{name}" for name in there.keys() - files.keys())
        self._store.abort_uploads(self._staged)

        # A staged file with the same SHA-256 was uploaded by an interrupted run.
        self._store.upload(
            {
                f"{self._staged}/{name}": file
                for name, file in files.items()
                if name not in there or self._store.sha256_of(f"{self._staged}/{name}") != file.sha256
            }
        )

    def _swap(self, report: StoredReport, lease: Lease) -> None:
        """Steps 2 and 3."""
        # Step 2: readers find no result from here until step 3.
        lease.renew()
        self._store.remove([f"{self._id}/{REPORT}"])
        self._store.copy(self._staged, self._id, {name: file.sha256 for name, file in report.files.items()})
        self._store.remove(f"{self._id}/{name}" for name in report.replaced)
        listed = self._store.list_files(self._id)
        if not report.is_complete(listed):
            address = self._store.address(self._id)
            raise TransientError(f"{address}: files are missing right after they were written; run again")

        # Step 3: the ETags, which the store assigns, bind the report to these copies.
        current = {name: replace(file, etag=listed[name].etag) for name, file in report.files.items()}
        lease.renew()  # a run that took the lease over may have replaced the listed files
        self._write_report(REPORT, StoredReport(record=report.record, files=current))

    @property
    def _staged(self) -> str:
        return f"{self._id}/{STAGED}"

    def _report(self, name: str) -> StoredReport | None:
        found = self._store.read(f"{self._id}/{name}")
        return StoredReport.read(found.content, self._id) if found else None

    def _write_report(self, name: str, report: StoredReport) -> None:
        self._store.write(f"{self._id}/{name}", report.content.encode())
