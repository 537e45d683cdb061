"""An interrupted run, stopped anywhere, ends in the same bytes as an uninterrupted one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import rasterio
import torch
from conftest import MakeScene
from hypothesis import given, settings
from hypothesis import strategies as st
from support.labelled import SMALL, Town

from pipeline.errors import TransientError
from pipeline.model.networks.registry import NetworkSpec
from pipeline.storage.files import atomic_write
from pipeline.training.loop import run_folder, train
from pipeline.training.records import EpochRecord, TrainProgress, TrainReport
from pipeline.training.settings.data import SplitSpec
from pipeline.training.settings.learning import OptimizationSpec
from pipeline.training.settings.spec import TrainSpec
from pipeline.training.state import StateStore, TrainingState, locked_run_folder

EPOCHS, STEPS = 3, 5
SPEC = replace(
    SMALL,
    network=NetworkSpec(depth=2, base_channels=8, dropout=0.3),
    split=SplitSpec(block_size=32, test_share=0.1),
    samples=replace(SMALL.samples, windows_per_epoch=4 * STEPS),
    learning=OptimizationSpec(epochs=EPOCHS, learning_rate=5e-3, precision="float32", device="cpu", save_minutes=0,
                          accumulate=2, ema_decay=0.5, schedule="plateau", drop_epochs=1),
)  # fmt: skip
"""Everything that has a state, saved at every step."""


class StopError(Exception):
    """What ends a run in these tests."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are faster so, and the uninterrupted run is to have as many threads as the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def lean(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pictures, which take longer than these runs."""
    monkeypatch.setattr("pipeline.training.finish.write_artifacts", lambda *_, **__: ())


def run(town: Town, out: Path, *, spec: TrainSpec = SPEC, **options: Any) -> TrainReport:
    return train([town.image], town.labels, out, spec=spec, **options)


def run_until(town: Town, out: Path, *, stop_after: int, spec: TrainSpec = SPEC) -> list[tuple[int, int]]:
    """A training that is stopped after so many batches; returns the epochs and steps that it told."""
    updates: list[tuple[int, int]] = []

    def progress(step: TrainProgress) -> None:
        updates.append((step.epoch, step.step))
        if len(updates) == stop_after:
            raise StopError

    with suppress(StopError):
        run(town, out, spec=spec, progress=progress)
    return updates


def untimed(history: tuple[EpochRecord, ...]) -> list[EpochRecord]:
    return [replace(record, seconds=0) for record in history]


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Town:
    """One for all tests here; none changes it."""
    folder = tmp_path_factory.mktemp("town")

    def write(pixels: Any, *, name: str, **profile: Any) -> Path:
        bands = np.atleast_3d(pixels.T).T
        size = dict(zip(("count", "height", "width"), bands.shape, strict=True))
        (folder / name).parent.mkdir(exist_ok=True)
        with rasterio.open(folder / name, "w", driver="GTiff", dtype="uint8", **size, **profile) as dataset:
            dataset.write(bands)
        return folder / name

    return Town(folder, cast(MakeScene, write))


@pytest.fixture(scope="module")
def unbroken(town: Town, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.training.finish.write_artifacts", lambda *_, **__: ())
        return run(town, tmp_path_factory.mktemp("unbroken") / "m.safetensors")


@settings(max_examples=4)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_stops_at_any_steps_change_nothing(unbroken: TrainReport, town: Town, stops: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "m.safetensors"
        for count in stops:
            run_until(town, out, stop_after=count)
        report = run(town, out)
        assert out.read_bytes() == unbroken.checkpoint.read_bytes()
    assert untimed(report.history) == untimed(unbroken.history)
    assert (report.test, report.validation) == (unbroken.test, unbroken.validation)


def test_a_stopped_run_resumes_after_its_last_complete_step(town: Town, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    assert run_until(town, out, stop_after=3) == [(1, 1), (1, 2), (1, 3)]
    assert run_until(town, out, stop_after=4) == [(1, 3), (1, 4), (1, 5), (2, 1)]  # batch 3 was half a step
    assert run_until(town, out, stop_after=1) == [(2, 1)]
    assert run_until(town, out, stop_after=99) == [(epoch, step) for epoch in (2, 3) for step in range(1, 6)]
    assert not (run_folder(out) / "state").exists()


KILLER = """
import os, random, signal, sys, time
sys.path[:0] = sys.argv[1:4]
import torch
import torch._dynamo  # which an optimizer imports
import pipeline.training.finish as finish
from pipeline.training.loop import train
from test_training_resume import SPEC

finish.write_artifacts = lambda *_, **__: ()
random.seed(1)
for attempt in range(50):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)

        def report(step):
            print(attempt, step.epoch, step.step, flush=True)
            os.write(writer, b".")

        train([sys.argv[4]], sys.argv[5], sys.argv[6], spec=SPEC, progress=report)
        os._exit(0)
    os.close(writer)
    for _ in range((3, 1, 4, 2)[attempt % 4]):
        os.read(reader, 1)  # a step, or its end
    time.sleep(random.uniform(0, 0.02))
    if os.waitpid(child, os.WNOHANG)[0]:
        break
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader)
"""
"""Trains in one process after another, each killed at a random time after some steps, until one ends by itself.

The first is killed after its third, when the state after two is on the disk: some process goes on inside an epoch.
"""


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(unbroken: TrainReport, town: Town, tmp_path: Path) -> None:
    out, here = tmp_path / "m.safetensors", Path(__file__)
    (tmp_path / f".{out.name}.0123abcd.partial").touch()  # what a kill while writing leaves
    arguments = [here.parent, *here.parents[1:3], town.image, town.labels, out]
    done = subprocess.run(
        [sys.executable, "-c", KILLER, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == unbroken.checkpoint.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"m.safetensors", "m.run"}
    steps = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    begins = [min(step[1:] for step in steps if step[0] == attempt) for attempt in {step[0] for step in steps}]
    assert len(begins) >= 3
    assert any(step > 1 for _, step in begins), "no attempt went on inside an epoch"
    assert begins.count((1, 1)) < len(begins) - 1


def test_a_finished_run_is_recognised_and_nothing_is_done(unbroken: TrainReport, town: Town) -> None:
    def never(step: TrainProgress) -> None:
        raise AssertionError(step)

    before = unbroken.checkpoint.stat().st_mtime_ns
    assert run(town, unbroken.checkpoint, progress=never) == replace(unbroken, reused=True)
    easier = replace(SPEC, learning=replace(SPEC.learning, max_minutes=9.0), samples=replace(SPEC.samples, threads=2))
    assert run(town, unbroken.checkpoint, spec=easier, progress=never).reused
    assert unbroken.checkpoint.stat().st_mtime_ns == before


def test_a_run_of_other_settings_or_data_restarts_and_logs_why(
    town: Town, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "m.safetensors"
    run_until(town, out, stop_after=7)
    other = replace(SPEC, seed=1, samples=replace(SPEC.samples, batch_size=2))
    assert run_until(town, out, spec=other, stop_after=3)[0] == (1, 1)
    assert "starts again: settings.seed was 0, is 1; settings.samples.batch_size was 4, is 2" in caplog.text
    assert run_until(town, out, spec=other, stop_after=1) == [(1, 3)]
    labels = tmp_path / town.labels.name
    labels.write_bytes(town.labels.read_bytes())
    updates: list[TrainProgress] = []
    train([town.image], labels, out, spec=other, progress=updates.append)
    assert (updates[0].epoch, updates[0].step) == (1, 1)
    assert f"labels.0 {town.labels.name} was" in caplog.text
    caplog.clear()
    assert not run(town, out).reused
    assert f"{out} is trained again: settings.seed was 1, is 0" in caplog.text


def test_a_run_can_be_asked_to_start_again(unbroken: TrainReport, town: Town, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    run_until(town, out, stop_after=4)
    updates: list[TrainProgress] = []
    report = run(town, out, resume=False, progress=updates.append)
    assert len(updates) == EPOCHS * STEPS
    assert not run(town, out, resume=False).reused
    assert report.sha256 == unbroken.sha256


def test_a_lost_or_foreign_checkpoint_is_not_taken_for_a_finished_run(
    unbroken: TrainReport, town: Town, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    run(town, out)
    whole = out.read_bytes()
    out.unlink()
    assert not run(town, out).reused
    assert out.read_bytes() == whole
    run(town, tmp_path / "other.safetensors", spec=replace(SPEC, seed=1))
    (tmp_path / "other.safetensors").rename(out)
    assert not run(town, out).reused
    assert out.read_bytes() == whole


@pytest.mark.parametrize("harm", ["flip", "cut", "lose", "scribble"])
def test_a_damaged_state_is_detected_and_the_run_restarts(
    unbroken: TrainReport, town: Town, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "m.safetensors"
    run_until(town, out, stop_after=4)
    state = run_folder(out) / "state"
    (weights,) = state.glob("*.safetensors")
    content = bytearray(weights.read_bytes())
    content[-9] ^= 1
    if harm == "lose":
        weights.unlink()
    elif harm == "scribble":
        (state / "state.json").write_text('{"identity": 3')
    else:
        weights.write_bytes(content if harm == "flip" else content[:-100])
    assert run(town, out).sha256 == unbroken.sha256
    assert "starts again" in caplog.text or harm == "lose"


def test_a_run_out_of_time_resumes_with_more_time(unbroken: TrainReport, town: Town, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    short = replace(SPEC, learning=replace(SPEC.learning, max_minutes=1e-6))
    report = run(town, out, spec=short)
    assert (report.stopped, len(report.history)) == ("time", 1)
    assert run(town, out, spec=short).reused
    longer = run(town, out)
    assert (longer.stopped, longer.sha256) == ("finished", unbroken.sha256)


def test_the_best_epoch_is_kept_even_when_its_file_is_replaced(
    unbroken: TrainReport, town: Town, tmp_path: Path
) -> None:
    out = tmp_path / "m.safetensors"
    run_until(town, out, stop_after=EPOCHS * STEPS)
    out.write_bytes(b"something else")
    assert run(town, out).sha256 == unbroken.sha256


def test_two_trainings_do_not_write_to_the_same_place(town: Town, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    with (
        locked_run_folder(run_folder(out)),
        pytest.raises(TransientError, match=r"m\.run: another training is writing here"),
    ):
        run(town, out)
    assert not run_folder(out).exists()


def test_nothing_but_the_files_named_stays_in_a_state(tmp_path: Path) -> None:
    state = StateStore(tmp_path, {"seed": 0})
    for number in range(3):
        state.write(TrainingState(epoch=number + 1), {"w": torch.full((3,), float(number))})
    assert len(list((tmp_path / "state").iterdir())) == 2
    found = StateStore(tmp_path, {"seed": 0}).read()
    assert found is not None
    assert (found[0].epoch, found[1]["w"].tolist()) == (3, [2.0, 2.0, 2.0])
    assert StateStore(tmp_path, {"seed": 1}).read() is None


def test_a_state_is_written_before_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateStore(tmp_path, {})
    state.write(TrainingState(epoch=1), {"w": torch.zeros(3)})

    def killed(path: Path, content: bytes | str) -> None:
        if path.suffix == ".json":
            raise StopError
        atomic_write(path, content)

    monkeypatch.setattr("pipeline.training.state.atomic_write", killed)
    with pytest.raises(StopError):
        state.write(TrainingState(epoch=2), {"w": torch.ones(3)})
    found = StateStore(tmp_path, {}).read()
    assert found is not None
    assert found[1]["w"].tolist() == [0, 0, 0]
