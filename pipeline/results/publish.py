"""Atomic publishing of a scene's result folder, and the content key that identifies a result.

Outputs are written to a hidden work folder next to their target, which is renamed when everything is complete:

    .ID.partial/result/     becomes ID/
    .ID.partial/stages/     records of completed stages, see `stage_records`
    .ID.partial/...         temporary files

The report in the result holds the content key, a hash of all inputs; a rerun with the same key skips the scene.
A work folder of an interrupted run is reused if any stage in it is complete.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import TransientError
from pipeline.results.stage_records import StageRecords
from pipeline.scene import Scene, identity_facts
from pipeline.storage import fsync, sha256_of_json, try_lock

RESULT_FORMAT = 3
"""Raised whenever the same inputs give different outputs than before."""
REPORT = "report.json"
RESULT = "result"
"""Folder in the work folder that becomes the scene's folder."""
FindFinished = Callable[[str | None], dict[str, object] | None]
"""Content key -> the report of a scene's complete result with that key, or None."""


def content_key(scene: Scene, model_id: str, settings: Mapping[str, object]) -> str:
    """SHA-256 of scene (name, size, time, header), model and every setting that affects the result, in hexadecimal."""
    identity = {"format": RESULT_FORMAT, "scene": identity_facts(scene), "model": model_id, "settings": settings}
    return sha256_of_json(identity)


def finished_report(folder: Path, key: str | None) -> dict[str, object] | None:
    """The report of a finished scene with this content key; None without one, or when it cannot be read."""
    # A run killed between the two renames of a swap leaves only the previous folder.
    try:
        _repair_if_idle(folder)
    except OSError:
        return None
    path = folder / REPORT
    if key is None or not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(report, dict) or report.get("content_key") != key:
        return None

    # Files can be deleted after publishing, so the report alone proves nothing.
    outputs = report.get("outputs")
    complete = isinstance(outputs, dict) and all((folder / str(name)).is_file() for name in outputs.values())
    return report if complete else None


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """A folder for outputs, inside a work folder, that becomes `folder` on success.

    The previous `folder` stays complete until the new one replaces it; foreign files in it are carried over. The work
    folder still holds the completed stages of an interrupted run. It is kept when the work is interrupted or fails
    with a transient error, and deleted on any other failure, or if no stage is complete.
    """
    work = work_folder(folder)
    try:
        # Lock first: only the holder may repair a swap or delete unrecorded files.
        lock_handle = _acquire_lock(folder)
        _repair_interrupted_swap(folder)
        StageRecords(work).remove_unrecorded()
        (work / RESULT).mkdir(exist_ok=True)
    except OSError as error:
        raise TransientError(f"{folder}: cannot be written: {error}; check the disk and its permissions") from error
    is_resumable = False
    try:
        yield work / RESULT
        _swap(work / RESULT, folder)
    except OSError as error:
        is_resumable = True
        raise TransientError(f"{folder}: writing failed: {error}; check the disk and run again") from error
    except BaseException as error:
        # Ctrl-C and SIGTERM are no `Exception`: the run can continue. Other errors would recur.
        is_resumable = isinstance(error, TransientError) or not isinstance(error, Exception)
        raise
    finally:
        if is_resumable and StageRecords(work).digests():
            StageRecords(work).remove_unrecorded()
        else:
            _remove(work)
        # Release last, so that no other run enters a folder that is being removed.
        os.close(lock_handle)


def work_folder(folder: Path) -> Path:
    """The work folder of outputs that will be published as `folder`."""
    return folder.with_name(f".{folder.name}.partial")


def _remove(work: Path) -> None:
    """Delete a work folder, retrying while a worker that has not yet been cancelled adds files to it."""
    for _ in range(20):
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return
        time.sleep(0.05)


def _swap(result: Path, folder: Path) -> None:
    # Flush the content before the renames, or a power failure could publish empty files.
    for path in result.iterdir():
        fsync(path)
    fsync(result)

    # Between the renames no result is visible; after a kill here, the next reader or run repairs it.
    try:
        if folder.exists():
            folder.rename(_previous(folder))
        result.rename(folder)
    finally:
        # After an error this restores the previous folder, else it carries the foreign files over.
        _repair_interrupted_swap(folder)
    fsync(folder.parent)


def _acquire_lock(folder: Path) -> int:
    """Create and lock the work folder; the system frees the lock when the process dies.

    Tried several times: a reader, or a run that is just ending, holds the lock briefly.
    """
    work = work_folder(folder)
    for _ in range(5):
        work.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            handle = os.open(work, os.O_RDONLY)
            # The previous holder may have removed the folder after it was opened here.
            if try_lock(handle) and _is_same_file(handle, work):
                return handle
            os.close(handle)
        time.sleep(0.02)
    raise TransientError(f"{folder}: another run is writing this folder; wait for it, or write to another --out")


def _is_same_file(handle: int, path: Path) -> bool:
    """Whether a path still names the opened file."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _repair_if_idle(folder: Path) -> None:
    """Repair a swap that a killed run left unfinished, unless a live run holds the lock."""
    work = work_folder(folder)
    try:
        handle = os.open(work, os.O_RDONLY)
    except FileNotFoundError:
        _repair_interrupted_swap(folder)
        return
    try:
        if try_lock(handle):
            _repair_interrupted_swap(folder)
            # Published, but killed before the work folder was removed.
            if folder.exists() and not (work / RESULT).exists():
                _remove(work)
    finally:
        os.close(handle)


def _repair_interrupted_swap(folder: Path) -> None:
    """Finish an interrupted swap: restore the previous folder, or move its foreign files into the new one."""
    previous = _previous(folder)
    if not previous.exists():
        return
    if not folder.exists():
        previous.rename(folder)
        return
    for path in previous.iterdir():
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(previous)


def _previous(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")
