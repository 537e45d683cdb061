"""What a worker does: the tasks of a scene, in the worker's own process, for a client on another machine.

Without an exchange place the worker sees the client's folders, and works in them. With one, it works in a folder of its
own, and whole files travel:

    region   own folder --> exchange place --> client's work folder
    finish   exchange place --> own folder --> exchange place --> client's work folder
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, TypeVar

import numpy as np

from pipeline.distribute.versions import check_code, facts_of_code
from pipeline.errors import SettingsError
from pipeline.inference import Region, RegionJob, RegionResult, TilePlan, choose_precision, infer_region
from pipeline.model import ArrayFunction, ModelCard, Predictor
from pipeline.model.predictor import PrecisionCheck
from pipeline.scene import Scene
from pipeline.storage import Exchange

Answer = TypeVar("Answer")
OWN = "scenemill-"
"""How the folders begin in which workers work."""


@dataclass(frozen=True, kw_only=True)
class Sent(Generic[Answer]):
    """What a task returns."""

    answer: Answer
    """What it found."""
    files: Mapping[str, int]
    """What it left in the exchange place: name -> bytes; none where it worked in the client's folder."""


def packed(*given: object) -> bytes:
    """What a task is given, for a worker of the same version."""
    from distributed.protocol.pickle import dumps

    whole: bytes = dumps((facts_of_code(), dumps(given)))
    return whole


def unpacked(given: bytes) -> Any:
    """What `packed` was given, loaded here, in the worker's own thread: a model takes a while, and may not load.

    Raises:
        SettingsError: this worker is of another version.
    """
    from distributed.protocol.pickle import loads

    facts, content = loads(given)
    check_code(facts, facts_of_code())
    return loads(content)


def call(given: bytes) -> Any:
    """Call a function; `given` packs it with its arguments."""
    function, *arguments = unpacked(given)
    return function(*arguments)


def prove(scene: Scene, plan: TilePlan, card: ModelCard, predictor: Predictor | ArrayFunction) -> PrecisionCheck:
    """See `choose_precision`."""
    check_scene_seen(scene)
    return choose_precision(scene, plan, card, predictor)


def infer(given: bytes, region: Region) -> Sent[RegionResult]:
    """Run a region; `given` packs the job and the predictor."""
    job, predictor = unpacked(given)
    check_scene_seen(job.scene)
    if job.exchange is None:
        _check_seen(job.folder)
        return Sent(answer=_lay_down(infer_region(job, region, predictor), job.folder), files={})
    with TemporaryDirectory(prefix=OWN) as own:
        folder = Path(own) / job.folder.name
        folder.mkdir()
        result = _lay_down(infer_region(replace(job, folder=folder), region, predictor), folder)
        return Sent(answer=result, files=_sent(folder, job.exchange, under=f"{folder.name}/"))


def _lay_down(result: RegionResult, folder: Path) -> RegionResult:
    """A result whose glance lies in a file beside the rasters: it may have megabytes, too many for the scheduler."""
    glance = result.glance
    np.save(_glance(result, folder), glance.pixels)
    return replace(result, glance=replace(glance, pixels=glance.pixels[:, :0, :0]))


def take_up(result: RegionResult, folder: Path) -> RegionResult:
    """The result of `infer` with its glance, whose file goes."""
    path = _glance(result, folder)
    pixels = np.load(path, allow_pickle=False)
    path.unlink()
    return replace(result, glance=replace(result.glance, pixels=pixels))


def _glance(result: RegionResult, folder: Path) -> Path:
    return folder / f"glance-{result.region.index:05d}-{result.rasters[0].attempt}.npy"


def finish(given: bytes) -> Sent[Any]:
    """Make the outputs of a scene of its regions.

    `given` packs function, what regions left, settings and folder of the outputs, as in `cluster.run_finish`, and
    the files in the exchange place that the function needs, with their bytes.
    """
    function, inferred, spec, folder, names = unpacked(given)
    job: RegionJob = inferred.job
    exchange = job.exchange
    if exchange is None:
        _check_seen(folder)
        return Sent(answer=function(inferred, spec, folder), files={})
    with TemporaryDirectory(prefix=OWN) as own:
        job, folder = replace(job, folder=Path(own) / job.folder.name), Path(own) / folder.name
        job.folder.mkdir()
        folder.mkdir()
        fetch_all(names, exchange, Path(own))
        answer = function(replace(inferred, job=job), spec, folder)
        return Sent(answer=answer, files=_sent(folder, exchange))


def fetch_all(files: Mapping[str, int], exchange: Exchange, folder: Path) -> None:
    """Bring files from the exchange place into a folder; their bytes must be those that were sent."""
    for name, size in files.items():
        exchange.fetch(name, folder / name, size=size)


def check_scene_seen(scene: Scene) -> None:
    """Raise SettingsError when a scene on some disk cannot be seen from this machine."""
    unseen = [file.location for file in scene.files if file.location.is_missing]
    if unseen:
        raise SettingsError(
            f"{unseen[0]}: the worker on {socket.gethostname()} does not see this scene; workers open scenes by "
            "the same path or address as the client: put scenes on a network file system that all machines mount "
            "alike, or name them by s3:// or https://"
        )


def _check_seen(folder: Path) -> None:
    if not folder.is_dir():
        raise SettingsError(
            f"{folder}: the worker on {socket.gethostname()} does not see this folder; write results to one that all "
            "machines see under the same path, or name a place for exchange in distribute.exchange"
        )


def _sent(folder: Path, exchange: Exchange, *, under: str = "") -> dict[str, int]:
    names = {f"{under}{path.name}": path for path in sorted(folder.iterdir()) if path.is_file()}
    return {name: exchange.upload(path, name) for name, path in names.items()}
