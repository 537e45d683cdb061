"""The benchmarks run, at toy size, so that none rots.

That of orchestration runs in `test_deployments`, where a server is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from benchmarks import accuracy, device
from benchmarks.stages import device_seconds
from benchmarks.trials.membranes import rand_error

ROOT = Path(__file__).parents[2]


class RunToy(Protocol):
    """Runs a benchmark at toy size and returns its figures; see `run_toy`."""

    def __call__(self, module: str, *options: str) -> Any: ...


@pytest.fixture
def run_toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunToy:
    """Runs a benchmark at toy size in this process; what it measures it starts in processes of their own."""

    def run(module: str, *options: str) -> Any:
        figures = tmp_path / "figures.json"
        monkeypatch.setattr(sys, "argv", [module, "--toy", "--json", str(figures), *options])
        import_module(f"benchmarks.{module}").main()
        return json.loads(figures.read_text())

    return run


def run_toy_apart(tmp_path: Path, module: str, *options: str) -> Any:
    """Run a benchmark at toy size that measures, or forks, in its first process."""
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", f"benchmarks.{module}", "--toy", "--json", str(figures), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(figures.read_text())


def run_device(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    """Run parts of the benchmark for a GPU machine, each in a process of its own; returns how many failed."""
    monkeypatch.setattr(sys, "argv", ["device", "--toy", *options])
    return device.main()


@pytest.mark.slow
def test_the_pipeline_benchmark_measures_every_side_against_its_bounds(run_toy: RunToy, tmp_path: Path) -> None:
    figures = run_toy("pipeline", "--sides", "300", "--tile", "128", "--folder", str(tmp_path))
    (row,) = figures["rows"]
    assert row["side"] == 300
    assert min(row[key] for key in ("decode_s", "mosaic_mpx_s", "peak_mib")) > 0


@pytest.mark.slow
def test_the_polygons_benchmark_finds_the_polygons_that_rasterio_finds(run_toy: RunToy) -> None:
    figures = run_toy("polygons")
    found = {each["method"]: each["polygons"] for each in figures["polygons"] if each["mask"] == "dense"}
    assert found["mask"] == found["streamed"] == found["rasterio"] > 0


@pytest.mark.slow
def test_the_merge_benchmark_merges_scenes_side_by_side_and_stacked(tmp_path: Path) -> None:
    figures = run_toy_apart(tmp_path, "merge")
    assert [(row["layout"], row["scenes"]) for row in figures["merges"]] == [("side by side", 4), ("stacked", 2)]
    assert all(0 < row["polygons"] < row["read"] for row in figures["merges"])


def test_the_startup_benchmark_follows_a_run_to_its_first_tile(run_toy: RunToy) -> None:
    figures = run_toy("startup")
    assert min(figures[key] for key in ("help_s", "import_s")) > 0
    names, moments = zip(*figures["run"], strict=True)
    assert names[0] == "start Python"
    assert names[-1] == "hand the first tile to the network"
    assert {"import torch", "load the checkpoint", "check the precision", "read the first strip"} < {*names}
    assert [*moments] == sorted(moments)


@pytest.mark.parametrize("part", ["bounds", "engine", "stages", "precision"])
def test_every_benchmark_for_a_gpu_machine_runs_on_a_cpu(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    failed = run_device(monkeypatch, "--device", "cpu", "--out", str(tmp_path), "--parts", part)
    captured = capfd.readouterr()
    assert failed == 0, captured.err
    assert json.loads((tmp_path / f"{part}.json").read_text())
    assert json.loads((tmp_path / "machine.json").read_text())["device"] == "cpu"
    assert "|" in captured.out


def test_a_part_that_fails_is_named_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_device(monkeypatch, "--device", "meta", "--out", str(tmp_path), "--parts", "stages") == 1
    assert "failed: stages" in capfd.readouterr().out


@pytest.mark.slow
def test_the_cluster_benchmark_compares_workers_with_this_process(tmp_path: Path) -> None:
    figures = run_toy_apart(tmp_path, "cluster", "--folder", str(tmp_path))
    assert figures["equal"]
    assert min(figures["tasks"].values()) > 0
    assert {*figures["costs"]["cluster"]} == {"region_s", "scene_s"}
    assert len(figures["scaling"]["infer_s"]) == 2


def test_rivals_and_ours_agree_on_the_same_scene(run_toy: RunToy) -> None:
    ours, loop = run_toy("peers")
    assert (ours["contestant"], loop["contestant"]) == ("ours", "loop")
    assert loop["difference"] < 0.01


@pytest.mark.slow
def test_the_accuracy_benchmark_trains_and_scores_real_chips(shared_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.accuracy", "mangrove", "--json", str(tmp_path / "figures.json")]
    command += ["--set", "learning.epochs=1", "--set", "samples.windows_per_epoch=16", "--set", "leaves.overlays=0"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (table,) = json.loads((tmp_path / "figures.json").read_text())["mangrove"]
    assert [row["bands"] for row in table["rows"]] == ["red, green, blue, nir", "red, green, blue"]
    assert all(0 <= row["IoU"] <= 1 for row in table["rows"])
    assert "| red, green, blue |" in done.stdout


def test_the_device_is_busy_while_any_kernel_runs() -> None:
    events = [
        {"cat": "kernel", "name": "sm90_xmma_fprop", "ts": 0.0, "dur": 1e6},
        {"cat": "kernel", "name": "elementwise", "ts": 5e5, "dur": 1e6},
        {"cat": "gpu_memcpy", "name": "HtoD", "ts": 1e6, "dur": 3e6},
        {"cat": "cpu_op", "name": "aten::add", "ts": 0.0, "dur": 9e6},
    ]
    assert device_seconds(events) == {"matrix kernels": 1, "other kernels": 1, "copies": 3, "busy": 1.5}


def test_every_trial_has_a_docstring(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["accuracy", "--list"])
    accuracy.main()
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line.split(maxsplit=1)) == 2 for line in lines)
    assert [line.split()[0] for line in lines] == [*accuracy.TRIALS]


def test_the_rand_error_counts_pairs_of_pixels() -> None:
    truth = np.array([[1, 1, 0, 1, 1, 1]], bool)
    assert rand_error(truth, truth) == 0
    merged = np.ones_like(truth)
    assert rand_error(truth, merged) == pytest.approx(1 - 2 * (4 + 9) / ((4 + 9) + 25))
    split = np.array([[1, 1, 0, 1, 0, 1]], bool)  # three pixels of one cell become three parts of one pixel
    assert rand_error(truth, split) == pytest.approx(1 - 2 * (4 + 3) / ((4 + 9) + (4 + 3)))
