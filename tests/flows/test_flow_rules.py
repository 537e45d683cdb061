"""The rules of flows, without a server: retries, webhooks, summaries, concurrency, limits and names."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import Flow
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled, Completed, Failed
from support.webhook import webhook

from flows import artifacts, device_limits, hooks, model_cache, summaries
from flows import tasks as flow_tasks
from flows.artifact_scene import scene_markdown
from flows.concurrency import run_scenes
from flows.device_limits import hold_devices, limit_name
from flows.hooks import WEBHOOK, notify_end, post, webhook_payload
from flows.retries import fail_without_traceback, task_options
from flows.run_names import brief
from flows.segment import apply_overrides, segment_catalog
from pipeline.catalog.entry import CatalogEntry
from pipeline.config import RunSpec, SegmentSpec
from pipeline.errors import AccessError, ModelError, SceneError, TransientError
from pipeline.results.report import OutputFiles, SceneReport
from pipeline.run.concurrent import RunCancelledError

FLOW: Flow[Any, Any] = segment_catalog
RUN = FlowRun(name="mine", flow_id="00000000-0000-4000-8000-000000000000")


def report(scene: str, status: str, **facts: Any) -> SceneReport:
    return SceneReport(scene=scene, location=f"{scene}.tif", status=status, **facts)  # type: ignore[arg-type]


# Retries and failures


@pytest.mark.parametrize(
    ("error", "again"), [(TransientError("away"), True), (AccessError("denied"), False), (SceneError("torn"), False)]
)
def test_a_task_is_tried_again_as_often_as_set_and_for_transient_errors_only(error: Exception, again: bool) -> None:
    options = task_options(RunSpec(retries=3, retry_delay_s=2))
    assert (options["retries"], options["retry_delay_seconds"]) == (3, [2.0, 4.0, 8.0])
    assert options["retry_condition_fn"](None, None, Failed(data=error)) is again


def test_an_error_of_ours_becomes_the_message_of_a_failed_state_and_any_other_is_raised() -> None:
    def body(error: Exception | None) -> str:
        if error is not None:
            raise error
        return "done"

    run: Callable[..., Any] = fail_without_traceback(body)
    state = run(SceneError("no CRS"))
    assert (state.is_failed(), state.message) == (True, "no CRS")
    assert run(None) == "done"
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError())


# The webhook


@pytest.fixture(autouse=True)
def without_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log of a run would go to a server."""
    monkeypatch.setattr(hooks, "flow_run_logger", lambda *_: logging.getLogger("flows"))


def test_a_webhook_is_asked_over_http_only(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    for address in (f"file://{tmp_path}/secret", "ftp://127.0.0.1/x", "secret"):
        with pytest.raises(ValueError, match="must be an http or https URL"):
            post(address, {})


def test_a_message_of_any_length_is_cut_for_the_webhook() -> None:
    payload = webhook_payload(FLOW, RUN, Failed(message="x" * 10_000))
    assert payload["message"] == "x" * hooks.MAX_MESSAGE_LENGTH
    assert len(str(payload["text"])) < hooks.MAX_MESSAGE_LENGTH + 100


@pytest.mark.parametrize(("state", "level"), [(Completed(), logging.INFO), (Failed(message="why"), logging.ERROR)])
def test_the_end_of_a_run_is_logged_by_its_result(state: Any, level: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        notify_end(FLOW, RUN, state)
    assert [record.levelno for record in caplog.records if record.getMessage().startswith("run mine: ")] == [level]


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/secret", "http://[secret", "file:///secret"])
def test_the_address_of_a_webhook_is_in_no_log(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def leaks(*_: object) -> None:
        raise OSError(f"{address} cannot be reached")

    monkeypatch.setenv(WEBHOOK, address)
    monkeypatch.setattr(hooks, "post", leaks)
    notify_end(FLOW, RUN, Failed(message="why"))
    assert "could not be reached: OSError" in caplog.text
    assert "secret" not in caplog.text


def test_a_webhook_gets_one_request() -> None:
    received: list[dict[str, Any]] = []
    with webhook(received=received) as address:
        post(address, {"run": "mine"})
    assert received == [{"run": "mine"}]


# What a run reports


def test_one_failed_scene_fails_the_run_and_the_others_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "show_summary", lambda *_: None)
    good, bad, later = report("a", "done"), report("b", "failed", reason="torn"), report("c", "not run", reason="r")
    state = summaries.summarise_run([good, bad, later], "out")
    assert (state.is_failed(), state.message) == (True, "1 of 3 scenes failed, 1 not run: b: torn")
    assert summaries.summarise_run([good, bad], "out").message == "1 of 2 scenes failed: b: torn"
    held = report("d", "quarantined", reason="torn")
    assert summaries.summarise_run([good, held], "out").message == "2 scenes, 1 quarantined"
    assert summaries.summarise_run([good], "out").message == "1 scenes"


def test_an_evaluation_with_one_failed_scene_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "create_table_artifact", lambda **_: None)
    scenes = [
        SimpleNamespace(scene=name, status=status, scores=None, reason=None)
        for name, status in (("a", "done"), ("b", "failed"))
    ]
    result: Any = SimpleNamespace(
        folder="out", page="evaluation.html", scenes=scenes, failed=scenes[1:], overall=SimpleNamespace(mean={})
    )
    monkeypatch.setattr(summaries, "_rows", lambda _: [])
    assert summaries.summarise_evaluation(result).is_failed()
    result.failed = []
    assert summaries.summarise_evaluation(result).is_completed()


def test_a_table_that_is_cut_shows_scenes_without_a_result_first(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(artifacts, "MAX_ROWS", 2)
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda **given: shown.append(given))
    statuses = ("done", "skipped", "failed")
    reports = [report(f"s{k}", status) for k, status in enumerate(statuses)]
    artifacts.show_summary(reports, "out")
    assert [row["scene"] for row in shown[0]["table"]] == ["s2", "s0"]
    assert shown[0]["description"] == "out: 1 done, 1 skipped, 1 failed; 1 more in run.json"
    artifacts.show_summary(reports[:2], "out")
    assert [row["scene"] for row in shown[1]["table"]] == ["s0", "s1"]


def test_files_of_a_scene_are_linked_where_they_are(tmp_path: Path) -> None:
    outputs = OutputFiles(names={"mask": "mask.tif"})
    assert "(<s3://bucket/out/a/mask.tif>)" in scene_markdown(
        report("a", "done", folder="s3://bucket/out/a/", outputs=outputs)
    )
    assert f"(<{(tmp_path / 'mask.tif').as_uri()}>)" in scene_markdown(
        report("a", "done", folder=str(tmp_path), outputs=outputs)
    )


@pytest.mark.parametrize(
    ("sources", "name"), [([], "nothing"), (["a"], "a"), (["a", "b"], "a and 1 more"), (["a"] * 5, "a and 4 more")]
)
def test_a_run_is_named_by_its_first_source(sources: list[str], name: str) -> None:
    assert brief(sources) == name


# Scenes at once


class FakeFuture:
    """A task that ends when it is waited for, or at once."""

    def __init__(self, state: Any, *, ended: bool) -> None:
        self.state, self.waited, self._ended = state, 0, ended

    def add_done_callback(self, call: Callable[[Any], None]) -> None:
        if self._ended:
            call(self)

    def wait(self) -> None:
        self.waited += 1


class FakeLedger:
    def __init__(self) -> None:
        self.recorded: list[tuple[str, Any]] = []
        self.saved = 0

    def skip(self, entry: CatalogEntry) -> None:
        return None

    def record(self, entry: CatalogEntry, outcome: Any) -> Any:
        self.recorded.append((entry.id, outcome))
        return outcome

    def save(self) -> None:
        self.saved += 1


ENTRIES = [CatalogEntry(id=f"s{k}", location=f"s{k}.tif") for k in range(5)]


def test_no_more_scenes_are_submitted_than_may_run_at_once() -> None:
    ledger: Any = FakeLedger()
    most: list[int] = []
    submitted: list[CatalogEntry] = []

    def submit(entry: CatalogEntry, stop: Event) -> Any:
        submitted.append(entry)
        most.append(len(submitted) - len(ledger.recorded))
        return FakeFuture(Completed(data=entry.id), ended=True)

    run_scenes(ledger, ENTRIES, submit, max_concurrent=2)
    assert [name for name, _ in ledger.recorded] == [entry.id for entry in ENTRIES]
    assert max(most) == 2


def test_a_run_that_is_stopped_stops_its_scenes_and_records_each() -> None:
    ledger: Any = FakeLedger()
    stops: list[Event] = []
    started: list[FakeFuture] = []

    def submit(entry: CatalogEntry, stop: Event) -> Any:
        stops.append(stop)
        if entry.id == "s2":
            raise KeyboardInterrupt
        state = Cancelled() if entry.id == "s1" else Completed(data=entry.id)
        started.append(FakeFuture(state, ended=False))
        return started[-1]

    with pytest.raises(KeyboardInterrupt):
        run_scenes(ledger, ENTRIES, submit, max_concurrent=3)
    assert all(stop.is_set() for stop in stops)
    assert [future.waited for future in started] == [1, 1], "the run ends when its scenes have"
    assert [name for name, _ in ledger.recorded] == ["s0"], "a cancelled scene is not recorded"
    assert ledger.saved == 1


def test_a_scene_that_was_cancelled_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def cancelled(*_: object, **__: object) -> None:
        raise RunCancelledError

    monkeypatch.setattr(flow_tasks, "load_model", lambda *_: None)
    monkeypatch.setattr(flow_tasks, "segment_entry", cancelled)
    state: Any = flow_tasks.segment_one.fn(ENTRIES[0], "m", "out", SegmentSpec(), Event())
    assert state.is_cancelled()


def test_a_model_that_cannot_be_loaded_any_more_is_no_fault_of_the_scene(monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> None:
        raise ModelError("damaged")

    monkeypatch.setattr(flow_tasks, "load_model", damaged)
    with pytest.raises(TransientError, match="damaged; it was valid when the run started"):
        flow_tasks.segment_one.fn(ENTRIES[0], "m", "out", SegmentSpec(), Event())


# Models, devices and settings


def test_a_model_is_loaded_once_until_its_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr(model_cache, "load_models", loaded.append)
    path = tmp_path / "model.safetensors"
    for content in (b"1", b"1", b"22"):
        if not path.exists() or path.read_bytes() != content:
            path.write_bytes(content)
        model_cache.load_model(str(path), SegmentSpec())
    assert len(loaded) == 2


def test_a_cluster_of_others_takes_no_device_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr(device_limits, "_create", create)
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:1/api"}),
        hold_devices("cpu", scheduler="tcp://10.0.0.5:8786"),
    ):
        pass


@pytest.mark.parametrize(
    ("device", "environ", "name"),
    [
        ("cpu", {}, "scenemill-mill-cpu"),
        ("cuda", {}, "scenemill-mill-cuda-0"),
        ("cuda:1", {}, "scenemill-mill-cuda-1"),
        ("cuda", {"CUDA_VISIBLE_DEVICES": "3,1"}, "scenemill-mill-cuda-3"),
    ],
)
def test_a_limit_is_named_by_machine_and_device(device: str, environ: dict[str, str], name: str) -> None:
    assert limit_name(device, {device_limits.MACHINE: "mill", **environ}) == name


def test_parameters_of_a_run_go_before_its_settings() -> None:
    spec = SegmentSpec(run=RunSpec(max_failures=3, retry_quarantined=True))
    kept = apply_overrides(spec, device=None, max_failures=None, retry_quarantined=None)
    assert kept == spec
    changed = apply_overrides(spec, device="cpu", max_failures=0, retry_quarantined=False)
    assert (changed.run.max_failures, changed.run.retry_quarantined, changed.inference.device) == (0, False, "cpu")
