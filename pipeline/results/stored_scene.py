"""One scene's result in an object store: what a reader may believe of it, and how it takes the place of the former.

Nothing in a store can be renamed, so what a reader may believe is a rule: `report.json` vouches for the result. It is
written last, and names size, SHA-256 and ETag of every file; a result is whole while all are there as it says.

    1. stage     SCENE/.partial/...     every file is uploaded, and last a report that vouches for them here
    2. swap      SCENE/report.json      the former one is removed: from now on nobody believes the former result
                 SCENE/...              the staged files are copied into place, inside the store
    3. publish   SCENE/report.json      the new one is written
    4. sweep     SCENE/.partial/...

Whoever meets a whole staged result completes steps 2 to 4, wherever it was stopped; nothing is computed again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pipeline.errors import TransientError
from pipeline.results.lease import Lease
from pipeline.results.publish import REPORT
from pipeline.storage import LocalFile, StoredFile, StoreFolder, atomic_write, ensure_dir, sha256_file

STAGED = ".partial"
"""Folder of a scene's folder where files wait until all are there."""
OBJECTS, REPLACED = "objects", "replaced"
"""What a report in a store says beyond a local one: the files it vouches for, and names of the former result's."""


@dataclass(frozen=True, kw_only=True)
class Vouched:
    """What a report says of one file beside it."""

    size: int
    """Bytes."""
    sha256: str
    """Digest of its bytes."""
    etag: str | None = None
    """The store's name for this version, None while it is staged."""

    def fits(self, found: StoredFile | None) -> bool:
        """Whether the file that is there is the one that is meant."""
        return found is not None and found.size_bytes == self.size and self.etag in (None, found.etag)


@dataclass(frozen=True, kw_only=True)
class StoredReport:
    """A report in a store."""

    record: Mapping[str, object]
    """What a local report says, too."""
    files: Mapping[str, Vouched]
    """The files it vouches for, by name."""
    replaced: tuple[str, ...] = ()
    """Files of the result before, which go when this one is in place."""

    @classmethod
    def read(cls, content: bytes | None) -> StoredReport | None:
        """The report that `content` made; None where there is none, or none of ours."""
        try:
            record = json.loads(content or b"")
            files = {str(name): Vouched(**fact) for name, fact in record.pop(OBJECTS).items()}
            return cls(record=record, files=files, replaced=tuple(record.pop(REPLACED, ())))
        except (ValueError, TypeError, AttributeError, KeyError):
            return None

    @property
    def content(self) -> str:
        """The report as JSON."""
        told = {
            name: {key: value for key, value in asdict(file).items() if value is not None}
            for name, file in self.files.items()
        }
        more = {REPLACED: self.replaced} if self.replaced else {}
        return json.dumps({**self.record, OBJECTS: told, **more}, indent=2, sort_keys=True) + "\n"

    def is_whole(self, listed: Mapping[str, StoredFile], folder: str = "") -> bool:
        """Whether all its files are in a folder as it says."""
        return all(file.fits(listed.get(f"{folder}{name}")) for name, file in self.files.items())


class StoredScene:
    """The folder of a scene in a store; who changes it holds its lease."""

    def __init__(self, store: StoreFolder, scene_id: str) -> None:
        self._store, self._id = store, scene_id

    @property
    def report(self) -> StoredReport | None:
        """What vouches for the result; None where nothing does."""
        return self._report(REPORT)

    def look(self, key: str | None) -> tuple[dict[str, object] | None, bool]:
        """The report of the result, if it is whole and has this key, and whether there is something staged."""
        listed = self._store.list_files(self._id)
        return self.finished(key, listed), any(name.startswith(f"{STAGED}/") for name in listed)

    def finished(self, key: str | None, listed: Mapping[str, StoredFile]) -> dict[str, object] | None:
        """The report of the result, if it has this key and is whole by a listing of the scene's folder."""
        report = self.report
        fits = report is not None and key is not None and report.record.get("content_key") == key
        return dict(report.record) if report is not None and fits and report.is_whole(listed) else None

    def fetch(self, report: StoredReport, folder: Path) -> Path:
        """Bring the result into a local folder, which then is as if it had been made there."""
        ensure_dir(folder)
        for name in report.files:
            self._store.download(f"{self._id}/{name}", folder / name)
        atomic_write(folder / REPORT, json.dumps(report.record))
        return folder

    def stage(self, local: Path, lease: Lease) -> None:
        """Step 1. What an upload that was stopped has brought there already is not sent again."""
        record = json.loads((local / REPORT).read_text(encoding="utf-8"))
        paths = [path for path in sorted(local.iterdir()) if path.is_file() and path.name != REPORT]
        digests = record.get("digests", {})
        files = {path.name: LocalFile(path=path, sha256=digests.get(path.name) or sha256_file(path)) for path in paths}
        self._send(files)
        former = self.report
        vouched = {name: Vouched(size=file.path.stat().st_size, sha256=file.sha256) for name, file in files.items()}
        replaced = tuple(sorted(former.files.keys() - vouched.keys())) if former else ()
        lease.renew()
        self._vouch(f"{STAGED}/{REPORT}", StoredReport(record=record, files=vouched, replaced=replaced))

    def complete(self, lease: Lease) -> None:
        """Steps 2 to 4 for a whole staged result; one that is still being staged is left as it is."""
        report = self._report(f"{STAGED}/{REPORT}")
        if report is None:
            return
        placed, listed = self.report, self._store.list_files(self._id)
        is_placed = placed is not None and placed.record == report.record and placed.is_whole(listed)
        if report.is_whole(listed, f"{STAGED}/") and not is_placed:
            self._swap(report, lease)
        self.sweep()

    def sweep(self) -> None:
        """Step 4: remove what is staged, its report first, so that a rest is never taken for the whole."""
        names = sorted(self._store.list_files(self._staged), key=lambda name: name != REPORT)
        self._store.remove(f"{self._staged}/{name}" for name in names)
        self._store.abort_uploads(self._staged)

    def _send(self, files: Mapping[str, LocalFile]) -> None:
        """Make the staged files these, by name."""
        there = self._store.list_files(self._staged)
        self._store.remove(f"{self._staged}/{name}" for name in there.keys() - files.keys())
        self._store.abort_uploads(self._staged)
        self._store.upload(
            {
                f"{self._staged}/{name}": file
                for name, file in files.items()
                if name not in there or self._store.sha256_of(f"{self._staged}/{name}") != file.sha256
            }
        )

    def _swap(self, report: StoredReport, lease: Lease) -> None:
        """Steps 2 and 3."""
        lease.renew()
        self._store.remove([f"{self._id}/{REPORT}"])
        self._store.copy(self._staged, self._id, {name: file.sha256 for name, file in report.files.items()})
        self._store.remove(f"{self._id}/{name}" for name in report.replaced)
        listed = self._store.list_files(self._id)
        if not report.is_whole(listed):
            place = self._store.address(self._id)
            raise TransientError(f"{place}: files are missing right after they were written; run again")
        placed = {name: replace(file, etag=listed[name].etag) for name, file in report.files.items()}
        lease.renew()  # whoever took it over meanwhile may have replaced what was listed
        self._vouch(REPORT, StoredReport(record=report.record, files=placed))

    @property
    def _staged(self) -> str:
        return f"{self._id}/{STAGED}"

    def _report(self, name: str) -> StoredReport | None:
        found = self._store.read(f"{self._id}/{name}")
        return StoredReport.read(found.content) if found else None

    def _vouch(self, name: str, report: StoredReport) -> None:
        self._store.write(f"{self._id}/{name}", report.content.encode())
