"""The flow `train-network`: one task that trains; a retry or a second run goes on where the first one stopped.

python -m flows.train --images IMAGES... --labels LABELS --out MODEL     ad hoc, no server needed
prefect deployment run train-network/ad-hoc                              on a server, see prefect.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.schemas.objects import State

from flows.ad_hoc import Labels, Overrides, run_once
from flows.artifacts import unless_away
from flows.device_limits import device_turn
from flows.forms import form, reader
from flows.hooks import ON_END
from flows.run_names import run_name
from flows.tasks import plainly, train_one
from pipeline.errors import ScenemillError
from pipeline.training.card_page import card_page
from pipeline.training.records import EpochRecord, TrainReport
from pipeline.training.settings import TrainSpec

TrainForm = Annotated[TrainSpec, reader(TrainSpec), form(TrainSpec)]
DEFAULTS = TrainSpec()


@flow(name="train-network", flow_run_name=run_name("images"), validate_parameters=True, **ON_END)
@plainly
def train_network(images: list[str], labels: list[str], out: str, settings: TrainForm = DEFAULTS) -> TrainReport:
    """Train a network on labelled scenes; see `pipeline.training.train.train`.

    Args:
        images: scenes, or folders of scenes.
        labels: vector files or mask rasters, one for all scenes, or folders of them.
        out: the checkpoint to write, `*.safetensors`.
        settings: as in a training settings file, e.g. `{"learning": {"epochs": 20}}`.

    Raises:
        SettingsError: before any work.
        ScenemillError: data that cannot be learned from, with the reason.
    """
    with device_turn(settings.learning.device):
        report = train_one(images, labels, out, settings)
    if isinstance(report, ScenemillError):
        raise report
    with unless_away():
        show_training(report, out)
    return report


def show_training(report: TrainReport, out: str) -> None:
    """Show the epochs as a table, and the model card as a page."""
    rows = [_row(record) for record in report.history]
    create_table_artifact(key="train-network", table=rows, description=f"{out}, epoch by epoch")
    page = card_page(report.card, checkpoint=report.checkpoint.name, report=report)
    create_markdown_artifact(key="model-card", markdown=page, description=out)


def _row(record: EpochRecord) -> dict[str, Any]:
    return {
        "epoch": record.epoch,
        "loss": round(record.loss, 4),
        "validation IoU": round(record.iou, 4),
        "learning rate": f"{record.learning_rate:.2e}",
        "seconds": round(record.seconds, 1),
    }


app = App(name="python -m flows.train", help="Run the flow train-network once, with or without a Prefect server.")


@app.default
def _run_once(
    *,
    images: Annotated[list[str], Parameter(help="Scenes, or folders of scenes.", consume_multiple=True)],
    labels: Labels,
    out: Annotated[Path, Parameter(help="Checkpoint to write, *.safetensors.")],
    config: Annotated[Path | None, Parameter(help="YAML file of settings; see configs/train.yaml.")] = None,
    overrides: Overrides = (),
) -> int:
    """Exit code 0: trained; 1: it failed or diverged, the log says why; 2: wrong usage or settings."""

    def start(settings: TrainSpec) -> State[Any]:
        return train_network(images, labels, str(out), settings, return_state=True)

    return run_once(app, start, TrainSpec, config, overrides)


if __name__ == "__main__":
    app()
