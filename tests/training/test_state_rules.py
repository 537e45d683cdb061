"""The state of a training: what a step and an epoch change, which epoch is best, and which files stay."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.training.records import EpochRecord
from pipeline.training.state import StateStore, TrainingState
from pipeline.training.trainer import EMA


def record(epoch: int, iou: float) -> EpochRecord:
    return EpochRecord(epoch=epoch, loss=1.0, learning_rate=0.1, iou=iou, seconds=2.0)


def test_steps_add_up_and_an_epoch_begins_the_next() -> None:
    state = TrainingState().after_batch(2.0, 3.0).after_batch(5.0, 4.0)
    assert (state.epoch, state.batch, state.loss_sum, state.epoch_s, state.learning_s) == (1, 2, 7.0, 7.0, 7.0)
    following = state.after_epoch(record(1, 0.5))
    assert (following.epoch, following.batch, following.loss_sum, following.epoch_s) == (2, 0, 0.0, 0.0)
    assert (following.learning_s, following.history) == (7.0, (record(1, 0.5),))


def test_the_best_epoch_has_the_highest_iou_the_first_of_equals() -> None:
    state = TrainingState()
    assert state.best is None
    for epoch, iou in enumerate((0.3, 0.6, 0.6, 0.2), start=1):
        state = state.after_epoch(record(epoch, iou))
    assert state.best == record(2, 0.6)
    assert state.kept_epoch("best") == record(2, 0.6)
    assert state.kept_epoch("last") == record(4, 0.2)


def test_the_best_checkpoint_outlives_the_states_after_it(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"best")
    store = StateStore(tmp_path / "run", {})
    store.keep_best(tmp_path / "m.safetensors", "abc")
    for number in range(3):
        store.write(TrainingState(epoch=number + 1), {"w": torch.full((3,), float(number))})
    found = StateStore(tmp_path / "run", {})
    assert found.read() is not None
    assert found.best is not None
    assert found.best.read_bytes() == b"best"


def test_a_state_whose_best_checkpoint_is_gone_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"best")
    store = StateStore(tmp_path / "run", {})
    store.keep_best(tmp_path / "m.safetensors", "abc")
    store.write(TrainingState(), {"w": torch.zeros(3)})
    assert store.best is not None
    store.best.unlink()
    assert StateStore(tmp_path / "run", {}).read() is None
    assert "is missing" in caplog.text


def test_counters_are_copied_into_an_average() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    average = EMA(network, 0.5)
    network(torch.ones(1, 1, 2, 2))
    average.update(1)
    assert int(average.network.state_dict()["1.num_batches_tracked"]) == 1
