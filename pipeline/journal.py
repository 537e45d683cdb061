"""What is done: content keys, and results that appear whole or not at all.

A scene's outputs are written into a hidden work folder beside their target, and the folder takes the
target's name when everything in it is complete. The report inside holds a content key made of what
went in; a rerun with the same key finds its work done.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from pipeline.durable import flush, lock
from pipeline.errors import WorldError
from pipeline.grid import RasterGrid
from pipeline.scene import Scene, SceneFile

RESULT_FORMAT = 3
"""Raised whenever the same inputs give different outputs than before."""
REPORT = "report.json"


def content_key(scene: Scene, model_id: str, settings: Mapping[str, object]) -> str:
    """Identity of a result: scene (name, size, time, header), model and every setting that changes it.

    A local file is known by size and time, wherever it lies; a remote one, which has neither, by its address and
    its fingerprint; a scene of several files by all of them, and by what the catalog says of them.

    Returns:
        64 hexadecimal digits.
    """
    what = {
        "format": RESULT_FORMAT,
        "scene": {**asdict(scene), "grid": _grid_facts(scene.grid), "files": [_file_facts(f) for f in scene.files]},
        "model": model_id,
        "settings": settings,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def finished_report(folder: Path, key: str | None) -> dict[str, object] | None:
    """The report of a finished scene with this content key, or None; also when the disk keeps it from us."""
    try:
        if not _is_claimed(folder):
            _heal(folder)
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
    """A work folder that becomes `folder` on success and vanishes on failure.

    The former `folder` stays whole until the new one replaces it; files in it that we did not write
    are carried over.

    Raises:
        WorldError: the disk refuses, or another run is writing the same folder.
    """
    work = _work_of(folder)
    try:
        claim = _claim(folder)
        _heal(folder)
    except OSError as error:
        raise WorldError(f"{folder}: cannot be written: {error}; check the disk and its permissions") from error
    try:
        yield work
        _swap(work, folder)
    except OSError as error:
        raise WorldError(f"{folder}: writing failed: {error}; check the disk and run again") from error
    finally:
        _remove(work)
        os.close(claim)


def _remove(work: Path) -> None:
    """Delete a work folder, again while a worker that has not yet heard of the failure adds a file to it."""
    for _ in range(20):
        shutil.rmtree(work, ignore_errors=True)
        if not work.exists():
            return
        time.sleep(0.05)


def _swap(work: Path, folder: Path) -> None:
    for path in work.iterdir():
        flush(path)
    flush(work)
    try:
        if folder.exists():
            folder.rename(_former(folder))
        work.rename(folder)
    finally:
        _heal(folder)
    flush(folder.parent)


def _claim(folder: Path) -> int:
    """Make the work folder anew and lock it; the system frees the lock when the handle closes, or the process dies."""
    if _is_claimed(folder):
        raise WorldError(f"{folder}: another run is writing this folder; wait for it, or write to another --out")
    work = _work_of(folder)
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    handle = os.open(work, os.O_RDONLY)
    lock(handle)
    return handle


def _is_claimed(folder: Path) -> bool:
    """Whether a live run holds the work folder, under its own name or already renamed."""
    for path in (_work_of(folder), folder):
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            if not lock(handle):
                return True
        finally:
            os.close(handle)
    return False


def _work_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.partial")


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


def _file_facts(file: SceneFile) -> dict[str, object]:
    place = file.location.gdal_path if file.location.is_remote else None
    return {**asdict(file), "grid": _grid_facts(file.grid), "location": place}


def _grid_facts(grid: RasterGrid) -> dict[str, object]:
    return {"crs": grid.crs.to_wkt(), "transform": tuple(grid.transform)[:6], "shape": grid.shape}
