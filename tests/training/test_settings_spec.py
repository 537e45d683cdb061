"""Training settings: commented defaults, and bounds with clear messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import load_settings
from pipeline.errors import SettingsError
from pipeline.model.networks.registry import NetworkSpec
from pipeline.scene.spec import ReadingSpec
from pipeline.training.settings.augment import ContrastSpec
from pipeline.training.settings.data import SamplesSpec, SplitSpec
from pipeline.training.settings.learning import OptimizationSpec
from pipeline.training.settings.losses import LossSpec
from pipeline.training.settings.spec import TrainSpec


def test_the_commented_settings_file_holds_the_defaults() -> None:
    file = Path(__file__).parents[2] / "configs" / "train.yaml"
    assert load_settings(TrainSpec, file) == TrainSpec()
    assert "scenemill train --images" in file.read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainSpec(classes=()), "classes must be 1 to 254"),
        (lambda: TrainSpec(classes=("a", "a")), "different names"),
        (lambda: TrainSpec(seed=-1), "seed must be at least 0, not -1"),
        (lambda: TrainSpec(loss=LossSpec(class_weights=(1.0, 2.0))), "one number for each of object, not 2"),
        (lambda: TrainSpec(resolution_m=0), "resolution_m must be above 0, not 0"),
        (lambda: TrainSpec(reading=ReadingSpec(resolution_m=0.3)), "reading.resolution_m must stay native"),
        (lambda: TrainSpec(samples=SamplesSpec(tile_size=250)), "0 modulo 16.*not 250; the next that fits is 256"),
        (lambda: TrainSpec(network=NetworkSpec(padding="valid")), "12 modulo 16 and above 184.*next that fits is 268"),
        (lambda: NetworkSpec(depth=7), "depth must be a whole number from 2 to 5"),
        (lambda: SamplesSpec(batch_size=0), "batch_size must be at least 1, not 0"),
        (lambda: SamplesSpec(labelled_share=1.5), "labelled_share must be from 0 to 1"),
        (lambda: SplitSpec(validation_share=0), "validation_share must be above 0"),
        (lambda: SplitSpec(validation_share=0.5, test_share=0.4), "must leave a fifth for training, but 0.5 and 0.4"),
        (lambda: ContrastSpec(factor=1), "factor must be from 0 to 0.9, not 1"),
        (lambda: LossSpec(terms={"bce": 0.0}), "terms must name a loss"),
        (lambda: OptimizationSpec(learning_rate=1), "learning_rate must be above 0 and at most 0.1 for adamw, not 1"),
        (lambda: OptimizationSpec(max_minutes=0), "max_minutes must be above 0"),
    ],
)
def test_settings_out_of_bounds_name_the_bound(make: Callable[[], object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


def test_the_section_of_artifacts_is_accepted_by_its_former_name(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("leaves: {overlays: 3}\n")
    spec = load_settings(TrainSpec, file=tmp_path / "train.yaml", overrides=["leaves.tensorboard=true"])
    assert (spec.artifacts.overlays, spec.artifacts.tensorboard) == (3, True)
