"""What is done: content keys, and results that appear whole or not at all.

A scene's outputs are written in a hidden work folder beside their target, and take the target's name when
everything is complete:

    .ID.partial/result/     becomes ID/
    .ID.partial/stages/     records of what is done, see `stages`
    .ID.partial/...         what only the work itself needs

The report in the result holds a content key made of what went in; a rerun with the same key finds its work done.
A work folder that was stopped half-way is taken up again, if anything in it is done.
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
"""What becomes the scene's folder, in its work folder."""
FindFinished = Callable[[str | None], dict[str, object] | None]
"""A content key -> the report of the whole result of one scene that has it; None where there is none."""


def content_key(scene: Scene, model_id: str, settings: Mapping[str, object]) -> str:
    """Identity of a result: scene (name, size, time, header), model and every setting that changes it.

    Returns:
        64 hexadecimal digits.
    """
    what = {
        "format": RESULT_FORMAT,
        "scene": identity_facts(scene),
        "model": model_id,
        "settings": settings,
    }
    return sha256_of_json(what)


def finished_report(folder: Path, key: str | None) -> dict[str, object] | None:
    """The report of a finished scene with this content key, or None; also when the disk keeps it from us."""
    try:
        _sweep(folder)
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
    outputs = report.get("outputs")
    complete = isinstance(outputs, dict) and all((folder / str(name)).is_file() for name in outputs.values())
    return report if complete else None


@contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """A folder for outputs, inside of a work folder, that becomes `folder` on success.

    The former `folder` stays whole until the new one replaces it; files in it that we did not write
    are carried over. What an earlier run has done in the work folder is still there. It stays there when the work is
    stopped or the world fails, and vanishes on any other failure, or if no stage is done.

    Raises:
        TransientError: the disk refuses, or another run is writing the same folder.
    """
    work = work_folder(folder)
    try:
        claim = _claim(folder)
        _heal(folder)
        StageRecords(work).sweep()
        (work / RESULT).mkdir(exist_ok=True)
    except OSError as error:
        raise TransientError(f"{folder}: cannot be written: {error}; check the disk and its permissions") from error
    goes_on = False
    try:
        yield work / RESULT
        _swap(work / RESULT, folder)
    except OSError as error:
        goes_on = True
        raise TransientError(f"{folder}: writing failed: {error}; check the disk and run again") from error
    except BaseException as error:
        goes_on = isinstance(error, TransientError) or not isinstance(error, Exception)
        raise
    finally:
        if goes_on and StageRecords(work).any_done:
            StageRecords(work).sweep()
        else:
            _remove(work)
        os.close(claim)


def work_folder(folder: Path) -> Path:
    """Where a scene's outputs are made that will appear as `folder`."""
    return folder.with_name(f".{folder.name}.partial")


def _remove(work: Path) -> None:
    """Delete a work folder, again while a worker that has not yet heard of the failure adds a file to it."""
    for _ in range(20):
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return
        time.sleep(0.05)


def _swap(result: Path, folder: Path) -> None:
    for path in result.iterdir():
        fsync(path)
    fsync(result)
    try:
        if folder.exists():
            folder.rename(_former(folder))
        result.rename(folder)
    finally:
        _heal(folder)
    fsync(folder.parent)


def _claim(folder: Path) -> int:
    """Lock the work folder, made if it is not there; the system frees the lock when the process dies.

    Another try shortly after: the lock may be held by somebody who only looks, or has just finished.
    """
    work = work_folder(folder)
    for _ in range(5):
        work.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            handle = os.open(work, os.O_RDONLY)
            if try_lock(handle) and _is_at(handle, work):
                return handle
            os.close(handle)
        time.sleep(0.02)
    raise TransientError(f"{folder}: another run is writing this folder; wait for it, or write to another --out")


def _is_at(handle: int, path: Path) -> bool:
    """Whether a path still leads to what was opened."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _sweep(folder: Path) -> None:
    """Finish what a killed run left of a swap, unless a live run is at it."""
    work = work_folder(folder)
    try:
        handle = os.open(work, os.O_RDONLY)
    except FileNotFoundError:
        _heal(folder)
        return
    try:
        if try_lock(handle):
            _heal(folder)
            if folder.exists() and not (work / RESULT).exists():
                _remove(work)
    finally:
        os.close(handle)


def _heal(folder: Path) -> None:
    """Finish a swap, wherever it was stopped: the former folder comes back, or hands over what is not ours."""
    former = _former(folder)
    if not former.exists():
        return
    if not folder.exists():
        former.rename(folder)
        return
    for path in former.iterdir():
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(former)


def _former(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.former")
