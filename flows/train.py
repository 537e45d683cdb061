"""The flow `train-network`: one training task; a retry or a second run resumes where the first one stopped.

python -m flows.train --images IMAGES... --labels LABELS --out MODEL     ad hoc, no server needed
prefect deployment run train-network/ad-hoc                              on a server, see prefect.yaml
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.device_limits import hold_devices
from flows.hooks import ON_END
from flows.parameter_schema import settings_schema, settings_validator
from flows.retries import fail_without_traceback
from flows.run_names import run_name
from flows.server_errors import ignore_server_errors
from flows.tasks import train_one
from pipeline.errors import ScenemillError
from pipeline.text import markdown
from pipeline.training import EpochRecord, TrainReport, TrainSpec
from pipeline.training.artifacts import card_page

Settings = Annotated[TrainSpec, settings_validator(TrainSpec), settings_schema(TrainSpec)]
DEFAULTS = TrainSpec()


@flow(name="train-network", flow_run_name=run_name("images"), validate_parameters=True, **ON_END)
@fail_without_traceback
def train_network(images: list[str], labels: list[str], out: str, settings: Settings = DEFAULTS) -> TrainReport:
    """Train a network on labelled scenes; see `pipeline.training.loop.train`.

    Args:
        images: scenes, or folders of scenes.
        labels: vector files or mask rasters, one for all scenes, or folders of them.
        out: the checkpoint to write, `*.safetensors`.
        settings: as in a training settings file, e.g. `{"learning": {"epochs": 20}}`.

    Raises:
        SettingsError: before any work.
        ScenemillError: data that cannot be used for training, with the reason.
    """
    with hold_devices(settings.learning.device):
        report = train_one(images, labels, out, settings)
    if isinstance(report, ScenemillError):
        raise report
    with ignore_server_errors():
        show_training(report, out)
    return report


def show_training(report: TrainReport, out: str) -> None:
    """Show the epochs as a table, and the model card as a page."""
    rows = [_row(record) for record in report.history]
    create_table_artifact(key="train-network", table=rows, description=f"{markdown(out)}, epoch by epoch")
    page = card_page(report.card, checkpoint=report.checkpoint.name, report=report)
    create_markdown_artifact(key="model-card", markdown=page, description=markdown(out))


def _row(record: EpochRecord) -> dict[str, Any]:
    return {
        "epoch": record.epoch,
        "loss": round(record.loss, 4),
        "validation IoU": round(record.iou, 4),
        "learning rate": f"{record.learning_rate:.2e}",
        "seconds": round(record.seconds, 1),
    }


if __name__ == "__main__":
    from flows.command_line import train_command

    train_command(train_network)()
