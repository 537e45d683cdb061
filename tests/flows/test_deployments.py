"""The deployments on a real server with a real worker: scheduled, refused, failed, cancelled, resumed, and cut off."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from support.models import write_checkpoint, write_damaged
from support.webhook import webhook

from benchmarks import orchestration
from benchmarks.prefect_server import Server, prefect_server, until
from pipeline.catalog.read import read_catalog
from pipeline.config import SegmentSpec, build_settings
from pipeline.results.report import exit_code
from pipeline.run.models import load_run_models
from pipeline.run.scenes import segment_catalog

pytestmark = pytest.mark.slow
SETTINGS = {
    "tiling": {"tile_size": 32, "overlap": 8},
    "reading": {"threads": 1},
    "inference": {"device": "cpu", "threads": 1, "precision": "float32"},
}
SCENES = 8
AD_HOC = "segment-catalog/ad-hoc"
FILES = ("probability.tif", "mask.tif", "polygons.gpkg")


@pytest.fixture(scope="module")
def received() -> list[dict[str, Any]]:
    """Requests to the webhook, in order."""
    return []


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, received: list[dict[str, Any]]) -> Iterator[Server]:
    """A server with the deployments of `prefect.yaml`, and a worker."""
    with (
        webhook(received=received) as address,
        prefect_server(tmp_path_factory.mktemp("server"), SCENEMILL_WEBHOOK_URL=address) as running,
    ):
        running.call("work-pool", "create", "local-proc", "--type", "process")
        running.call("deploy", "--all")
        running.start_worker()
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def model(folder: Path) -> str:
    return str(write_checkpoint(folder / "model.safetensors"))


@pytest.fixture(scope="module")
def scenes(folder: Path) -> list[str]:
    """Scenes that take a second each, so that a run can be met half-way."""
    return [write_noise(folder / f"scene-{seed}.tif", seed=seed, side=400) for seed in range(SCENES)]


@pytest.fixture(scope="module")
def undisturbed(folder: Path, scenes: list[str], model: str) -> Path:
    """What the library makes of the scenes, with nobody in its way."""
    spec, out = build_settings(SegmentSpec, SETTINGS, place="the test"), folder / "undisturbed"
    entries = [*read_catalog(scenes, spec.catalog, spec.reading)]
    predictor = load_run_models([model], spec)
    assert exit_code([*segment_catalog(entries, out, predictor=predictor, spec=spec)]) == 0
    return out


def write_noise(path: Path, *, seed: int, side: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (3, side, side), np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=side, width=side, dtype="uint8", crs="EPSG:32633",
        transform=rasterio.Affine(1, 0, 500_000, 0, -1, 5_000_000), photometric="rgb",
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    return str(path)


def results(out: Path) -> dict[str, bytes]:
    """Name and bytes of every result that the runs must agree in."""
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for name in FILES for path in out.glob(f"*/{name}")}


def counts(out: Path) -> dict[str, int]:
    """How many scenes of a run ended how, without those of which there are none."""
    found = json.loads((out / "run.json").read_text())["counts"]
    return {status: count for status, count in found.items() if count}


def some_done(out: Path) -> Callable[[], bool]:
    return lambda: len([*out.glob("*/report.json")]) >= 2


def slots_in_use(server: Server) -> list[int]:
    """Of the limit of each device."""
    limits = server.ask("POST", "/v2/concurrency_limits/filter", {})
    return [limit["active_slots"] for limit in limits if limit["name"].startswith("scenemill-")]


def test_every_deployment_is_stored_with_a_form(server: Server) -> None:
    stored = {f"{each['name']}": each for each in server.ask("POST", "/deployments/filter", {})}
    assert {"ad-hoc", "nightly"} <= set(stored)
    schema = server.ask("GET", f"/deployments/name/{AD_HOC}")["parameter_openapi_schema"]
    tile_size = schema["properties"]["settings"]["properties"]["tiling"]["properties"]["tile_size"]
    assert tile_size["minimum"] == 1
    assert tile_size["default"] == 512
    assert "side of a tile" in tile_size["description"].lower()


def test_wrong_parameters_are_refused_before_a_run_is_scheduled(server: Server, model: str) -> None:
    given = {"scenes": ["a.tif"], "model": model, "out": "out", "settings": {"tiling": {"tile_sise": 64}}}
    refusal = server.call("deployment", "run", AD_HOC, "--params", json.dumps(given), code=1)
    assert "'tile_sise' was unexpected" in " ".join(refusal.split())
    names = {run["deployment_id"] for run in server.ask("POST", "/flow_runs/filter", {})}
    assert server.ask("GET", f"/deployments/name/{AD_HOC}")["id"] not in names


def test_the_cron_line_schedules_runs(server: Server) -> None:
    nightly = server.ask("GET", "/deployments/name/segment-catalog/nightly")
    wanted = {"flow_runs": {"deployment_id": {"any_": [nightly["id"]]}, "state": {"type": {"any_": ["SCHEDULED"]}}}}
    until(lambda: bool(server.ask("POST", "/flow_runs/filter", wanted)), 300, "a scheduled run")
    planned = server.ask("POST", "/flow_runs/filter", wanted)
    assert {run["expected_start_time"][11:19] for run in planned} == {"02:00:00"}
    assert all(run["auto_scheduled"] and "nightly" in run["tags"] for run in planned)


def test_a_failing_scene_is_reported_and_the_others_are_finished(
    server: Server, folder: Path, scenes: list[str], model: str, received: list[dict[str, Any]]
) -> None:
    given = [scenes[0], str(write_damaged(folder / "damaged.tif")), scenes[1]]
    out = folder / "failing"
    run_id = server.begin(AD_HOC, {"scenes": given, "model": model, "out": str(out), "settings": SETTINGS})
    run = server.finished(run_id)
    assert (run["state_type"], run["name"]) == ("FAILED", f"{scenes[0]} and 2 more into {out}")
    assert run["state"]["message"].startswith("1 of 3 scenes failed: damaged: ")
    assert counts(out) == {"done": 2, "failed": 1}
    shown = server.artifacts(run_id)
    table = next(each for each in shown if each["key"] == "segment-catalog")
    assert [row["status"] for row in json.loads(table["data"])] == ["done", "failed", "done"]
    cards = {each["description"]: each["data"] for each in shown if each["type"] == "markdown"}
    assert set(cards) == {"scene-0", "scene-1"}
    assert "data:image/jpeg;base64," in cards["scene-0"]
    assert f"file://{out}/scene-0/polygons.gpkg" in cards["scene-0"]
    assert next(each for each in shown if each["type"] == "progress")["data"] == 100
    until(lambda: any(each["run_id"] == run_id for each in received), 60, "the webhook")
    (word,) = (each for each in received if each["run_id"] == run_id)
    assert (word["state"], word["flow"], word["run"]) == ("Failed", "segment-catalog", run["name"])
    tasks = server.ask("POST", "/task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
    assert {task["name"] for task in tasks} == {"scene-0", "damaged", "scene-1"}
    of_run = {"logs": {"flow_run_id": {"any_": [run_id]}}}  # Prefect sends lines some seconds after they are written
    waiting = lambda line: line["message"].startswith("waiting for scenemill-")  # noqa: E731
    until(lambda: any(map(waiting, server.ask("POST", "/logs/filter", of_run))), 60, "the line of a run that waits")
    assert slots_in_use(server) == [0]


def test_a_cancelled_run_is_continued_by_the_next_to_the_same_bytes(
    server: Server, folder: Path, scenes: list[str], model: str, undisturbed: Path, received: list[dict[str, Any]]
) -> None:
    out = folder / "cancelled"
    parameters = {"scenes": scenes, "model": model, "out": str(out), "settings": SETTINGS}
    first = server.begin(AD_HOC, parameters)
    until(some_done(out), 300, "a few scenes")
    server.ask("POST", f"/flow_runs/{first}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})
    assert server.finished(first)["state_type"] == "CANCELLED"
    until(lambda: any(each["run_id"] == first and each["type"] == "CANCELLING" for each in received), 60, "the webhook")
    left = counts(out)
    assert set(left) == {"done", "not run"}
    assert sum(left.values()) == SCENES
    second = server.begin(AD_HOC, parameters)
    assert server.finished(second)["state_type"] == "COMPLETED"
    assert counts(out) == {"done": left["not run"], "skipped": left["done"]}
    assert results(out) == results(undisturbed)
    assert len(results(out)) == SCENES * len(FILES)


def test_a_server_that_is_killed_and_started_again_costs_no_result(
    server: Server, folder: Path, scenes: list[str], model: str, undisturbed: Path
) -> None:
    out = folder / "cut-off"
    run_id = server.begin(AD_HOC, {"scenes": scenes, "model": model, "out": str(out), "settings": SETTINGS})
    until(some_done(out), 300, "a few scenes")
    assert slots_in_use(server) == [1]
    server.kill()
    server.start()
    run = server.finished(run_id)
    assert (run["state_type"], run["state"]["message"]) == ("COMPLETED", f"{SCENES} scenes")
    assert counts(out) == {"done": SCENES}
    assert results(out) == results(undisturbed)
    assert slots_in_use(server) == [0]


def test_the_orchestration_benchmark_begins_runs_and_counts_what_a_scene_costs(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At toy size, on the server that is there."""
    figures = tmp_path / "figures.json"
    monkeypatch.setattr(orchestration, "prefect_server", lambda folder: nullcontext(server))
    monkeypatch.setattr(sys, "argv", ["orchestration", "--toy", "--folder", str(tmp_path), "--json", str(figures)])
    orchestration.main()
    found = json.loads(figures.read_text())
    assert min(found["first_pixel_s"].values()) > 0
    assert [(cost["by"], cost["finished"]) for cost in found["per_scene"]] == [
        (by, finished) for by in ("library", "flow on a server") for finished in (False, True)
    ]
