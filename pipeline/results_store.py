"""Results in an object store: made in a local work folder, uploaded whole, then published.

Nothing in a store can be renamed, so what a reader may believe is a rule: `report.json` vouches for the result. It is
written last, and names size, SHA-256 and ETag of every file; a result is whole while all are there as it says.

    1. stage     SCENE/.partial/...     every file is uploaded, and last a report that vouches for them here
    2. swap      SCENE/report.json      the former one is removed: from now on nobody believes the former result
                 SCENE/...              the staged files are copied into place, inside the store
    3. publish   SCENE/report.json      the new one is written
    4. sweep     SCENE/.partial/...     and the local files are removed

Whoever meets a whole staged result completes steps 2 to 4, wherever it was stopped; nothing is computed again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.durable import make_folder, turn, write_whole
from pipeline.errors import AccessError, MissingError, SettingsError, WorldError
from pipeline.journal import REPORT, finished_report, publishing
from pipeline.location import Location, resolve_location
from pipeline.object_store import store_access
from pipeline.object_store_folder import LocalFile, StoredFile, StoreFolder
from pipeline.results_lease import Lease, leased
from pipeline.stages import digest_of

STAGED = ".partial"
"""Folder of a scene's folder where files wait until all are there."""
OBJECTS, REPLACED = "objects", "replaced"
"""What a report in a store says beyond a local one: the files it vouches for, and names of the former result's."""

log = logging.getLogger(__name__)


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


class StoreResults:
    """Results under an `s3://` address."""

    def __init__(self, text: str, work_dir: str | Path | None = None) -> None:
        """Name the place; the store is not asked yet.

        Args:
            text: the address, as the operator wrote it.
            work_dir: where results are made before they are uploaded; None: below the system's temporary folder.

        Raises:
            SettingsError: no address of a bucket.
        """
        self._store, self._work_dir = StoreFolder(text), work_dir
        self.text = self._store.text

    def check(self, *, writing: bool = True) -> None:
        """Raise SettingsError when the bucket is not there, or these credentials may not use it."""
        try:
            self._store.check_reading()
            if writing:
                name = f".writable-{os.urandom(8).hex()}"
                self._store.write(name, b"")
                self._store.remove([name])
                make_folder(self._local)
        except (MissingError, AccessError) as error:
            raise SettingsError(f"--out {error}") from error

    def address(self, name: str) -> str:
        """The `s3://` address of a file or folder."""
        return self._store.address(name)

    def place(self, name: str) -> Location:
        """Where a raster is, for opening it."""
        return resolve_location(self._store.address(name))

    def folder(self, scene_id: str) -> Path | None:
        """None: nothing of a published result is on this machine."""
        return None

    def former(self, scene_id: str, mosaic_key: str | None) -> Path | None:
        """The former result, fetched if its mosaic has this key; it goes when the new one is published."""
        report = self._report(scene_id, REPORT)
        if report is None or mosaic_key is None or report.record.get("mosaic_key") != mosaic_key:
            return None
        folder = self._fetched(scene_id)
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        for name in report.files:
            self._store.download(f"{scene_id}/{name}", folder / name)
        write_whole(folder / REPORT, json.dumps(report.record))
        return folder

    def finished(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The report of a scene's whole result with this content key; None where there is none that is believed."""
        return self._look(scene_id, key)[0]

    def recovered(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same, after what a killed run left has been published, or swept away."""
        found, listed = self._look(scene_id, key)
        made_here = finished_report(self._local / scene_id, key) is not None
        if not made_here and not any(name.startswith(f"{STAGED}/") for name in listed):
            return found
        try:
            with leased(self._store, scene_id, self._local) as lease:
                return self._recover(scene_id, key, lease)
        except WorldError as error:
            if found is None:
                raise
            log.warning("%s", error)
            return found

    @contextmanager
    def publishing(self, scene_id: str) -> Iterator[Path]:
        """A local work folder whose files are the scene's result on success; the former stays until all are uploaded.

        What could not be uploaded stays in the work folder, for the next run.

        Raises:
            WorldError: disk or network refuse, or another run is writing the same scene.
        """
        local = self._local / scene_id
        with leased(self._store, scene_id, self._local) as lease:
            self._complete(scene_id, lease)
            shutil.rmtree(local, ignore_errors=True)
            try:
                with publishing(local) as work:
                    yield work
            finally:
                shutil.rmtree(self._fetched(scene_id), ignore_errors=True)
            self._upload(scene_id, local, lease)

    def turn(self) -> AbstractContextManager[None]:
        """Of the runs on this machine one at a time changes documents; those on others are not waited for."""
        return turn(self._local)

    def scenes(self) -> Iterator[str]:
        """Names of what may be scenes' folders, in order."""
        return self._store.folders()

    def sizes(self, scene_id: str) -> Mapping[str, int]:
        """Bytes of each file in a scene's folder."""
        listed = self._store.listed(scene_id).items()
        return {name: file.size_bytes for name, file in listed if not name.startswith(".")}

    def read(self, name: str) -> bytes | None:
        """A document; None where there is none."""
        found = self._store.read(name)
        return None if found is None else found.content

    def write(self, name: str, content: bytes | str) -> None:
        """Write a document, text as UTF-8; a store shows it whole or not at all."""
        self._store.write(name, content.encode() if isinstance(content, str) else content)

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        return self._store.size_of(name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        self._store.remove([name])

    def bring(self, name: str, folder: Path) -> Path:
        """Fetch a file into a folder, under its name."""
        path = folder / name
        make_folder(path.parent)
        self._store.download(name, path)
        return path

    def put(self, name: str, path: Path) -> None:
        """Upload a file; a store shows it whole or not at all."""
        self._store.upload({name: LocalFile(path=path, sha256=digest_of(path))})

    @property
    def _local(self) -> Path:
        """The folder of local work for this store; a rerun finds it again."""
        named = f"{store_access().endpoint} {self.text}"
        above = _private_folder() if self._work_dir is None else Path(self._work_dir)
        return above / hashlib.sha256(named.encode()).hexdigest()[:16]

    def _fetched(self, scene_id: str) -> Path:
        """Where a former result lies for a while."""
        return self._local / ".fetched" / scene_id

    def _look(self, scene_id: str, key: str | None) -> tuple[dict[str, object] | None, Mapping[str, StoredFile]]:
        """The report of the result, if it is whole and has this key, and what is in the scene's folder."""
        report = self._report(scene_id, REPORT)
        listed = self._store.listed(scene_id)
        fits = report is not None and key is not None and report.record.get("content_key") == key
        return (dict(report.record) if report is not None and fits and report.is_whole(listed) else None), listed

    def _recover(self, scene_id: str, key: str | None, lease: Lease) -> dict[str, object] | None:
        local = self._local / scene_id
        found = self.finished(scene_id, key)
        if found is None:
            self._complete(scene_id, lease)
            found = self.finished(scene_id, key)
        if found is None and finished_report(local, key) is not None:
            self._upload(scene_id, local, lease)
            found = self.finished(scene_id, key)
        if found is not None:
            self._sweep(scene_id)
            shutil.rmtree(local, ignore_errors=True)
        return found

    def _upload(self, scene_id: str, local: Path, lease: Lease) -> None:
        """Put a whole local result in place, and free the disk."""
        self._stage(scene_id, local, lease)
        self._complete(scene_id, lease)
        shutil.rmtree(local, ignore_errors=True)

    def _stage(self, scene_id: str, local: Path, lease: Lease) -> None:
        """Step 1. What an upload that was stopped has brought there already is not sent again."""
        record = json.loads((local / REPORT).read_text(encoding="utf-8"))
        paths = [path for path in sorted(local.iterdir()) if path.is_file() and path.name != REPORT]
        digests = record.get("digests", {})
        files = {path.name: LocalFile(path=path, sha256=digests.get(path.name) or digest_of(path)) for path in paths}
        vouched = {name: Vouched(size=file.path.stat().st_size, sha256=file.sha256) for name, file in files.items()}
        there = self._store.listed(f"{scene_id}/{STAGED}")
        self._store.remove(f"{scene_id}/{STAGED}/{name}" for name in there.keys() - files.keys())
        self._store.abort_uploads(f"{scene_id}/{STAGED}")
        staged = {f"{scene_id}/{STAGED}/{name}": file for name, file in files.items()}
        self._store.upload(
            {
                name: file
                for name, file in staged.items()
                if file.path.name not in there or self._store.sha256_of(name) != file.sha256
            }
        )
        former = self._report(scene_id, REPORT)
        replaced = tuple(sorted(former.files.keys() - vouched.keys())) if former else ()
        report = StoredReport(record=record, files=vouched, replaced=replaced)
        lease.renew()
        self.write(f"{scene_id}/{STAGED}/{REPORT}", report.content)

    def _complete(self, scene_id: str, lease: Lease) -> None:
        """Steps 2 to 4 for a whole staged result; one that is still being staged is left as it is."""
        report, listed = self._report(scene_id, f"{STAGED}/{REPORT}"), self._store.listed(scene_id)
        if report is None:
            return
        placed = self._report(scene_id, REPORT)
        is_placed = placed is not None and placed.record == report.record and placed.is_whole(listed)
        if report.is_whole(listed, f"{STAGED}/") and not is_placed:
            self._swap(scene_id, report, lease)
        self._sweep(scene_id)

    def _swap(self, scene_id: str, report: StoredReport, lease: Lease) -> None:
        """Steps 2 and 3."""
        lease.renew()
        self._store.remove([f"{scene_id}/{REPORT}"])
        self._store.copy(f"{scene_id}/{STAGED}", scene_id, {name: file.sha256 for name, file in report.files.items()})
        self._store.remove(f"{scene_id}/{name}" for name in report.replaced)
        listed = self._store.listed(scene_id)
        if not report.is_whole(listed):
            raise WorldError(f"{self.address(scene_id)}: files are missing right after they were written; run again")
        placed = {
            name: Vouched(size=file.size, sha256=file.sha256, etag=listed[name].etag)
            for name, file in report.files.items()
        }
        lease.renew()  # whoever took it over meanwhile may have replaced what was listed
        self.write(f"{scene_id}/{REPORT}", StoredReport(record=report.record, files=placed).content)

    def _sweep(self, scene_id: str) -> None:
        """Step 4: remove what is staged, its report first, so that a rest is never taken for the whole."""
        folder = f"{scene_id}/{STAGED}"
        names = sorted(self._store.listed(folder), key=lambda name: name != REPORT)
        self._store.remove(f"{folder}/{name}" for name in names)
        self._store.abort_uploads(folder)

    def _report(self, scene_id: str, name: str) -> StoredReport | None:
        return StoredReport.read(self.read(f"{scene_id}/{name}"))


def _private_folder() -> Path:
    """Our own folder in the system's temporary one, where anybody can make folders of any name."""
    folder = Path(tempfile.gettempdir()) / f"scenemill-{os.getuid()}"
    make_folder(folder)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise SettingsError(f"{folder}: belongs to somebody else; name another folder by run.work_dir")
    folder.chmod(0o700)
    return folder
