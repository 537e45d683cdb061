"""Atomic publishing of a scene's result folder, and the content key that identifies a result.

Outputs are written to a hidden work folder next to their target, which is renamed when everything is complete:

    .ID.partial/result/     becomes ID/
    .ID.partial/stages/     records of completed stages, see `stage_records`
    .ID.partial/...         temporary files

The report in the result holds the content key, a hash of all inputs; a rerun with the same key skips the scene.
A work folder of an interrupted run is reused if any stage in it is complete.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from pipeline.errors import TransientError
from pipeline.results.report import REPORT, SceneReport, edited_outputs, read_report_file
from pipeline.results.stage_records import StageRecords
from pipeline.scene import Scene, identity_facts
from pipeline.storage import (
    disk_error,
    fsync,
    is_file,
    is_opened,
    open_own_folder,
    own_folder,
    real_folder,
    sha256_of_json,
    try_lock,
)

log = logging.getLogger(__name__)

RESULT_FORMAT = 3
"""Raised whenever the same inputs give different outputs than before."""
RESULT = "result"
"""Folder in the work folder that becomes the scene's folder."""
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "can't start new thread")
"""Phrases of errors of lack of memory that are no MemoryError."""
SQLITE_SUFFIXES = (".gpkg-wal", ".gpkg-shm", ".gpkg-journal")
"""Unsaved changes of a previous GeoPackage, which SQLite would apply to the one that replaces it."""


def content_key(scene: Scene, model_id: str, settings: Mapping[str, object]) -> str:
    """SHA-256 of scene (name, size, time, header), model and every setting that affects the result, in hexadecimal."""
    identity = {"format": RESULT_FORMAT, "scene": identity_facts(scene), "model": model_id, "settings": settings}
    return sha256_of_json(identity)


def finished_report(folder: Path, key: str | None, *, check_edits: bool = True) -> SceneReport | None:
    """The report of a finished scene with this content key, if every output exists; None otherwise. Changes nothing.

    Args:
        folder: of the result.
        key: its content key.
        check_edits: compare the outputs with their sizes and digests; `reason` then names those that differ.

    Raises:
        AccessError: the folder is a link, or a file is in its place.
    """
    # A run killed between the two renames of a swap leaves only the previous folder.
    previous = _previous(folder)
    found = previous if not real_folder(folder) and real_folder(previous) else folder
    report = None if key is None else read_report_file(found / REPORT, folder.name)
    if report is None or report.inputs.content_key != key:
        return None

    # Files can be deleted after publishing, so the report alone proves nothing.
    if not all(is_file(found / name) for name in report.outputs.names.values()):
        return None
    return replace(report, reason=edited_outputs(found, report.outputs)) if check_edits else report


def recover_report(folder: Path, key: str | None) -> SceneReport | None:
    """As `finished_report`, after repairing what a killed run left.

    Raises:
        AccessError: a folder is a link or another user's, or a file is in its place.
    """
    try:
        _repair_if_idle(folder)
    except OSError:
        return None
    return finished_report(folder, key)


def is_pending(folder: Path) -> bool:
    """Whether a killed run left something to repair, or another run is writing the folder."""
    return os.path.lexists(work_folder(folder)) or os.path.lexists(_previous(folder))


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """A folder for outputs, inside a work folder, that becomes `folder` on success.

    The previous `folder` stays complete until the new one replaces it; foreign files in it are carried over. The work
    folder still holds the completed stages of an interrupted run. It is kept when the work is interrupted or fails
    with a transient error, and deleted on any other failure, or if no stage is complete.

    Raises:
        AccessError: one of the folders is a link or another user's, or a file is in its place.
        TransientError: the disk fails, or another run is writing the folder.
    """
    with _locked(folder) as work:
        try:
            _prepare(work, folder)
        except OSError as error:
            raise disk_error(f"{folder}: cannot be written", error) from error
        is_resumable = False
        try:
            yield work / RESULT
            _swap(work / RESULT, folder)
        except OSError as error:
            is_resumable = True
            raise TransientError(f"{folder}: writing failed: {error}; check the disk and run again") from error
        except (MemoryError, RuntimeError) as error:
            if not _lacks_memory(error):
                raise
            is_resumable = True
            raise TransientError(
                f"{folder}: no memory: {error}; run fewer processes or a smaller tiling.tile_size here, or use a "
                "larger machine; completed stages are kept"
            ) from error
        except BaseException as error:
            # Ctrl-C and SIGTERM are no `Exception`: the run can continue. Other errors would recur.
            is_resumable = isinstance(error, TransientError) or not isinstance(error, Exception)
            raise
        finally:
            _clean_up(work, is_resumable=is_resumable)


def work_folder(folder: Path) -> Path:
    """The work folder of outputs that will be published as `folder`."""
    return folder.with_name(f".{folder.name}.partial")


def _clean_up(work: Path, *, is_resumable: bool) -> None:
    """Delete a work folder, or the unfinished files in one that can be resumed; if that fails, the next run does it."""
    try:
        if is_resumable and StageRecords(work).digests():
            StageRecords(work).remove_unrecorded()
        else:
            _remove(work)
    except OSError as error:
        log.warning("%s: cannot be cleaned up: %s; the next run does it", work, error)


def _lacks_memory(error: Exception) -> bool:
    """Whether an allocation failed, as Python or torch says it, or a thread could not be started."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(phrase in text for phrase in NO_MEMORY)


def _remove(work: Path) -> None:
    """Delete a work folder, retrying while a worker that has not yet been cancelled adds files to it."""
    for _ in range(20):
        shutil.rmtree(work, ignore_errors=True)
        if not os.path.lexists(work):
            return
        time.sleep(0.05)


def _prepare(work: Path, folder: Path) -> None:
    """Under the lock: check the folders, repair an interrupted swap, and delete unrecorded files."""
    own_folder(folder)
    _repair_interrupted_swap(folder)
    for path in work.iterdir():
        if path.is_symlink():
            real_folder(path)  # raises
    StageRecords(work).remove_unrecorded()
    (work / RESULT).mkdir(exist_ok=True)


def _swap(result: Path, folder: Path) -> None:
    # Flush the content before the renames, or a power failure could publish empty files.
    for path in result.iterdir():
        fsync(path)
    fsync(result)

    # Between the renames no result is visible; after a kill here, the next run repairs it.
    try:
        if own_folder(folder):
            folder.rename(_previous(folder))
        result.rename(folder)
    finally:
        # After an error this restores the previous folder, else it carries the foreign files over.
        _repair_interrupted_swap(folder)
    fsync(folder.parent)


@contextmanager
def _locked(folder: Path) -> Iterator[Path]:
    """Create, lock and yield the work folder; released last, so that no run enters a folder that is being removed."""
    work = work_folder(folder)
    try:
        handle = _acquire_lock(work, folder)
    except OSError as error:
        raise disk_error(f"{folder}: cannot be written", error) from error
    try:
        yield work
    finally:
        # Empty, it was created here and not used; another run may have made one of the same name since.
        with suppress(OSError):
            if is_opened(handle, work):
                os.rmdir(work)
        os.close(handle)


def _acquire_lock(work: Path, folder: Path) -> int:
    """Create and lock the work folder; the system frees the lock when the process dies.

    Tried several times: a run that is just ending holds the lock briefly.
    """
    work.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(5):
        with suppress(FileExistsError):
            work.mkdir()
        with suppress(FileNotFoundError):
            handle = open_own_folder(work)
            # The previous holder may have removed the folder after it was opened here.
            if try_lock(handle) and is_opened(handle, work):
                return handle
            os.close(handle)
        time.sleep(0.02)
    raise TransientError(f"{folder}: another run is writing this folder; wait for it, or write to another --out")


def _repair_if_idle(folder: Path) -> None:
    """Repair a swap that a killed run left unfinished, unless a live run holds the lock."""
    work = work_folder(folder)
    try:
        handle = open_own_folder(work)
    except FileNotFoundError:
        _repair_interrupted_swap(folder)
        return
    try:
        if try_lock(handle) and is_opened(handle, work):
            _repair_interrupted_swap(folder)
            # Published, but killed before the work folder was removed.
            if folder.exists() and not os.path.lexists(work / RESULT):
                _remove(work)
    finally:
        os.close(handle)


def _repair_interrupted_swap(folder: Path) -> None:
    """Finish an interrupted swap: restore the previous folder, or move its foreign files into the new one."""
    previous = _previous(folder)
    if not own_folder(previous):
        return
    if not own_folder(folder):
        previous.rename(folder)
        return
    for path in previous.iterdir():
        if not os.path.lexists(folder / path.name) and not path.name.endswith(SQLITE_SUFFIXES):
            path.rename(folder / path.name)
    shutil.rmtree(previous)


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")
