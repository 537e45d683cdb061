"""Task functions that run in dask workers: regions, output stages, and questions about the model.

Without a staging area the worker writes into the client's folders. With one, it works in a temporary folder, and whole
files are transferred:

    region   temporary folder --> staging area --> client's work folder
    outputs  staging area --> temporary folder --> staging area --> client's work folder
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

import numpy as np

from pipeline.distribute.versions import check_versions, code_versions
from pipeline.errors import SettingsError
from pipeline.inference import Region, RegionJob, RegionResult, TilePlan, choose_precision, infer_region
from pipeline.model import ArrayFunction, ModelCard, Predictor
from pipeline.model.predictor import PrecisionCheck
from pipeline.scene import Scene
from pipeline.storage import Exchange, is_missing
from pipeline.text import escape_messages

Result = TypeVar("Result")
TASK_FOLDER_PREFIX = "scenemill-"
"""Prefix of the temporary folders of workers."""


@dataclass(frozen=True, kw_only=True)
class TaskResult(Generic[Result]):
    """The return value of a task."""

    value: Result
    """Of the function that ran."""
    files: Mapping[str, int]
    """Files in the staging area: name -> bytes; none where the task wrote into the client's folder."""


def dumps(*args: object) -> bytes:
    """Pickle the arguments of a task, with the versions of this process."""
    from distributed.protocol.pickle import dumps as dask_dumps

    content: bytes = dask_dumps((code_versions(), dask_dumps(args)))
    return content


def loads(args: bytes) -> Any:
    """The arguments that `dumps` pickled, loaded in the task's thread: a model takes a while, and may fail to load."""
    from distributed.protocol.pickle import loads as dask_loads

    escape_messages()  # each task begins here, in a worker that may have been started by `dask worker`
    versions, content = dask_loads(args)
    check_versions(versions, code_versions())
    return dask_loads(content)


def call(content: bytes) -> Any:
    """Call a function; `content` pickles it with its arguments."""
    function, *args = loads(content)
    return function(*args)


def check_precision(
    scene: Scene, plan: TilePlan, card: ModelCard, predictor: Predictor | ArrayFunction
) -> PrecisionCheck:
    """`choose_precision` in a worker."""
    check_scene_visible(scene)
    return choose_precision(scene, plan, card, predictor)


def run_region(content: bytes, region: Region) -> TaskResult[RegionResult]:
    """Run a region; `content` pickles the job, the predictor and the staging area."""
    arguments: tuple[RegionJob, Predictor | ArrayFunction, Exchange | None] = loads(content)
    job, predictor, staging = arguments
    check_scene_visible(job.scene)
    if staging is None:
        _check_visible(job.folder)
        return TaskResult(value=_save_quicklook(infer_region(job, region, predictor), job.folder), files={})
    with TemporaryDirectory(prefix=TASK_FOLDER_PREFIX) as temporary:
        folder = Path(temporary) / job.folder.name
        folder.mkdir()
        result = _save_quicklook(infer_region(replace(job, folder=folder), region, predictor), folder)
        return TaskResult(value=result, files=_upload(folder, staging, under=f"{folder.name}/"))


def _save_quicklook(result: RegionResult, folder: Path) -> RegionResult:
    """Save the quicklook next to the rasters: it may have megabytes, too many for the scheduler."""
    np.save(_quicklook(result, folder), result.quicklook.pixels)
    return replace(result, quicklook=replace(result.quicklook, pixels=result.quicklook.pixels[:, :0, :0]))


def restore_quicklook(result: RegionResult, folder: Path) -> RegionResult:
    """The result of `run_region` with the pixels of its quicklook, whose file is deleted."""
    path = _quicklook(result, folder)
    pixels = np.load(path, allow_pickle=False)
    path.unlink()
    return replace(result, quicklook=replace(result.quicklook, pixels=pixels))


def _quicklook(result: RegionResult, folder: Path) -> Path:
    return folder / f"glance-{result.region.index:05d}-{result.rasters[0].attempt}.npy"


def run_outputs(content: bytes) -> TaskResult[Any]:
    """Run the output stages of a scene.

    `content` pickles the `OutputTask`, the output folder, the staging area, and the input files there with their bytes.
    """
    task, result, staging, names = loads(content)
    if staging is None:
        _check_visible(result)
        return TaskResult(value=task.run(result, None), files={})
    with TemporaryDirectory(prefix=TASK_FOLDER_PREFIX) as temporary:
        own = Path(temporary)
        folder = own / result.name
        for needed in {folder, *((own / name).parent for name in names)}:
            needed.mkdir(exist_ok=True)
        fetch_files(names, staging, own)
        return TaskResult(value=task.run(folder, None), files=_upload(folder, staging))


def fetch_files(files: Mapping[str, int], exchange: Exchange, folder: Path) -> None:
    """Download files from the staging area into a folder; each must have the size that was uploaded."""
    for name, size in files.items():
        exchange.fetch(name, folder / name, size=size)


def check_scene_visible(scene: Scene) -> None:
    """Raise SettingsError when a scene on a disk is not visible from this machine."""
    missing = [file.location for file in scene.files if is_missing(file.location)]
    if missing:
        raise SettingsError(
            f"{missing[0]}: the worker on {socket.gethostname()} does not see this scene; workers open scenes by "
            "the same path or address as the client: put scenes on a network file system that all machines mount under "
            "one path, or name them by s3:// or https://"
        )


def _check_visible(folder: Path) -> None:
    if not folder.is_dir():
        raise SettingsError(
            f"{folder}: the worker on {socket.gethostname()} does not see this folder; write results to one that all "
            "machines see under the same path, or set distribute.exchange to a folder or s3:// address for transfers"
        )


def _upload(folder: Path, exchange: Exchange, *, under: str = "") -> dict[str, int]:
    names = {f"{under}{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}
    return {name: exchange.upload(path, name) for name, path in names.items()}
