"""Several scenes in hand: reports in order, one thread for the ledger, one scene inferred while another is finished."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from conftest import MakeScene
from distributed import Client
from support.models import write_checkpoint

from pipeline import segment
from pipeline.catalog.entry import CatalogEntry
from pipeline.config import RunSpec, SegmentSpec
from pipeline.distribute.plan import region_count, scene_count, share_workers
from pipeline.distribute.spec import DistributeSpec
from pipeline.errors import SettingsError, TransientError
from pipeline.inference.tiling.tiles import TilingSpec
from pipeline.model.predictor.loading import LoadedPredictor, load_predictor
from pipeline.model.predictor.protocol import InferenceSpec
from pipeline.results.report import SceneReport
from pipeline.run.concurrent import ConcurrentScenes, RunCancelledError, cancellable
from pipeline.run.scenes import segment_catalog
from pipeline.scene.spec import ReadingSpec

SPEC = SegmentSpec(
    tiling=TilingSpec(tile_size=32, overlap=8),
    reading=ReadingSpec(threads=1),
    inference=InferenceSpec(device="cpu", precision="float32"),
    distribute=DistributeSpec(scenes=2),
    run=RunSpec(retries=0),
)
WAIT_S = 60
"""Far longer than anything takes that does not hang."""


def entries(count: int) -> list[CatalogEntry]:
    return [CatalogEntry(id=f"s{number}", location=f"s{number}.tif") for number in range(count)]


def report(entry: CatalogEntry, status: Any = "done") -> SceneReport:
    return SceneReport(scene=entry.id, location=entry.location, status=status)


@pytest.fixture
def predictor(tmp_path: Path) -> LoadedPredictor:
    return load_predictor(write_checkpoint(tmp_path / "model.safetensors"), "cpu", precision="float32")


def test_reports_come_in_order_though_scenes_end_in_another() -> None:
    later, finished = Event(), []

    def work(entry: CatalogEntry, _: Event) -> str:
        if entry.id == "s0":
            assert later.wait(WAIT_S)
        if entry.id == "s3":
            later.set()
        return threading.current_thread().name

    def settle(entry: CatalogEntry, outcome: str) -> SceneReport:
        assert outcome.startswith("scene")
        assert threading.current_thread() is threading.main_thread()
        finished.append(entry.id)
        return report(entry)

    def begin(entry: CatalogEntry) -> SceneReport | None:
        return report(entry, "quarantined") if entry.id == "s2" else None

    found = [*ConcurrentScenes(begin, work, settle).run(entries(5), max_scenes=2)]
    assert [each.scene for each in found] == ["s0", "s1", "s2", "s3", "s4"]
    assert found[2].status == "quarantined"
    assert finished.index("s0") > finished.index("s1")


def test_no_more_scenes_are_in_progress_than_set() -> None:
    inside, within_limit = threading.Semaphore(3), []

    def work(entry: CatalogEntry, _: Event) -> None:
        within_limit.append(inside.acquire(blocking=False))
        inside.release()

    started: list[str] = []
    hand: ConcurrentScenes[None] = ConcurrentScenes(
        lambda entry: started.append(entry.id), work, lambda entry, _: report(entry)
    )
    assert len([*hand.run(entries(20), max_scenes=3)]) == 20
    assert all(within_limit)
    assert len(started) == 20


@pytest.mark.parametrize("ended", ["closed", "failed"])
def test_scenes_in_progress_end_with_the_run(ended: str) -> None:
    stopped = []

    def work(entry: CatalogEntry, stop: Event) -> None:
        if entry.id == "s0":
            if ended == "failed":
                raise SettingsError("no")
            return
        assert stop.wait(WAIT_S)
        with pytest.raises(RunCancelledError):
            cancellable(None, stop)("infer", 0, 1)
        stopped.append(entry.id)

    hand: ConcurrentScenes[None] = ConcurrentScenes(lambda _: None, work, lambda entry, _: report(entry))
    if ended == "failed":
        with pytest.raises(SettingsError):
            [*hand.run(entries(3), max_scenes=2)]
    else:
        with closing(hand.run(entries(3), max_scenes=2)) as reports:
            assert next(reports).scene == "s0"
    assert stopped == ["s1"]


def test_one_scene_is_inferred_while_another_becomes_polygons(
    threads: Client, make_scene: MakeScene, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inferred = [Event(), Event()]
    started = iter(inferred)
    infer, finish = segment.infer_scene, segment.make_outputs

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = infer(*args, **kwargs)
        next(started).set()
        return result

    monkeypatch.setattr(segment, "infer_scene", noted)
    monkeypatch.setattr(segment, "make_outputs", _Patient(inferred, finish))
    scenes = [CatalogEntry(id=name, location=str(make_scene(name=f"{name}.tif"))) for name in ("a", "b")]
    reports = [*segment_catalog(scenes, tmp_path / "out", predictor=predictor, spec=SPEC, client=threads)]
    assert [(each.scene, each.status) for each in reports] == [("a", "done"), ("b", "done")]


class _Patient:
    """Finishes a scene only when another is inferred too; travels by reference, as threads share it."""

    def __init__(self, inferred: list[Event], finish: Any) -> None:
        global _PATIENT
        _PATIENT = self
        self._inferred, self._finish = inferred, finish

    def __reduce__(self) -> tuple[Any, ...]:
        return _patient, ()

    def __call__(self, *args: Any) -> Any:
        assert all(event.wait(WAIT_S) for event in self._inferred)
        return self._finish(*args)


_PATIENT: Any = None


def _patient() -> Any:
    return _PATIENT


def test_scenes_of_a_cluster_fail_alone_and_in_their_place(
    threads: Client, make_scene: MakeScene, predictor: LoadedPredictor, tmp_path: Path
) -> None:
    scenes = [CatalogEntry(id=name, location=str(make_scene(name=f"{name}.tif"))) for name in ("a", "b", "c")]
    Path(scenes[1].location).write_bytes(b"II*\0 no TIFF")
    run = segment_catalog(scenes, tmp_path / "out", predictor=predictor, spec=SPEC, client=threads)
    assert [(each.scene, each.status) for each in run] == [("a", "done"), ("b", "failed"), ("c", "done")]


def test_a_stopped_scene_resumes_in_the_next_run(
    threads: Client, make_scene: MakeScene, predictor: LoadedPredictor, tmp_path: Path
) -> None:
    stop, spec = Event(), replace(SPEC, distribute=DistributeSpec(regions=3))
    scene = make_scene(name="town.tif", height=200)

    def press(stage: str, done: int, total: int) -> None:
        if done:
            stop.set()

    with pytest.raises(RunCancelledError):
        segment.segment_scene(
            scene, tmp_path, predictor=predictor, spec=spec, client=threads, watch=cancellable(press, stop)
        )
    report = segment.segment_scene(scene, tmp_path, predictor=predictor, spec=spec, client=threads)
    assert report.statistics.reused[0].endswith("of 3 regions")


def test_a_run_ends_when_its_cluster_is_lost(
    threads: Client, predictor: LoadedPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.run.scenes.is_lost", lambda _: True)
    run = segment_catalog(entries(3), tmp_path / "out", predictor=predictor, spec=SPEC, client=threads)
    with pytest.raises(TransientError, match=r"the run ends here, since its cluster is lost: .*s\d\.tif: no such file"):
        next(run)


def test_errors_of_a_stopped_run_are_neither_retried_nor_logged(
    threads: Client,
    predictor: LoadedPredictor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An impatient second Ctrl-C closes the cluster while scenes are still at it."""
    tried: list[str] = []

    def segment_entry(entry: CatalogEntry, *_: Any, progress: Any, **__: Any) -> SceneReport:
        tried.append(entry.id)
        while entry.id != "s0":
            try:
                progress("infer", 0, 1)
            except RunCancelledError:
                raise TransientError("the client is closed") from None
            time.sleep(0.01)
        return report(entry)

    monkeypatch.setattr("pipeline.run.scenes.segment_entry", segment_entry)
    spec = replace(SPEC, run=RunSpec(retries=3))
    with closing(segment_catalog(entries(3), tmp_path, predictor=predictor, spec=spec, client=threads)) as run:
        assert next(run).scene == "s0"
    assert tried.count("s1") == 1
    assert "trying again" not in caplog.text


class FakeClient:
    """A scheduler with so many workers, of which some have a device."""

    status = "running"

    def __init__(self, workers: int, devices: int = 0) -> None:
        self._resources = [{"device": 1.0}] * devices + [{}] * (workers - devices)

    def scheduler_info(self, n_workers: int) -> dict[str, object]:
        workers = {number: {"resources": each, "nthreads": 2} for number, each in enumerate(self._resources)}
        return {"workers": workers}


@pytest.mark.parametrize(
    ("client", "scenes_setting", "scenes", "expected"),
    [
        (None, 0, 9, 1),
        (None, 4, 9, 1),
        (FakeClient(1), 0, 9, 3),
        (FakeClient(8), 0, 100, 17),
        (FakeClient(8), 0, 3, 3),
        (FakeClient(8), 2, 100, 2),
        (FakeClient(8, devices=2), 0, 100, 17),
        (FakeClient(8), 0, 0, 1),
    ],
    ids=lambda value: "here" if value is None else type(value).__name__ if isinstance(value, FakeClient) else None,
)
def test_one_scene_more_is_in_progress_than_workers_have_threads(
    client: Any, scenes_setting: int, scenes: int, expected: int
) -> None:
    assert scene_count(DistributeSpec(scenes=scenes_setting), client, scenes) == expected


def test_the_settings_of_each_scene_hold_the_number_of_concurrent_scenes() -> None:
    client: Any = FakeClient(8)
    assert share_workers(DistributeSpec(regions=7), client, 100) == (17, DistributeSpec(regions=7, scenes=17))
    assert share_workers(DistributeSpec(), client, 100, max_scenes=4) == (4, DistributeSpec(scenes=4))


@pytest.mark.parametrize(
    ("tile_rows", "workers", "scenes", "regions"),
    [
        (25, 1, 1, 1),
        (999, 1, 1, 1),
        (25, 2, 1, 2),
        (63, 2, 1, 2),
        (64, 2, 1, 4),
        (25, 8, 0, 8),
        (25, 8, 3, 3),
        (96, 8, 3, 6),
        (96, 8, 8, 1),
        (999, 8, 17, 1),
    ],
)
def test_a_worker_has_one_region_to_do_and_two_of_scenes_with_rows_to_spare(
    tile_rows: int, workers: int, scenes: int, regions: int
) -> None:
    assert region_count(tile_rows, workers, scenes) == regions
