"""Several devices: which are meant, and the same result from a process each, whatever becomes of the processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from conftest import MakeScene
from distributed import Client
from support.golden import contents
from support.models import write_checkpoint

from pipeline.config import SegmentSpec
from pipeline.distribute.connect import cluster
from pipeline.distribute.remote_predictor import RemotePredictor
from pipeline.distribute.spec import DistributeSpec
from pipeline.errors import ModelError, SettingsError
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.predictor.compiled import BatchShape
from pipeline.model.predictor.devices import device_environment, resolve_devices
from pipeline.model.predictor.ensemble import EnsemblePredictor
from pipeline.model.predictor.loading import LoadedPredictor
from pipeline.model.predictor.protocol import InferenceSpec, LoadedModel
from pipeline.run.models import load_run_models, on_devices
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene

ROOT = Path(__file__).parents[2]
TWO = SegmentSpec(
    tiling=TilingSpec(tile_size=32, overlap=8),
    inference=InferenceSpec(device="cpu", precision="float32"),
    distribute=DistributeSpec(workers=2, regions=5),
)
ONE = replace(TWO, distribute=DistributeSpec())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


# Which devices are meant


@pytest.mark.parametrize(
    ("device", "meant"),
    [
        ("auto", ("auto",)),
        ("cuda", ("cuda",)),
        ("cuda:0, cuda:1", ("cuda:0", "cuda:1")),
        (("cuda:1", "cuda:0"), ("cuda:1", "cuda:0")),
        (("cuda:1",), ("cuda:1",)),
        ("cuda:all", ("cuda:0", "cuda:1")),
    ],
)
def test_devices_are_a_name_or_several(two_gpus: None, device: Any, meant: tuple[str, ...]) -> None:
    assert resolve_devices(device) == meant


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        ("cuda:0,cuda:0", "cuda:0 is named twice"),
        ("cuda:0,cuda:2", "there is no cuda:2 here, but 2 CUDA"),
        ("cuda:0,cpu", "devices of different types"),
        ("cuda,cuda:1", "each with a number"),
        ("auto,cpu", "each with a number"),
        ("cuda:all,cuda:0", "each with a number"),
        ("mps,mps", "each with a number"),
        ("cpu,", "each with a number"),
        ("cpu,cpu", "set distribute.workers=2"),
        ((), "each with a number"),
    ],
)
def test_devices_that_cannot_share_a_scene_are_refused(two_gpus: None, device: Any, reason: str) -> None:
    with pytest.raises(SettingsError, match=rf"inference\.device = .*{reason}"):
        resolve_devices(device)


def test_all_cuda_devices_of_a_machine_without_any_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(SettingsError, match="there is no CUDA device here"):
        resolve_devices("cuda:all")


@pytest.mark.parametrize(
    ("device", "visible", "seen"),
    [
        ("cuda:1", None, "1"),
        ("cuda:1", "", "1"),
        ("cuda:1", "GPU-a, GPU-b", "GPU-b"),
        ("cuda", "3", None),
        ("cpu", "3", None),
    ],
)
def test_a_worker_sees_its_own_device_only(device: str, visible: str | None, seen: str | None) -> None:
    surroundings = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert device_environment(device, surroundings).get("CUDA_VISIBLE_DEVICES") == seen


# The model of a run


def test_a_model_that_others_run_holds_no_weights_here(model: Path) -> None:
    spec = replace(TWO, distribute=DistributeSpec(scheduler="tcp://127.0.0.1:1"))
    for each in (TWO, spec):
        predictor = load_run_models([model], each)
        assert isinstance(predictor, RemotePredictor)
        assert isinstance(predictor, LoadedModel)
        assert not any(isinstance(value, torch.nn.Module | LoadedPredictor) for value in vars(predictor).values())
    assert isinstance(load_run_models([model], ONE), LoadedPredictor)
    assert isinstance(load_run_models([model, model], TWO), EnsemblePredictor)


def test_a_device_without_a_worker_is_refused_though_others_could_run(model: Path) -> None:
    spec = replace(TWO, inference=InferenceSpec(device="abacus"), distribute=DistributeSpec(scheduler="tcp://a:1"))
    with pytest.raises(SettingsError, match="'abacus' is no device"):
        load_run_models([model], spec)


def test_a_damaged_model_that_others_would_run_is_refused_here(model: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ModelError, match="SHA-256"):
        load_run_models([damaged], TWO)


def test_a_distant_model_can_be_used_here_all_the_same(model: Path) -> None:
    distant, here = RemotePredictor(model, "cpu", precision="float32"), load_run_models([model], ONE)
    tiles = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    assert torch.equal(distant(tiles), here(tiles))
    assert torch.equal(distant.runnable(BatchShape(precision="float32"))(tiles), here(tiles))
    assert distant.check_precision(tiles) == here.check_precision(tiles)


# Where a run goes


def test_one_device_starts_nothing() -> None:
    with on_devices(ONE) as spec:
        assert spec == ONE


@pytest.mark.parametrize(
    ("device", "distribute", "reason"),
    [
        ("cuda:all", DistributeSpec(scheduler="tcp://a:1"), r"names 2 devices, but distribute\.scheduler"),
        ("cpu", DistributeSpec(scheduler="tcp://a:1", workers=2), "has workers of its own"),
        ("cuda", DistributeSpec(scheduler="tcp://a:1", dask_cuda=True), "has workers of its own"),
        ("cuda:all", DistributeSpec(workers=3), "names 2 devices, and each of them gets one process"),
        ("cuda:1", DistributeSpec(workers=2), "share the CPUs, not a device like 'cuda:1'"),
        ("auto", DistributeSpec(workers=2), "share the CPUs, not a device like 'auto'"),
        ("cpu", DistributeSpec(workers=2, dask_cuda=True), r"inference\.device is 'cpu, cpu'"),
        ("cuda", DistributeSpec(workers=1, dask_cuda=True), r"inference\.device is 'cuda'"),
        ("cuda:all", DistributeSpec(dask_cuda=True), "needs the package dask-cuda, which cannot be imported"),
    ],
)
def test_workers_that_cannot_be_are_refused(
    two_gpus: None, device: str, distribute: DistributeSpec, reason: str
) -> None:
    spec = replace(TWO, inference=InferenceSpec(device=device), distribute=distribute)
    with pytest.raises(SettingsError, match=reason), on_devices(spec):
        pass


def test_dask_cuda_starts_a_process_per_device(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    options_used: dict[str, Any] = {}

    class Cluster:
        """Stands for dask-cuda's own."""

        scheduler_address = "tcp://127.0.0.1:7"

        def __init__(self, **options: Any) -> None:
            options_used.update(options)

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            options_used["closed"] = True

    monkeypatch.setitem(sys.modules, "dask_cuda", SimpleNamespace(LocalCUDACluster=Cluster))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    spec = replace(TWO, inference=InferenceSpec(device="cuda:all"), distribute=DistributeSpec(dask_cuda=True))
    with on_devices(spec) as running:
        assert (running.inference.device, running.distribute.scheduler) == ("cuda", "tcp://127.0.0.1:7")
    assert (options_used["CUDA_VISIBLE_DEVICES"], options_used["resources"], options_used["closed"]) == (
        ["4", "6"],
        {"device": 1},
        True,
    )


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[SegmentSpec, Client]]:
    """Settings and a client of two worker processes."""
    spec = replace(TWO, inference=replace(TWO.inference, threads=5), reading=ReadingSpec(threads=3))
    with on_devices(spec) as running, cluster(running.distribute) as client:
        assert client is not None
        yield running, client


def test_the_threads_of_the_machine_are_divided_among_the_processes(two: tuple[SegmentSpec, Client]) -> None:
    spec, client = two
    assert (spec.inference.device, spec.inference.threads, spec.reading.threads) == ("cpu", 2, 1)
    assert spec.result_settings() == TWO.result_settings()
    assert sorted(client.run(os.getenv, "OMP_NUM_THREADS").values()) == ["2", "2"]
    assert [worker["resources"] for worker in client.scheduler_info()["workers"].values()] == [{"device": 1}] * 2


@pytest.mark.slow
def test_two_devices_give_the_bytes_of_one_though_a_process_is_killed(
    two: tuple[SegmentSpec, Client], make_scene: MakeScene, tmp_path: Path, model: Path
) -> None:
    spec, client = two
    scene, before = make_scene(name="town.tif", height=300, width=80), dict(client.run(os.getpid))

    def kill_one(stage: str, done: int, total: int) -> None:
        if stage == "infer" and not killed:
            killed.append(client.run(os.getpid).popitem()[1])
            os.kill(killed[0], signal.SIGKILL)

    killed: list[int] = []
    alone = segment_scene(scene, tmp_path / "one", predictor=load_run_models([model], ONE), spec=ONE)
    both = segment_scene(
        scene, tmp_path / "two", predictor=load_run_models([model], spec), spec=spec, client=client, watch=kill_one
    )
    assert killed[0] in before.values()
    assert contents(both.folder) == contents(alone.folder)
    assert both.inputs.content_key == alone.inputs.content_key


@pytest.mark.slow
def test_workers_end_at_once_though_they_are_busy() -> None:
    """Without help, dask waits 4 s for a thread that nothing can interrupt."""
    with on_devices(TWO) as running, cluster(running.distribute) as client:
        assert client is not None
        workers = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
        busy = client.map(time.sleep, [60, 61])
        left = time.monotonic()
    assert time.monotonic() - left < 4
    assert not any(worker.is_running() for worker in workers)
    assert {future.status for future in busy} == {"cancelled"}


@pytest.mark.slow
def test_worker_processes_end_with_the_process_that_started_them_however_that_ends() -> None:
    code = """
import os, sys
from pipeline.distribute.client import connect
from pipeline.distribute.local_workers import device_workers

with device_workers(["cpu"], threads=1) as scheduler:
    print(*connect(scheduler).run(os.getpid).values(), flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        worker = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
        _, alive = psutil.wait_procs([worker], timeout=120)
    assert not alive
