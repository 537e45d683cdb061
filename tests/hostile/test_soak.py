"""Soak in small: forty mixed scenes, some of them bad, leave no open file and no thread, and every result is right."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.soak_scenes import FAULTS, write_model, write_scene

SCENES = 40


def test_scenes_of_every_kind_leave_no_file_open_and_no_thread(tmp_path: Path) -> None:
    scenes, listed = soak.write_scenes(tmp_path, SCENES)
    samples = soak.run_apart("library", listed, write_model(tmp_path), tmp_path / "out")
    figures = soak.measure("library", samples, soak.wrong_results(scenes, tmp_path / "out"))
    assert figures.scenes == SCENES
    assert figures.faults == []


def test_every_fault_fails_its_scene_and_no_other(tmp_path: Path) -> None:
    place = tmp_path / "scenes"
    place.mkdir()
    bad = [write_scene(place, number * soak.BAD_EVERY, bad=True) for number in range(len(FAULTS))]
    assert {scene.kind for scene in bad} == {*FAULTS}
    scenes = [*bad, write_scene(place, 1, bad=False)]
    listed = tmp_path / "scenes.txt"
    listed.write_text("".join(f"{scene.path}\n" for scene in scenes))
    soak.run_library(listed, write_model(tmp_path), tmp_path / "out", lambda _: None)
    assert soak.wrong_results(scenes, tmp_path / "out") == []


def test_a_leak_is_called_one() -> None:
    flat = [soak.Sample(second=n, resident_mib=500, handles=9, threads=5) for n in range(600)]
    assert soak.measure("library", flat, []).faults == []
    leaks = [
        soak.Sample(second=n, resident_mib=500 + n, handles=9 + n // 100, threads=5 + n // 100) for n in range(600)
    ]
    memory, handles, threads = soak.measure("library", leaks, []).faults
    assert "memory grows by 1000 MiB for 1,000 scenes" in memory
    assert "open files: 11 after the warm-up, 14 at the end" in handles
    assert "threads: 7 after the warm-up, 10 at the end" in threads


@pytest.mark.slow
def test_the_soak_of_the_flow_finds_every_result_right(tmp_path: Path) -> None:
    scenes, listed = soak.write_scenes(tmp_path, SCENES)
    samples = soak.run_apart("flow", listed, write_model(tmp_path), tmp_path / "flow")
    figures = soak.measure("flow", samples, soak.wrong_results(scenes, tmp_path / "flow"))
    assert figures.wrong == ()
    assert figures.handles[1] <= figures.handles[0]
