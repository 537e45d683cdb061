"""The training flow: the checkpoint of the command, shown as artifacts; a second run has nothing to do."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from support.labelled import SMALL, Town

from flows import tasks as flow_tasks
from flows import train as flow_train
from flows.command_line import train_command
from flows.train import train_network
from pipeline.cli import main
from pipeline.errors import DivergedError, LabelError, SettingsError, TransientError
from pipeline.training.loop import train
from pipeline.training.records import TrainReport

pytestmark = pytest.mark.usefixtures("ephemeral")

from_command_line = train_command(train_network)


def test_the_flow_trains_what_the_library_trains_and_shows_the_card(town: Town, tmp_path: Path) -> None:
    given = ([str(town.image)], [str(town.labels)], str(tmp_path / "flow.safetensors"), asdict(SMALL))
    report = train_network(*given)
    assert report.sha256 == train([town.image], town.labels, tmp_path / "own.safetensors", spec=SMALL).sha256
    with get_client(sync_client=True) as client:
        wanted = {"artifacts": {"key": {"any_": ["model-card"]}}}
        (card,) = client.request("POST", "/artifacts/filter", json=wanted).json()
    assert "# Model card: flow.safetensors" in card["data"]
    assert train_network(*given).reused


def test_the_flow_refuses_wrong_settings_and_labels_with_the_reason(town: Town, tmp_path: Path) -> None:
    images, out = [str(town.image)], str(tmp_path / "model.safetensors")
    with pytest.raises(SettingsError, match=r"flow parameter settings: unknown key learning\.speed"):
        train_network(images, [str(town.labels)], out, {"learning": {"speed": 1}})
    with pytest.raises(LabelError, match="no such label file"):
        train_network(images, [str(tmp_path / "absent.gpkg")], out, asdict(SMALL))


@pytest.mark.parametrize(("key", "code"), [("learning.epochs=0", 2), ("samples.tile_size=33", 2)])
def test_the_ad_hoc_entry_refuses_settings_before_prefect_starts(
    town: Town, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, code: int
) -> None:
    given = ["--images", str(town.image), "--labels", str(town.labels), "--out", str(tmp_path / "m.safetensors")]
    assert from_command_line([*given, "--set", key], result_action="return_value") == code
    assert key.partition("=")[0] in capsys.readouterr().err.replace("\n", "")


def test_a_transient_error_is_retried_and_the_training_resumes_where_it_stopped(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def shaky(*given: Any, **options: Any) -> TrainReport:
        tries.append(1)
        if len(tries) < 3:
            raise TransientError("the disk is away")
        return train(*given, **options)

    monkeypatch.setattr(flow_tasks, "train", shaky)
    monkeypatch.setattr(flow_train, "train_one", flow_tasks.train_one.with_options(retry_delay_seconds=0))
    report = train_network([str(town.image)], [str(town.labels)], str(tmp_path / "m.safetensors"), SMALL)
    assert len(tries) == 3
    assert report.checkpoint.is_file()


def test_a_training_that_diverges_ends_with_the_same_code_in_flow_and_command(
    town: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*given: Any, **options: Any) -> TrainReport:
        raise DivergedError("the loss became NaN, before any checkpoint was worth keeping")

    monkeypatch.setattr(flow_tasks, "train", diverge)
    monkeypatch.setattr("pipeline.training.train", diverge)
    given = ["--images", str(town.image), "--labels", str(town.labels), "--out", str(tmp_path / "m.safetensors")]
    assert from_command_line(given, result_action="return_value") == 1
    with pytest.raises(SystemExit) as done:
        main(["train", *given])
    assert done.value.code == 1
