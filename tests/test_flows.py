"""The flows: every scene has its turn, faults of the world are tried again, and the run says what became of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import yaml
from conftest import MakeScene
from models import write_checkpoint, write_damaged

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
    "PREFECT_TELEMETRY_ENABLE_RESOURCE_METRICS": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
"""What keeps Prefect from talking to anybody outside."""
os.environ.update(QUIET)

from prefect.client.orchestration import get_client  # noqa: E402
from prefect.testing.utilities import prefect_test_harness  # noqa: E402

from flows import segment as flow_room  # noqa: E402
from flows import tasks as task_room  # noqa: E402
from flows.segment import ScenesFailedError, segment_catalog  # noqa: E402
from pipeline.catalog import CatalogEntry  # noqa: E402
from pipeline.cli import main  # noqa: E402
from pipeline.config import SegmentSpec  # noqa: E402
from pipeline.errors import ModelError, SceneError, SettingsError, WorldError  # noqa: E402
from pipeline.predictor import InferenceSpec  # noqa: E402
from pipeline.report import SceneReport  # noqa: E402
from pipeline.retrying import RunSpec  # noqa: E402
from pipeline.run_ledger import RunLedger  # noqa: E402
from pipeline.run_quarantine import Quarantine  # noqa: E402

ROOT = Path(__file__).parents[1]
SETTINGS = {"tiling": {"tile_size": 32, "overlap": 8}, "reading": {"threads": 1}, "inference": {"device": "cpu"}}


@pytest.fixture(scope="module")
def ephemeral() -> Iterator[None]:
    """A Prefect of our own, in a temporary folder, without a server set up."""
    with prefect_test_harness(server_startup_timeout=90):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_checkpoint(tmp_path_factory.mktemp("model") / "model.safetensors"))


def test_a_damaged_scene_fails_the_run_and_stops_no_other_scene(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str
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
        artifacts = client.request("POST", "/artifacts/latest/filter", json={}).json()
    rows: list[dict[str, Any]] = json.loads(artifacts[0]["data"])
    return rows


def test_a_run_again_skips_what_is_done_and_completes(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    scene, out = make_scene(name="a.tif"), str(tmp_path / "out")
    first = segment_catalog([str(scene)], model, out, SETTINGS)
    again = segment_catalog([str(scene)], model, out, SETTINGS)
    assert [report.status for report in (*first, *again)] == ["done", "skipped"]


def test_a_table_of_scenes_is_a_catalog_of_the_flow_too(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    make_scene(name="a.tif")
    index, out = tmp_path / "scenes.csv", str(tmp_path / "out")
    index.write_text("path\na.tif\n../b.tif\n")
    with pytest.raises(ScenesFailedError, match=r"1 of 2 scenes failed: .*line 3: .* leads out of") as caught:
        segment_catalog([str(index)], model, out, SETTINGS)
    assert [report.status for report in caught.value.reports] == ["done", "failed"]
    nowhere = {**SETTINGS, "catalog": {"bbox": [0, 0, 1, 1]}}
    index.write_text("path\na.tif\n")
    assert segment_catalog([str(index)], model, out, nowhere) == []


def test_faults_of_the_world_are_tried_again_and_bad_data_is_not(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = {"shaky": 0, "bad": 0, "hopeless": 0}

    def segment_entry(entry: Any, *args: Any, **kwargs: Any) -> SceneReport:
        tries[entry.id] += 1
        if entry.id == "bad":
            raise SceneError("no CRS")
        if entry.id == "hopeless" or tries[entry.id] < 3:
            raise WorldError("the disk is away")
        return SceneReport(scene=entry.id, location=entry.location, status="done")

    monkeypatch.setattr(task_room, "segment_entry", segment_entry)
    settings = {**SETTINGS, "run": {"retries": 2, "retry_delay_s": 0}}
    scenes = [str(make_scene(name=f"{name}.tif")) for name in tries]
    with pytest.raises(ScenesFailedError, match="2 of 3 scenes failed: bad: no CRS; hopeless: the disk") as caught:
        segment_catalog(scenes, model, str(tmp_path / "out"), settings)
    assert [report.status for report in caught.value.reports] == ["done", "failed", "failed"]
    assert tries == {"shaky": 3, "bad": 1, "hopeless": 3}


def test_a_quarantined_scene_is_left_alone_by_the_next_run_which_completes(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    scenes, out = [str(make_scene(name="a.tif")), str(write_damaged(tmp_path / "b.tif"))], str(tmp_path / "out")
    assert segment_catalog(scenes, model, out, SETTINGS, return_state=True).is_failed()
    state = segment_catalog(scenes, model, out, SETTINGS, return_state=True)
    assert (state.is_completed(), state.message) == (True, "2 scenes, 1 quarantined")
    assert [report.status for report in state.result()] == ["skipped", "quarantined"]
    tried = segment_catalog(scenes, model, out, SETTINGS, retry_quarantined=True, return_state=True)
    assert tried.is_failed()


def test_a_hopeless_run_is_ended_and_what_is_in_work_is_finished(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = {name: Event() for name in "abcdef"}

    def segment_entry(entry: Any, *args: Any, **kwargs: Any) -> SceneReport:
        begun[entry.id].set()
        if entry.id == "a":
            begun["b"].wait(60)
            raise SceneError("no CRS")
        return SceneReport(scene=entry.id, location=entry.location, status="done")

    monkeypatch.setattr(task_room, "segment_entry", segment_entry)
    scenes, out = [str(make_scene(name=f"{name}.tif")) for name in begun], tmp_path / "out"
    with pytest.raises(ScenesFailedError, match=r"1 of 6 scenes failed, \d not run: a: no CRS") as caught:
        segment_catalog(scenes, model, str(out), SETTINGS, max_failures=1)
    statuses = {report.scene: report.status for report in caught.value.reports}
    assert {name: statuses[name] for name in "ab"} == {"a": "failed", "b": "done"}
    assert all((statuses[name] == "done") == event.is_set() for name, event in begun.items() if name != "a")
    assert sum(json.loads((out / "run.json").read_text())["counts"].values()) == 6


def test_a_cancelled_run_finishes_what_is_in_hand_and_records_it(tmp_path: Path) -> None:
    """Cancelling raises in the flow's own thread; here while the third scene is submitted."""
    entries = [CatalogEntry(id=name, location=str(tmp_path / f"{name}.tif")) for name in "abcd"]
    records: list[dict[str, int]] = []
    gates = {entry.id: Event() for entry in entries}
    gates["a"].set()

    class Future:
        def __init__(self, entry: CatalogEntry) -> None:
            self.entry, self.state = entry, self

        def wait(self) -> None:
            if not gates[self.entry.id].is_set():  # the run was cancelled, and this scene is in work still
                records.append(json.loads((tmp_path / "run.json").read_text())["counts"])

        def result(self, raise_on_failure: bool) -> SceneReport:
            return SceneReport(scene=self.entry.id, location=self.entry.location, status="done")

        def add_done_callback(self, tell: Callable[[Any], None]) -> None:
            if gates[self.entry.id].is_set():
                tell(self)

    def submit(entry: CatalogEntry) -> Any:
        if entry.id == "c":
            raise KeyboardInterrupt
        return Future(entry)

    quarantine = Quarantine(tmp_path, inputs="", drivers=())
    ledger = RunLedger(entries, tmp_path, spec=RunSpec(), quarantine=quarantine)
    with pytest.raises(KeyboardInterrupt):
        flow_room.run_scenes(ledger, entries, submit)
    assert records == [{"done": 1, "skipped": 0, "failed": 0, "quarantined": 0, "not run": 3}]
    assert [report.status for report in ledger.reports] == ["done", "done", "not run", "not run"]


def test_a_model_that_vanishes_during_a_run_is_no_fault_of_the_scene(tmp_path: Path) -> None:
    entry = CatalogEntry(id="a", location=str(tmp_path / "a.tif"))
    with pytest.raises(WorldError, match=r"no such checkpoint .* it was whole when the run began"):
        task_room.segment_one.fn(entry, str(tmp_path / "gone.safetensors"), str(tmp_path), SegmentSpec())


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"settings": {"tilling": {}}}, SettingsError, "did you mean tiling"),
        ({"settings": {"tiling": {"tile_size": 33}}}, SettingsError, "multiple of 4"),
        ({"scenes": ["nowhere/*.tif"]}, SettingsError, "matches no file"),
        ({"device": "abacus"}, SettingsError, "abacus"),
        ({"device": "cpu,cuda:0"}, SettingsError, "different kinds"),
        ({"model": "nowhere.safetensors"}, ModelError, "no such checkpoint"),
        ({"model": []}, SettingsError, "no model is named"),
    ],
    ids=["unknown key", "tile size", "no scene", "device", "devices", "model", "no model"],
)
def test_wrong_settings_fail_before_any_scene(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str, change: dict[str, Any], error: Any, reason: str
) -> None:
    given = {"scenes": [str(make_scene())], "model": model, "out": str(tmp_path / "out"), "settings": SETTINGS}
    state: Any = segment_catalog(**{**given, **change}, return_state=True)
    assert state.is_failed()
    assert isinstance(state.result(raise_on_failure=False), error)
    assert reason in state.message
    assert not (tmp_path / "out").exists()


def test_the_tasks_run_on_the_cluster_that_the_settings_name(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    settings = {**SETTINGS, "distribute": {"scheduler": "tcp://127.0.0.1:1"}, "run": {"retries": 0}}
    with pytest.raises(ScenesFailedError, match=r"no dask scheduler .* at tcp://127.0.0.1:1"):
        segment_catalog([str(make_scene())], model, str(tmp_path / "out"), settings)


@pytest.mark.slow
def test_scenes_share_the_processes_of_several_devices_and_several_models(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    models = [model, str(write_checkpoint(tmp_path / "other.safetensors", seed=1))]
    scenes = [str(make_scene(name=f"{name}.tif", height=100, seed=seed)) for seed, name in enumerate("ab")]
    one = segment_catalog(scenes, models, str(tmp_path / "one"), SETTINGS)
    two = segment_catalog(scenes, models, str(tmp_path / "two"), SETTINGS, device="cpu,cpu")
    assert [report.passes for report in (*one, *two)] == [2, 2, 2, 2]
    assert [report.content_key for report in one] == [report.content_key for report in two]
    for here, there in zip(one, two, strict=True):
        for name in ("probability.tif", "mask.tif", "polygons.gpkg"):
            assert (Path(here.folder) / name).read_bytes() == (Path(there.folder) / name).read_bytes()


def test_a_retrained_model_under_the_same_name_is_loaded_again(tmp_path: Path) -> None:
    path, spec = tmp_path / "model.safetensors", SegmentSpec(inference=InferenceSpec(device="cpu"))
    first = task_room.load_model(str(write_checkpoint(path)), spec)
    assert task_room.load_model(str(path), spec) is first
    write_checkpoint(path, seed=1)
    os.utime(path, ns=(0, 0))
    assert task_room.load_model(str(path), spec).identity != first.identity


def test_every_deployment_names_a_flow_that_is_there_and_parameters_that_it_takes() -> None:
    import importlib
    import inspect

    from prefect.client.schemas.schedules import CronSchedule

    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert {deployment["name"] for deployment in deployments} >= {"ad-hoc", "nightly"}
    for deployment in deployments:
        file, _, function = deployment["entrypoint"].partition(":")
        assert (ROOT / file).is_file()
        named = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), function)
        assert set(deployment["parameters"]) <= set(inspect.signature(named.fn).parameters)
        for schedule in deployment["schedules"]:
            CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    nightly = next(deployment for deployment in deployments if deployment["name"] == "nightly")
    assert nightly["schedules"][0]["active"]


def test_the_ad_hoc_entry_gives_the_same_files_as_the_command(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str
) -> None:
    arguments = [str(make_scene(name="town.tif")), "--model", model, "--set", "tiling.tile_size=32"]
    assert flow_room.app([*arguments, "--out", str(tmp_path / "flow")], result_action="return_value") == 0
    with pytest.raises(SystemExit) as done:
        main(["segment", *arguments, "--out", str(tmp_path / "command")])
    assert done.value.code == 0
    flow, command = (tmp_path / out / "town" for out in ("flow", "command"))
    names = {path.name for path in flow.iterdir()}
    assert names == {path.name for path in command.iterdir()}
    for name in names - {"report.json"}:
        assert (flow / name).read_bytes() == (command / name).read_bytes(), name


def test_the_ad_hoc_entry_tells_a_new_failure_from_one_in_quarantine(
    ephemeral: None, tmp_path: Path, model: str
) -> None:
    scenes = [str(write_damaged(tmp_path / f"{name}.tif")) for name in "ab"]
    arguments = [*scenes, "--model", model, "--out", str(tmp_path / "out"), "--set", "tiling.tile_size=32"]
    codes = [
        flow_room.app([*arguments, *more], result_action="return_value") for more in ([], [], ["--retry-quarantined"])
    ]
    assert codes == [1, 3, 1]


@pytest.mark.parametrize(("missing", "code"), [("scene", 2), ("model", 2)], ids=["no such scene", "no such model"])
def test_the_ad_hoc_entry_tells_wrong_usage_from_failed_scenes(
    ephemeral: None, make_scene: MakeScene, tmp_path: Path, model: str, missing: str, code: int
) -> None:
    scene = "nowhere.tif" if missing == "scene" else str(make_scene())
    arguments = [scene, "--model", "nowhere.safetensors" if missing == "model" else model, "--out", str(tmp_path)]
    assert flow_room.app(arguments, result_action="return_value") == code


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
    code = flow_room.app(arguments, result_action="return_value")
    assert code == 2
    assert "did you mean tiling.tile_size?" in capsys.readouterr().err


# Against a real server


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own session, killed with all its children afterwards."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(20)


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.5)


def healthy(api: str) -> bool:
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_deployments_run_on_a_server_with_a_worker(make_scene: MakeScene, tmp_path: Path, model: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": api,
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    }
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]

    def call(*arguments: str) -> str:
        done = subprocess.run(
            [*prefect, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    server = [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with running(server, environment, tmp_path / "server.log"):
        until(lambda: healthy(api), 120, "a healthy server")
        call("work-pool", "create", "local-proc", "--type", "process")
        call("deploy", "--all")
        nightly = call("deployment", "inspect", "segment-catalog/nightly")
        assert "0 2 * * *" in nightly
        scene = make_scene(name="town.tif")
        parameters = {"scenes": [str(scene)], "model": model, "out": str(tmp_path / "out"), "settings": SETTINGS}
        with running([*prefect, "worker", "start", "--pool", "local-proc"], environment, tmp_path / "worker.log"):
            told = call("deployment", "run", "segment-catalog/ad-hoc", "--params", json.dumps(parameters), "--watch")
    assert "Completed" in told
    assert json.loads((tmp_path / "out" / "run.json").read_text())["counts"]["done"] == 1
    assert not healthy(api)
