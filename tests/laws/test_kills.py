"""The kill matrix: the command is killed anywhere and run again, and leaves the bytes of a run that was not killed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from support.kill_process import Kill, Killer, Outcome, killer
from support.models import write_checkpoint, write_damaged

FAST = (
    *("--set", "tiling.tile_size=32", "--set", "reading.threads=1", "--set", "distribute.regions=3"),
    *("--set", "inference.device=cpu", "--set", "inference.precision=float32", "--set", "run.retries=0"),
)
DELAYS_US = (0, 300, 2000)


class Case:
    """A command over two scenes, what it leaves undisturbed, and a place for every trial."""

    def __init__(self, folder: Path, killer: Killer) -> None:
        self.folder, self.killer = folder, killer
        self.model = write_checkpoint(folder / "model.safetensors")
        self.scenes = [write_scene(folder / f"{name}.tif", seed) for seed, name in enumerate("ab")]
        calm = self.run("calm", count=True)
        assert calm.code == 0, calm.output
        self.events, self.calm = calm.events, contents(folder / "calm")

    def command(self, out: str, *given: object) -> tuple[object, ...]:
        return ("segment", *self.scenes, "--model", self.model, "--out", self.folder / out, *FAST, *given)

    def run(self, out: str, *given: object, kill: Kill | None = None, count: bool = False) -> Outcome:
        return self.killer.run(*self.command(out, *given), kill=kill, count=count)

    def killed_and_run_again(self, out: str, kill: Kill) -> set[str]:
        """Kill a run, run again, and say what was not done twice."""
        killed = self.run(out, kill=kill)
        assert killed.code in (0, -9, -14), (kill, killed.output)
        if (self.folder / out / "run.json").exists():
            json.loads((self.folder / out / "run.json").read_bytes())
        again = self.run(out)
        assert again.code == 0, (kill, again.output)
        assert contents(self.folder / out) == self.calm, kill
        found = reused(self.folder / out) if killed.code else set()
        shutil.rmtree(self.folder / out)
        return found


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    with killer() as each:
        yield Case(tmp_path_factory.mktemp("kills"), each)


def write_scene(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(1, 255, (3, 150, 60), np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=150, width=60, dtype="uint8", crs="EPSG:32633", tiled=True,
        transform=Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000), blockxsize=16, blockysize=16, photometric="rgb",
    ) as dataset:  # fmt: skip
        dataset.write(pixels)
    return path


def contents(out: Path) -> dict[str, object]:
    """Every file of a folder, however hidden; of reports, what does not tell how they came about."""
    found: dict[str, object] = {}
    for path in sorted(path for path in out.rglob("*") if not path.is_dir()):
        name = str(path.relative_to(out))
        if path.name == "report.json":
            report = json.loads(path.read_bytes())
            found[name] = {key: report[key] for key in report if key not in ("seconds", "reused", "folder")}
        elif name == "run.json":
            run = json.loads(path.read_bytes())
            found[name] = [(scene["scene"], scene["status"] in ("done", "skipped")) for scene in run["scenes"]]
        else:
            found[name] = path.read_bytes()
    return found


def reused(out: Path) -> set[str]:
    """What the second run took over from the first: kinds of stages, and whole scenes."""
    run = json.loads((out / "run.json").read_bytes())
    found = {"scene" for scene in run["scenes"] if scene["status"] == "skipped"}
    for scene in run["scenes"]:
        report = json.loads((out / scene["scene"] / "report.json").read_bytes())
        if scene["status"] == "done":
            found |= {"regions" if stage.endswith("regions") else stage for stage in report["reused"]}
    return found


def spread(events: int, points: int) -> list[int]:
    """Moments drawn evenly over a run, from its first event to its last."""
    return [round(1 + (events - 1) * place / (points - 1)) for place in range(points)]


# Killed


@pytest.mark.parametrize("place", [0.4, 0.65, 0.9])
def test_a_killed_run_resumes_and_writes_the_bytes_of_an_uninterrupted_one(case: Case, place: float) -> None:
    assert case.killed_and_run_again("out", Kill(event="disk", count=round(place * case.events["disk"])))


@pytest.mark.slow
def test_a_kill_before_any_change_to_the_disk_loses_no_more_than_what_was_in_work(case: Case) -> None:
    found: set[str] = set()
    for count in spread(case.events["disk"], 30):
        found |= case.killed_and_run_again("out", Kill(event="disk", count=count))
    assert found == {"regions", "mosaic", "mask", "polygons", "preview", "scene"}


@pytest.mark.slow
def test_a_kill_anywhere_in_our_code_or_in_a_library_leaves_no_partial_file(case: Case) -> None:
    found: set[str] = set()
    for number, count in enumerate(spread(case.events["call"], 16)):
        later_us = DELAYS_US[number % len(DELAYS_US)]
        found |= case.killed_and_run_again("out", Kill(event="call", count=count, later_us=later_us))
    assert {"regions", "scene"} <= found


# Two runs at once


PATIENT = ("--set", "run.retries=50", "--set", "run.retry_delay_s=0.05")


def test_two_runs_at_once_share_the_work_and_lose_no_record(case: Case) -> None:
    """The same scenes in both; and a scene, and a damaged one, that only one of them has."""
    folder, out = case.folder, case.folder / "both"
    lost = [write_damaged(folder / f"torn{number}.tif") for number in range(2)]
    own = [write_scene(folder / f"own{number}.tif", 5 + number) for number in range(2)]
    commands = [
        ("segment", *case.scenes, own[number], lost[number], *case.command("both", *PATIENT)[3:]) for number in range(2)
    ]
    for outcome in case.killer.runs(commands):
        assert outcome.code == 1, outcome.output
        failed = [line for line in outcome.output.splitlines() if line.startswith("failed")]
        assert len(failed) == 1, outcome.output  # the damaged one
    run = json.loads((out / "run.json").read_bytes())
    statuses = {scene["scene"]: scene["status"] for scene in run["scenes"]}
    assert statuses.keys() == {"a", "b", "own0", "own1", "torn0", "torn1"}
    assert {name for name, status in statuses.items() if status == "failed"} == {"torn0", "torn1"}
    quarantined = json.loads((out / "quarantine.json").read_bytes())["scenes"]
    assert {scene["scene"] for scene in quarantined} == {"torn0", "torn1"}
    items = [
        link["href"] for link in json.loads((out / "collection.json").read_bytes())["links"] if link["rel"] == "item"
    ]
    assert sorted(items) == [f"./{name}/item.json" for name in ("a", "b", "own0", "own1")]
    left = contents(out)
    assert {name: left[name] for name in case.calm if name[:2] in ("a/", "b/")} == {
        name: content for name, content in case.calm.items() if name[:2] in ("a/", "b/")
    }
    assert not [name for name in left if name.startswith(".") or "/." in name]
    shutil.rmtree(out)


# A full disk


@pytest.mark.parametrize(
    "file_bytes", [20_000, pytest.param(2_000, marks=pytest.mark.slow), pytest.param(150_000, marks=pytest.mark.slow)]
)
def test_a_file_that_cannot_grow_stops_the_run_and_free_space_lets_it_continue(case: Case, file_bytes: int) -> None:
    refused = case.killer.run(*case.command("small"), file_bytes=file_bytes)
    assert refused.code == 1, refused.output
    assert "disk" in refused.output
    assert "Traceback" not in refused.output
    check_only_complete_scenes(case, case.folder / "small")
    assert case.run("small").code == 0
    assert contents(case.folder / "small") == case.calm
    shutil.rmtree(case.folder / "small")


@pytest.fixture
def small_disk(case: Case) -> Iterator[Callable[[int], Path]]:
    """Makes a disk of so many KiB, or gives the one that is there so many; for who may mount one."""
    place = case.folder / "disk"
    place.mkdir()

    def give(kib: int) -> Path:
        options = [*(["remount"] if os.path.ismount(place) else []), f"size={kib}k"]
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", place], capture_output=True)
        if done.returncode:
            pytest.skip("only root may make a small disk")
        return place

    yield give
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)
    place.rmdir()


@pytest.mark.parametrize(
    "kib", [200, pytest.param(40, marks=pytest.mark.slow), pytest.param(700, marks=pytest.mark.slow)]
)
def test_a_full_disk_stops_the_run_and_free_space_lets_it_continue(
    case: Case, small_disk: Callable[[int], Path], kib: int
) -> None:
    out = small_disk(kib) / "out"
    refused = case.run(str(out))
    assert refused.code == 1, refused.output
    assert "disk" in refused.output
    assert "Traceback" not in refused.output
    check_only_complete_scenes(case, out)
    small_disk(64_000)
    again = case.run(str(out))
    assert again.code == 0, again.output
    assert contents(out) == case.calm


def check_only_complete_scenes(case: Case, out: Path) -> None:
    left = contents(out)
    for name in case.calm:
        if name.endswith(("tif", "gpkg", "png")) and name in left:
            assert left[name] == case.calm[name]
