"""Regions on a cluster: the same result, the same errors, and no waiting for nobody."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import geopandas
import numpy as np
import pytest
import shapely
from conftest import MakeScene
from distributed import Client, LocalCluster
from numpy.typing import NDArray
from support.golden import contents
from support.models import ROOF, brightness, write_checkpoint

from pipeline.config import SegmentSpec
from pipeline.distribute import client as distribute_client
from pipeline.distribute import executor as executors
from pipeline.distribute import plan as distribute_plan
from pipeline.distribute.cluster_executor import ClusterExecutor
from pipeline.distribute.connect import cluster
from pipeline.distribute.local_workers import device_workers
from pipeline.distribute.remote_predictor import RemotePredictor
from pipeline.distribute.spec import DistributeSpec
from pipeline.errors import DamagedSceneError, ModelError, ScenemillError, SettingsError, TransientError
from pipeline.inference.region.job import RegionJob, RegionResult
from pipeline.inference.region.run import infer_region
from pipeline.inference.tiling.regions import Region
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.scene.describe import describe_scene
from pipeline.scene.spec import ReadingSpec
from pipeline.segment import segment_scene

SPEC = SegmentSpec(
    tiling=TilingSpec(tile_size=32, overlap=8),
    reading=ReadingSpec(threads=1),
    distribute=DistributeSpec(regions=5),
)


@pytest.fixture
def scene(make_scene: MakeScene) -> Path:
    return make_scene(name="town.tif", bands=1, descriptions=["red"], height=200, nodata=0)


def test_a_negative_number_of_regions_is_refused() -> None:
    with pytest.raises(SettingsError, match="regions must be at least 0, not -1"):
        DistributeSpec(regions=-1)


# Reaching a cluster


def test_without_a_scheduler_there_is_no_client() -> None:
    with cluster(DistributeSpec()) as client:
        assert client is None


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://nobody.invalid:8786"])
def test_a_missing_scheduler_is_reported_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribute_client, "CONNECT_TIMEOUT_S", 120)
    start = time.monotonic()
    with (
        pytest.raises(TransientError, match=f"no dask scheduler with a worker at {address}"),
        cluster(DistributeSpec(scheduler=address)),
    ):
        pass
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("address", ["nonsense", "10.0.0.5:8786", "gopher://10.0.0.5:8786", "", "tcp://10.0.0.5"])
def test_an_address_must_name_protocol_and_port(address: str) -> None:
    with (
        pytest.raises(SettingsError, match="must be an address like tcp"),
        cluster(DistributeSpec(scheduler=address)),
    ):
        pass


def test_a_scheduler_without_workers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distribute_client, "CONNECT_TIMEOUT_S", 1)
    with LocalCluster(n_workers=0, processes=False, protocol="tcp://", dashboard_address=":0") as local:
        address = local.scheduler_address
        with pytest.raises(TransientError, match="it has no worker"), cluster(DistributeSpec(scheduler=address)):
            pass


# On a cluster


@pytest.mark.parametrize("restricted", [False, True])
def test_a_cluster_gives_the_same_bytes_as_this_process(
    threads: Client, scene: Path, tmp_path: Path, restricted: bool
) -> None:
    updates: list[int] = []
    spot = shapely.Point(500_015, 5_399_940).buffer(20)
    geopandas.GeoSeries([spot], crs="EPSG:32633").to_file(tmp_path / "spot.gpkg")
    spec = replace(SPEC, area=str(tmp_path / "spot.gpkg") if restricted else None)
    here = segment_scene(scene, tmp_path / "here", predictor=brightness, card=ROOF, spec=spec)
    there = segment_scene(
        scene, tmp_path / "there", predictor=brightness, card=ROOF, spec=spec, client=threads,
        watch=lambda stage, done, total: updates.append(done) if stage == "infer" and done else None,
    )  # fmt: skip
    assert contents(Path(here.folder)) == contents(Path(there.folder))
    one, two = (replace(each, folder="", statistics=replace(each.statistics, seconds={})) for each in (there, here))
    assert one == two
    assert (len(updates), updates[-1]) == (5, 200 * 50)
    assert restricted == (there.inputs.area_share < 1)


def test_regions_on_a_cluster_have_no_more_pixels_than_a_kill_may_cost(
    threads: Client, scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    updates: list[int] = []
    monkeypatch.setattr(distribute_plan, "PART_PIXELS_ON_DEVICE", 200 * 50 // 3)
    spec = replace(SPEC, distribute=DistributeSpec())
    segment_scene(
        scene, tmp_path, predictor=brightness, card=ROOF, spec=spec, client=threads,
        watch=lambda stage, done, _: updates.append(done) if stage == "infer" and done not in updates[-1:] else None,
    )  # fmt: skip
    assert len([done for done in updates if done]) == 4
    assert updates[-1] == 200 * 50


def test_a_second_attempt_of_a_lost_region_disturbs_nothing(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = segment_scene(scene, tmp_path / "calm", predictor=brightness, card=ROOF, spec=SPEC)

    def twice(job: RegionJob, stack: Sequence[Region], *args: Any) -> Iterator[RegionResult]:
        for region in stack:
            yield infer_region(job, region, *args)
            with pytest.raises(ZeroDivisionError):
                infer_region(job, region, _internal_error)

    monkeypatch.setattr(executors, "infer_stack", twice)
    report = segment_scene(scene, tmp_path / "twice", predictor=brightness, card=ROOF, spec=SPEC)
    assert contents(Path(report.folder)) == contents(Path(calm.folder))


def test_a_checkpoint_is_loaded_by_the_worker_from_its_path(
    threads: Client, make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.model.predictor import loading as predictors

    model = write_checkpoint(tmp_path / "m.safetensors")
    predictor = load_predictor(model, "cpu", precision="float32")
    loaded: list[Path] = []

    def load(path: Path, *args: Any, **kwargs: Any) -> LoadedPredictor:
        loaded.append(Path(path))
        return load_predictor(path, *args, **kwargs)

    monkeypatch.setattr(predictors, "load_predictor", load)
    report = segment_scene(make_scene(height=200), tmp_path, predictor=predictor, spec=SPEC, client=threads)
    assert report.status == "done"
    assert loaded == [model]


def test_a_device_runs_one_region_at_a_time(threads: Client, scene: Path, tmp_path: Path) -> None:
    inside, exclusive = threading.Semaphore(1), []

    class Busy:
        """Notices when two regions are in it at once; travels by reference, as threads share it."""

        def __reduce__(self) -> tuple[Any, ...]:
            return _busy, ()

        def __call__(self, tiles: NDArray[Any]) -> NDArray[Any]:
            alone = inside.acquire(blocking=False)
            exclusive.append(alone)
            time.sleep(0.002)
            if alone:
                inside.release()
            return tiles / 255

    global _BUSY
    _BUSY = Busy()
    segment_scene(scene, tmp_path, predictor=_BUSY, card=ROOF, spec=SPEC, client=threads)
    assert len(exclusive) > 10
    assert all(exclusive)


_BUSY: Any = None


def _busy() -> Any:
    return _BUSY


def _not_probabilities(tiles: NDArray[Any]) -> NDArray[Any]:
    return tiles


def _out_of_disk(tiles: NDArray[Any]) -> NDArray[Any]:
    raise TransientError("the disk is full")


def _internal_error(tiles: NDArray[Any]) -> NDArray[Any]:
    raise ZeroDivisionError("oops")


@pytest.mark.parametrize(
    ("predictor", "error", "reason"),
    [
        (_not_probabilities, ModelError, "outputs='logits'"),
        (_out_of_disk, TransientError, "the disk is full"),
        (_internal_error, ZeroDivisionError, "oops"),
    ],
)
def test_an_exception_of_a_region_is_raised_in_the_client(
    threads: Client, scene: Path, tmp_path: Path, predictor: Any, error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason) as caught:
        segment_scene(scene, tmp_path / "out", predictor=predictor, card=ROOF, spec=SPEC, client=threads)
    assert type(caught.value) is error
    assert [*(tmp_path / "out").iterdir()] == []


def test_damage_found_by_a_worker_is_reported_like_local_damage(
    threads: Client, make_scene: MakeScene, tmp_path: Path
) -> None:
    scene = make_scene(
        name="town.tif", bands=1, descriptions=["red"], height=200, width=64, tiled=16, compress="deflate"
    )
    scene.write_bytes(scene.read_bytes()[:-3000] + b"\xff" * 3000)
    messages = []
    for client in (None, threads):
        with pytest.raises(DamagedSceneError) as caught:
            segment_scene(scene, tmp_path / "out", predictor=brightness, card=ROOF, spec=SPEC, client=client)
        messages.append(str(caught.value))
    assert str(scene) in messages[1]
    assert messages[0].split(":")[0] == messages[1].split(":")[0]


def test_a_data_error_is_not_retried(threads: Client, scene: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"

    def refuse(tiles: NDArray[Any]) -> NDArray[Any]:
        with calls.open("a") as file:
            file.write("x")
        raise ModelError("never")

    spec = replace(SPEC, distribute=DistributeSpec(regions=1))
    with pytest.raises(ModelError, match="never"):
        segment_scene(scene, tmp_path / "out", predictor=refuse, card=ROOF, spec=spec, client=threads)
    assert calls.read_text() == "x"


def test_a_cluster_without_any_worker_left_is_an_error(
    scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distribute_client, "CONNECT_TIMEOUT_S", 1)
    monkeypatch.setattr(distribute_client, "NO_WORKERS_TIMEOUT_S", 2)
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as local,
        Client(local, set_as_default=False) as client,
        pytest.raises(TransientError, match="no worker for 2 s"),
    ):
        segment_scene(scene, tmp_path / "out", predictor=brightness, card=ROOF, spec=SPEC, client=client)
    assert [*(tmp_path / "out").iterdir()] == []


@pytest.fixture(scope="module")
def processes() -> Iterator[Callable[[], Client]]:
    """Clients of two worker processes, reached by the address of their scheduler as `--scheduler` does.

    A task may kill one worker, not three, before it is given up: a new process takes seconds.
    """
    patient = dask.config.set({"distributed.scheduler.allowed-failures": 1})
    with patient, device_workers(["cpu", "cpu"], threads=1) as scheduler:
        yield lambda: cluster(DistributeSpec(scheduler=scheduler))


@pytest.mark.slow
def test_the_loss_of_a_worker_costs_nothing_but_time(processes: Any, scene: Path, tmp_path: Path) -> None:
    mark = tmp_path / "killed"

    def once(tiles: NDArray[Any]) -> NDArray[Any]:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return tiles / 255

    calm = segment_scene(scene, tmp_path / "calm", predictor=brightness, card=ROOF, spec=SPEC)
    with processes() as client:
        report = segment_scene(scene, tmp_path / "killed_once", predictor=once, card=ROOF, spec=SPEC, client=client)
    assert mark.exists()
    assert contents(Path(report.folder)) == contents(Path(calm.folder))


@pytest.mark.slow
def test_a_region_that_kills_every_worker_is_distinguished_from_its_neighbours(
    processes: Any, make_scene: MakeScene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.full((1, 200, 50), 100, np.uint8)
    pixels[:, 180:] = 255
    scene = make_scene(pixels, name="town.tif", descriptions=["red"])

    def poisoned(tiles: NDArray[Any]) -> NDArray[Any]:
        if tiles.max() == 255:
            os.kill(os.getpid(), signal.SIGKILL)
        return tiles / 255

    spec = replace(SPEC, distribute=DistributeSpec(regions=3))
    with processes() as client:
        with pytest.raises(
            TransientError, match=r"town\.tif: the region of rows \d+ to 199, .* killed its workers"
        ) as caught:
            segment_scene(scene, tmp_path / "out", predictor=poisoned, card=ROOF, spec=spec, client=client)
        assert isinstance(caught.value, ScenemillError)
        assert "is tried again alone" in caplog.text
        assert [*(tmp_path / "out").iterdir()] == []
        report = segment_scene(scene, tmp_path / "out", predictor=brightness, card=ROOF, spec=spec, client=client)
        assert report.status == "done"


class Fatal(RemotePredictor):
    """A model too large for the memory of any worker."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _die, ()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_a_model_that_kills_its_workers_is_a_transient_error(processes: Any, scene: Path, tmp_path: Path) -> None:
    fatal = Fatal(write_checkpoint(tmp_path / "m.safetensors"), "cpu", precision="float32")
    with processes() as client, pytest.raises(TransientError, match="loading the model killed its workers repeatedly"):
        ClusterExecutor(client).identity(fatal, describe_scene(scene))


def test_the_identity_of_a_result_is_that_of_the_workers(threads: Client, scene: Path, tmp_path: Path) -> None:
    predictor = load_predictor(write_checkpoint(tmp_path / "model.safetensors"), "cpu", precision="float32")
    executor, described = ClusterExecutor(threads), describe_scene(scene)
    assert executor.identity(predictor, described) == predictor.identity
    assert executor.identity(brightness, described) is None


def test_a_worker_that_runs_the_model_in_another_way_is_refused(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene(name="town.tif", descriptions=["red", "green", "blue"])
    predictor = load_predictor(write_checkpoint(tmp_path / "model.safetensors"), "cpu", precision="float32")
    monkeypatch.setattr(executors.LocalExecutor, "identity", lambda *_: f"{predictor.sha256} torch.float16 cuda")
    with pytest.raises(ModelError, match=r"in different ways.*name inference\.precision"):
        segment_scene(scene, tmp_path / "out", predictor=predictor, spec=SPEC)
    assert not (tmp_path / "out" / "town").exists()
