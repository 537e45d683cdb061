"""The flows: every scene is run, transient errors are retried, and the run reports the result of each scene."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import geopandas
import httpx
import pytest
import rasterio
import shapely
import yaml
from conftest import MakeScene
from prefect import Flow, task_runners
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.concurrency.sync import concurrency
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed
from prefect.utilities.schema_tools.validation import validate
from support.models import write_checkpoint, write_damaged
from support.webhook import webhook

import pipeline.inference.region.run
from benchmarks.prefect_server import ROOT
from flows import artifacts
from flows import tasks as flow_tasks
from flows.command_line import segment_command
from flows.concurrency import LOCAL_CONCURRENCY, run_scenes
from flows.device_limits import MACHINE, hold_devices
from flows.hooks import WEBHOOK, notify_end
from flows.model_cache import load_model
from flows.segment import segment_catalog
from flows.summaries import ScenesFailedError
from pipeline.catalog.entry import CatalogEntry
from pipeline.cli import main
from pipeline.config import RunSpec, SegmentSpec
from pipeline.errors import ModelError, SceneError, SettingsError, TransientError
from pipeline.model.predictor.protocol import InferenceSpec
from pipeline.results.report import SceneReport
from pipeline.run.concurrent import cancellable
from pipeline.run.ledger import RunLedger
from pipeline.run.quarantine import Quarantine

pytestmark = pytest.mark.usefixtures("ephemeral")
SETTINGS = {"tiling": {"tile_size": 32, "overlap": 8}, "reading": {"threads": 1}, "inference": {"device": "cpu"}}

from_command_line = segment_command(segment_catalog)


def test_a_damaged_scene_fails_the_run_and_stops_no_other_scene(
    make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    scenes = [make_scene(name="a.tif"), write_damaged(tmp_path / "b.tif"), make_scene(name="c.tif", seed=1)]
    out = tmp_path / "out"
    state = segment_catalog([str(s) for s in scenes], model, str(out), SETTINGS, return_state=True)
    assert state.is_failed()
    assert state.message is not None
    assert state.message.startswith("1 of 3 scenes failed: b: ")
    error = state.result(raise_on_failure=False)
    assert isinstance(error, ScenesFailedError)
    assert [(r.scene, r.status) for r in error.reports] == [("a", "done"), ("b", "failed"), ("c", "done")]
    assert {path.name for path in out.iterdir()} == {"a", "c", "run.json", "quarantine.json", "collection.json"}
    run = json.loads((out / "run.json").read_text())
    assert run["counts"] == {"done": 2, "skipped": 0, "failed": 1, "quarantined": 0, "not run": 0}
    assert str(scenes[1]) in run["scenes"][1]["reason"]
    rows = _artifact_rows()
    assert [(row["scene"], row["status"]) for row in rows] == [("a", "done"), ("b", "failed"), ("c", "done")]
    assert rows[1]["reason"] == error.reports[1].reason


def _artifact_rows() -> list[dict[str, Any]]:
    """The summary of the last run, as the server keeps it."""
    with get_client(sync_client=True) as client:
        wanted = {"artifacts": {"key": {"any_": ["segment-catalog"]}}}
        artifacts = client.request("POST", "/artifacts/latest/filter", json=wanted).json()
    rows: list[dict[str, Any]] = json.loads(artifacts[0]["data"])
    return rows


def test_a_run_again_skips_what_is_done_and_completes(make_scene: MakeScene, tmp_path: Path, model: str) -> None:
    scene, out = make_scene(name="a.tif"), str(tmp_path / "out")
    first = segment_catalog([str(scene)], model, out, {**SETTINGS, "merge": {"into": "gpkg"}})
    again = segment_catalog([str(scene)], model, out, SETTINGS)
    assert [report.status for report in (*first, *again)] == ["done", "skipped"]
    alone = Path(out) / "a" / "polygons.gpkg"
    merged, expected = (geopandas.read_file(path, layer="polygons") for path in (Path(out) / "polygons.gpkg", alone))
    assert len(merged) == len(expected) > 0


def test_the_scenes_of_a_run_share_one_thread_for_each_that_is_concurrent(
    make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A larger pool starts another thread each time a scene is submitted before the last one's thread is free again."""
    sizes: set[int] = set()

    class Pool(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            sizes.add(self._max_workers)
            return super().submit(*args, **kwargs)

    monkeypatch.setattr(task_runners, "ThreadPoolExecutor", Pool)
    assert segment_catalog([str(make_scene())], model, str(tmp_path / "out"), SETTINGS)[0].status == "done"
    assert sizes == {LOCAL_CONCURRENCY}


def test_a_table_of_scenes_is_a_catalog_of_the_flow_too(make_scene: MakeScene, tmp_path: Path, model: str) -> None:
    make_scene(name="a.tif")
    index, out = tmp_path / "scenes.csv", str(tmp_path / "out")
    index.write_text("path\na.tif\n../b.tif\n")
    with pytest.raises(ScenesFailedError, match=r"1 of 2 scenes failed: .*line 3: .* leads out of") as caught:
        segment_catalog([str(index)], model, out, SETTINGS)
    assert [report.status for report in caught.value.reports] == ["done", "failed"]
    nowhere = {**SETTINGS, "catalog": {"bbox": [0, 0, 1, 1]}}
    index.write_text("path\na.tif\n")
    assert segment_catalog([str(index)], model, out, nowhere) == []


def test_transient_errors_are_retried_and_bad_data_is_not(
    make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = {"shaky": 0, "bad": 0, "hopeless": 0}

    def segment_entry(entry: Any, *args: Any, **kwargs: Any) -> SceneReport:
        tries[entry.id] += 1
        if entry.id == "bad":
            raise SceneError("no CRS")
        if entry.id == "hopeless" or tries[entry.id] < 3:
            raise TransientError("the disk is away")
        return SceneReport(scene=entry.id, location=entry.location, status="done")

    monkeypatch.setattr(flow_tasks, "segment_entry", segment_entry)
    settings = {**SETTINGS, "run": {"retries": 2, "retry_delay_s": 0}}
    scenes = [str(make_scene(name=f"{name}.tif")) for name in tries]
    with pytest.raises(ScenesFailedError, match="2 of 3 scenes failed: bad: no CRS; hopeless: the disk") as caught:
        segment_catalog(scenes, model, str(tmp_path / "out"), settings)
    assert [report.status for report in caught.value.reports] == ["done", "failed", "failed"]
    assert tries == {"shaky": 3, "bad": 1, "hopeless": 3}


def test_a_quarantined_scene_is_left_alone_by_the_next_run_which_completes(
    make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    scenes, out = [str(make_scene(name="a.tif")), str(write_damaged(tmp_path / "b.tif"))], str(tmp_path / "out")
    assert segment_catalog(scenes, model, out, SETTINGS, return_state=True).is_failed()
    state = segment_catalog(scenes, model, out, SETTINGS, return_state=True)
    assert (state.is_completed(), state.message) == (True, "2 scenes, 1 quarantined")
    assert [report.status for report in state.result()] == ["skipped", "quarantined"]
    tried = segment_catalog(scenes, model, out, SETTINGS, retry_quarantined=True, return_state=True)
    assert tried.is_failed()


def test_a_hopeless_run_is_ended_and_the_scenes_in_progress_are_finished(
    make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = {name: Event() for name in "abcdef"}

    def segment_entry(entry: Any, *args: Any, **kwargs: Any) -> SceneReport:
        started[entry.id].set()
        if entry.id == "a":
            started["b"].wait(60)
            raise SceneError("no CRS")
        return SceneReport(scene=entry.id, location=entry.location, status="done")

    monkeypatch.setattr(flow_tasks, "segment_entry", segment_entry)
    scenes, out = [str(make_scene(name=f"{name}.tif")) for name in started], tmp_path / "out"
    with pytest.raises(ScenesFailedError, match=r"1 of 6 scenes failed, \d not run: a: no CRS") as caught:
        segment_catalog(scenes, model, str(out), SETTINGS, max_failures=1)
    statuses = {report.scene: report.status for report in caught.value.reports}
    assert {name: statuses[name] for name in "ab"} == {"a": "failed", "b": "done"}
    assert all((statuses[name] == "done") == event.is_set() for name, event in started.items() if name != "a")
    assert sum(json.loads((out / "run.json").read_text())["counts"].values()) == 6


def test_a_cancelled_run_cancels_the_scenes_in_progress_and_records_the_run(tmp_path: Path) -> None:
    """Cancelling raises in the flow's own thread; here while the fourth scene is submitted.

    Of the scenes in progress then, the second finishes and the third is cancelled.
    """
    entries = [CatalogEntry(id=name, location=str(tmp_path / f"{name}.tif")) for name in "abcde"]
    records: list[dict[str, int]] = []
    gates = {entry.id: Event() for entry in entries}
    gates["a"].set()

    class Future:
        def __init__(self, entry: CatalogEntry, stop: Event) -> None:
            self.entry, self.stop, self.state = entry, stop, self

        def is_cancelled(self) -> bool:
            return self.stop.is_set() and self.entry.id == "c"

        def wait(self) -> None:
            if not gates[self.entry.id].is_set():  # the run was cancelled, and this scene is still in progress
                assert self.stop.is_set()
                records.append(json.loads((tmp_path / "run.json").read_text())["counts"])

        def result(self, raise_on_failure: bool) -> SceneReport:
            return SceneReport(scene=self.entry.id, location=self.entry.location, status="done")

        def add_done_callback(self, callback: Callable[[Any], None]) -> None:
            if gates[self.entry.id].is_set():
                callback(self)

    def submit(entry: CatalogEntry, stop: Event) -> Any:
        assert not stop.is_set()
        if entry.id == "d":
            raise KeyboardInterrupt
        return Future(entry, stop)

    quarantine = Quarantine(tmp_path, inputs="", drivers=())
    ledger = RunLedger(entries, tmp_path, spec=RunSpec(), quarantine=quarantine)
    with pytest.raises(KeyboardInterrupt):
        run_scenes(ledger, entries, submit, max_concurrent=3)
    assert records == [{"done": 1, "skipped": 0, "failed": 0, "quarantined": 0, "not run": 4}] * 2
    assert [report.status for report in ledger.reports] == ["done", "done", "not run", "not run", "not run"]


def test_a_scene_stops_with_its_run_at_the_next_strip_and_resumes_in_the_next_run(
    make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run gets a signal when the sixth of ten strips is done."""
    stops: list[Event] = []
    strips: list[int] = []

    def record_stop(progress: Any, stop: Event) -> Any:
        stops.append(stop)
        return cancellable(progress, stop)

    def to_levels(*given: Any) -> Any:
        strips.append(1)
        if len(strips) == 6:
            os.kill(os.getpid(), signal.SIGINT)
            assert stops[0].wait(60)
        return levels(*given)

    levels = pipeline.inference.blend.to_levels
    scene, out = str(make_scene(name="a.tif", height=240, width=30)), tmp_path / "out"
    settings = {**SETTINGS, "distribute": {"regions": 5}}
    with monkeypatch.context() as patched:
        patched.setattr(pipeline.inference.region.run, "to_levels", to_levels)
        patched.setattr(flow_tasks, "cancellable", record_stop)
        with pytest.raises(KeyboardInterrupt):
            segment_catalog([scene], model, str(out), settings)
    counts = json.loads((out / "run.json").read_text())["counts"]
    assert (len(strips), counts["not run"], sum(counts.values())) == (6, 1, 1)
    with get_client(sync_client=True) as client:
        wanted = {"sort": "EXPECTED_START_TIME_DESC", "limit": 1}
        (task,) = client.request("POST", "/task_runs/filter", json=wanted).json()
    assert (task["name"], task["state"]["type"]) == ("a", "CANCELLED")
    (report,) = segment_catalog([scene], model, str(out), settings)
    assert report.statistics.reused == ["2 of 5 regions"]


def test_a_webhook_receives_how_a_run_ended_and_its_address_is_not_logged(
    tmp_path: Path,
    model: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    received: list[dict[str, Any]] = []
    with webhook(received=received) as address:
        monkeypatch.setenv(WEBHOOK, address)
        out, damaged = str(tmp_path / "out"), str(write_damaged(tmp_path / "b.tif"))
        state = segment_catalog([damaged], model, out, SETTINGS, return_state=True)
        segment_catalog([damaged], model, out, SETTINGS)
    assert [(each["flow"], each["state"], each["run"]) for each in received] == [
        ("segment-catalog", end, f"{damaged} into {out}") for end in ("Failed", "Completed")
    ]
    assert received[0]["message"] == state.message
    assert received[0]["text"] == f"segment-catalog, {damaged} into {out}: Failed. {state.message}"
    assert "token" not in caplog.text


@pytest.mark.parametrize("failure", ["refuses", "is not there", "is a file", "is nonsense"])
def test_a_webhook_that_fails_changes_no_run(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    flow: Flow[Any, Any] = segment_catalog
    with webhook(received=[], status=500) as address:
        addresses = {
            "refuses": address,
            "is not there": "http://127.0.0.1:1/secret",
            "is a file": f"file://{tmp_path}/secret",
            "is nonsense": "http://[secret",
        }
        monkeypatch.setenv(WEBHOOK, addresses[failure])
        notify_end(flow, FlowRun(name="mine", flow_id="00000000-0000-4000-8000-000000000000"), Failed(message="why"))
    assert f"the webhook of {WEBHOOK}" in caplog.text
    assert "secret" not in caplog.text


def test_a_device_serves_one_run_at_a_time_and_one_without_a_server_at_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MACHINE, "mill")
    name = "scenemill-mill-cpu"
    for _ in range(2):  # a limit is created once, and left alone when it is there
        with hold_devices("cpu"), pytest.raises(TimeoutError), concurrency(name, timeout_seconds=0.1):
            pass
    with hold_devices("cpu", scheduler="tcp://127.0.0.1:1"), concurrency(name, timeout_seconds=60):
        pass
    with concurrency(name), temporary_settings(restore_defaults={PREFECT_API_URL}), hold_devices("cpu"):
        pass


def test_a_slot_that_cannot_be_given_back_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def lost(*names: object, **options: object) -> Iterator[None]:
        yield
        raise httpx.ConnectError("gone")

    monkeypatch.setattr("flows.device_limits.concurrency", lost)
    with hold_devices("cpu"):
        pass
    with pytest.raises(SceneError, match="as it was"), hold_devices("cpu"):
        raise SceneError("as it was")


def test_a_server_that_goes_away_costs_pictures_and_no_result(
    make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []

    def unreachable(**given: object) -> None:
        keys.append(str(given.get("key", given.get("artifact_id"))))
        raise httpx.ConnectError("gone")

    monkeypatch.setattr(artifacts, "create_table_artifact", unreachable)
    monkeypatch.setattr(artifacts, "update_progress_artifact", unreachable)
    scenes = [str(make_scene(name=f"{name}.tif")) for name in "abc"]
    assert len(segment_catalog(scenes, model, str(tmp_path / "out"), SETTINGS)) == 3
    assert len(keys) == 2  # the progress once, though three scenes were settled, and the table


def test_long_runs_have_pages_of_bounded_size(
    make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "MAX_SCENE_PAGES", 1)
    monkeypatch.setattr(artifacts, "MAX_ROWS", 2)
    scenes = [str(make_scene(name="a.tif", height=300, width=400)), str(make_scene(name="b.tif"))]
    scenes += [str(write_damaged(tmp_path / "c.tif"))]
    state = segment_catalog(scenes, model, str(tmp_path / "out"), SETTINGS, return_state=True)
    with get_client(sync_client=True) as client:
        shown = client.request(
            "POST", "/artifacts/filter", json={"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}
        ).json()
    cards = [each for each in shown if each["type"] == "markdown"]
    (table,) = (each for each in shown if each["type"] == "table")
    assert len(cards) == 1
    assert len(cards[0]["data"]) < 40_000
    assert [row["scene"] for row in json.loads(table["data"])] == ["c", "a"]
    assert table["description"].endswith("2 done, 1 failed; 1 more in run.json")


def test_a_model_that_vanishes_during_a_run_is_no_data_error(tmp_path: Path) -> None:
    entry = CatalogEntry(id="a", location=str(tmp_path / "a.tif"))
    with pytest.raises(TransientError, match=r"no such checkpoint .* it was valid when the run started"):
        flow_tasks.segment_one.fn(entry, str(tmp_path / "gone.safetensors"), str(tmp_path), SegmentSpec(), Event())


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"settings": {"tilling": {}}}, SettingsError, "did you mean tiling"),
        ({"settings": {"tiling": {"tile_size": 33}}}, SettingsError, "multiple of 4"),
        ({"scenes": ["nowhere/*.tif"]}, SettingsError, "matches no file"),
        ({"device": "abacus"}, SettingsError, "abacus"),
        ({"device": "cpu,cuda:0"}, SettingsError, "different types"),
        ({"model": "nowhere.safetensors"}, ModelError, "no such checkpoint"),
        ({"model": []}, SettingsError, "no model is named"),
    ],
    ids=["unknown key", "tile size", "no scene", "device", "devices", "model", "no model"],
)
def test_wrong_settings_fail_before_any_scene(
    make_scene: MakeScene, tmp_path: Path, model: str, change: dict[str, Any], error: Any, reason: str
) -> None:
    given = {"scenes": [str(make_scene())], "model": model, "out": str(tmp_path / "out"), "settings": SETTINGS}
    state: Any = segment_catalog(**{**given, **change}, return_state=True)
    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), error)
    assert reason in state.message
    assert not (tmp_path / "out").exists()


def test_a_run_asks_the_cluster_that_the_settings_name(make_scene: MakeScene, tmp_path: Path, model: str) -> None:
    settings = {**SETTINGS, "distribute": {"scheduler": "tcp://127.0.0.1:1"}, "run": {"retries": 0}}
    with pytest.raises(TransientError, match=r"no dask scheduler .* at tcp://127.0.0.1:1"):
        segment_catalog([str(make_scene())], model, str(tmp_path / "out"), settings)


@pytest.mark.slow
def test_scenes_share_the_processes_of_several_devices_and_several_models(
    make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    models = [model, str(write_checkpoint(tmp_path / "other.safetensors", seed=1))]
    scenes = [str(make_scene(name=f"{name}.tif", height=100, seed=seed)) for seed, name in enumerate("ab")]
    one = segment_catalog(scenes, models, str(tmp_path / "one"), SETTINGS)
    two = segment_catalog(scenes, models, str(tmp_path / "two"), {**SETTINGS, "distribute": {"workers": 2}})
    assert [report.inputs.passes for report in (*one, *two)] == [2, 2, 2, 2]
    assert [report.inputs.content_key for report in one] == [report.inputs.content_key for report in two]
    for here, there in zip(one, two, strict=True):
        for name in ("probability.tif", "mask.tif", "polygons.gpkg"):
            assert (Path(here.folder) / name).read_bytes() == (Path(there.folder) / name).read_bytes()


def test_a_retrained_model_under_the_same_name_is_loaded_again(tmp_path: Path) -> None:
    path, spec = tmp_path / "model.safetensors", SegmentSpec(inference=InferenceSpec(device="cpu"))
    first = load_model(str(write_checkpoint(path)), spec)
    assert load_model(str(path), spec) is first
    write_checkpoint(path, seed=1)
    os.utime(path, ns=(0, 0))
    assert load_model(str(path), spec).identity != first.identity


@pytest.mark.parametrize("file", ["prefect.yaml", "prefect.docker.yaml"])
def test_every_deployment_names_a_flow_that_is_there_and_parameters_that_it_takes(file: str) -> None:
    import importlib

    from prefect.client.schemas.schedules import CronSchedule

    deployments = yaml.safe_load((ROOT / file).read_text())["deployments"]
    names = {(deployment["entrypoint"], deployment["name"]) for deployment in deployments}
    assert len(names) == len(deployments)
    assert {name for _, name in names} == {"ad-hoc", "nightly"}
    for deployment in deployments:
        source, _, function = deployment["entrypoint"].partition(":")
        assert (ROOT / source).is_file()
        named = getattr(importlib.import_module(source.removesuffix(".py").replace("/", ".")), function)
        assert validate(deployment["parameters"], named.parameters.model_dump(), ignore_required=True) == []
        assert deployment["description"]
        assert "scenemill" in deployment["tags"]
        for schedule in deployment["schedules"]:
            CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    nightly = next(deployment for deployment in deployments if deployment["name"] == "nightly")
    assert nightly["schedules"][0]["active"]
    assert nightly["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


def test_the_image_is_made_of_files_that_are_there() -> None:
    lines = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")]
    sources = [word for line in lines if "--from" not in line[1] for word in line[1:-1] if not word.startswith("--")]
    assert {"flows", "pipeline", "prefect.yaml"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def write_half(scene: Path) -> Path:
    """An area file: the left half of a scene."""
    with rasterio.open(scene) as dataset:
        left, bottom, right, top = dataset.bounds
        crs = dataset.crs
    target = scene.with_suffix(".gpkg")
    geopandas.GeoSeries([shapely.box(left, bottom, (left + right) / 2, top)], crs=crs).to_file(target)
    return target


def test_the_ad_hoc_entry_gives_the_same_files_as_the_command(
    make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    scenes = [str(make_scene(name=name)) for name in ("town.tif", "village.tif", "wood.tif")]
    settings = ["tiling.tile_size=32", "catalog.limit=2", "merge.output=gpkg", f"area={write_half(Path(scenes[0]))}"]
    arguments = [*scenes, "--model", model, *(f"--set={setting}" for setting in settings)]
    assert from_command_line([*arguments, "--out", str(tmp_path / "flow")], result_action="return_value") == 0
    with pytest.raises(SystemExit) as done:
        main(["segment", *arguments, "--out", str(tmp_path / "command")])
    assert done.value.code == 0
    flow, command = (files_below(tmp_path / out) for out in ("flow", "command"))
    assert {"town/polygons.gpkg", "village/polygons.gpkg", "polygons.gpkg"} < set(flow) == set(command)
    assert [name for name in flow if flow[name] != command[name] and not name.endswith(".json")] == []


def files_below(folder: Path) -> dict[str, bytes]:
    """Name and bytes of every file of a run."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_ad_hoc_entry_distinguishes_a_new_failure_from_one_in_quarantine(tmp_path: Path, model: str) -> None:
    scenes = [str(write_damaged(tmp_path / f"{name}.tif")) for name in "ab"]
    arguments = [*scenes, "--model", model, "--out", str(tmp_path / "out"), "--set", "tiling.tile_size=32"]
    codes = [
        from_command_line([*arguments, *more], result_action="return_value")
        for more in ([], [], ["--retry-quarantined"])
    ]
    assert codes == [1, 3, 1]


@pytest.mark.parametrize(("missing", "code"), [("scene", 2), ("model", 2)], ids=["no such scene", "no such model"])
def test_the_ad_hoc_entry_distinguishes_wrong_usage_from_failed_scenes(
    make_scene: MakeScene, tmp_path: Path, model: str, missing: str, code: int
) -> None:
    scene = "nowhere.tif" if missing == "scene" else str(make_scene())
    arguments = [scene, "--model", "nowhere.safetensors" if missing == "model" else model, "--out", str(tmp_path)]
    assert from_command_line(arguments, result_action="return_value") == code


@pytest.mark.slow
def test_the_ad_hoc_entry_runs_without_any_server_set_up(make_scene: MakeScene, tmp_path: Path, model: str) -> None:
    scenes = [make_scene(name="town.tif"), write_damaged(tmp_path / "b.tif")]
    done = subprocess.run(
        [sys.executable, "-m", "flows.segment", *map(str, scenes), "--model", model, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "1 of 2 scenes failed: b: " in done.stderr
    assert json.loads((tmp_path / "out" / "run.json").read_text())["counts"]["done"] == 1


def test_the_ad_hoc_entry_refuses_wrong_settings_before_prefect_starts(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["a.tif", "--model", "m.safetensors", "--out", "out", "--set", "tiling.tile_sise=8"]
    code = from_command_line(arguments, result_action="return_value")
    assert code == 2
    assert "did you mean tiling.tile_size?" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:Cyclopts application invoked without tokens")  # it reads `sys.argv`, as it shall
@pytest.mark.parametrize(
    ("module", "flow"), [("segment", "segment-catalog"), ("evaluate", "evaluate-scenes"), ("train", "train-network")]
)
def test_every_flow_can_be_run_from_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], module: str, flow: str
) -> None:
    monkeypatch.setattr(sys, "argv", [f"{module}.py", "--help"])
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(ROOT / "flows" / f"{module}.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert done.value.code in (0, None)
    assert f"Usage: python -m flows.{module}" in shown
    assert flow in shown
