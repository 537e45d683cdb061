"""Setup of a training run before its first step: split, statistics, network, model card and batch loader."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.model import ModelCard, build_network
from pipeline.model.networks import Shape
from pipeline.model.predictor import resolve_device
from pipeline.training.data.loader import BatchLoader
from pipeline.training.data.samples import LabelledData
from pipeline.training.data.splits import Split, check_validation, split_data
from pipeline.training.data.statistics import DatasetStatistics, compute_statistics
from pipeline.training.data.windows import TrainingWindow, tile_windows
from pipeline.training.identity import versions
from pipeline.training.losses.loss import make_loss
from pipeline.training.settings.spec import TrainSpec
from pipeline.training.trainer import Trainer
from pipeline.training.validation.tally import ValidationCounts


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The objects of a run; only the trainer's weights change from the first step to the last."""

    spec: TrainSpec
    out: Path
    """The checkpoint to write."""
    split: Split
    card: ModelCard
    """Of the untrained network: no metrics, threshold and temperature at their defaults."""
    loader: BatchLoader
    trainer: Trainer

    def cores(self, part: str) -> list[TrainingWindow]:
        """Windows that cover the `validation` or `test` part, each pixel once; empty when there is no such part."""
        return tile_windows(getattr(self.split, part), self.loader.core_size)

    def count(self, cores: Sequence[TrainingWindow]) -> ValidationCounts:
        """Count the predictions of `checkpoint_network` on held-out windows, for all thresholds at once."""
        counts = ValidationCounts(self.spec.outputs, self.spec.activation)
        for batch in self.loader.validation(cores):
            counts.add(*self.trainer.predict(batch))
        return counts


@contextmanager
def set_up(data: LabelledData, spec: TrainSpec, out: Path) -> Iterator[Setup]:
    """Split and measure the data, build the network, and start the loader's threads.

    Refuses data that do not fit the settings. torch's global random state is restored at the end.
    """
    # Side of a window in pixels, without the margin where the network lacks context.
    core_size = spec.samples.tile_size - 2 * spec.network.shape(bands=1, classes=1).margin
    split = split_data(data, spec.split, seed=spec.seed, core_size=core_size)
    check_validation(split)
    statistics = compute_statistics(split.training, spec.classes, seed=spec.seed, spec=spec.normalization)
    shape = spec.network.shape(bands=len(statistics.bands), classes=len(spec.outputs))
    card = make_card(spec, shape, data, split, statistics)
    loss = make_loss(spec.loss, activation=spec.activation, class_share=statistics.class_share.tolist())
    device = resolve_device(spec.learning.device, key="learning.device")
    loader = BatchLoader(spec, card.normalization, margin=shape.margin, device=device)

    # Initial weights depend on the seed alone, and the caller's random state is restored.
    with loader, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(spec.seed)
        trainer = Trainer(build_network(shape), loss, spec.learning, batches=loader.batches_per_epoch, seed=spec.seed)
        yield Setup(spec=spec, out=out, split=split, card=card, loader=loader, trainer=trainer)


def make_card(
    spec: TrainSpec, shape: Shape, data: LabelledData, split: Split, statistics: DatasetStatistics
) -> ModelCard:
    """The model card of the untrained network."""
    sources = [area.source for area in split.training]
    resolution_m = spec.resolution_m or data.resolution_m
    return ModelCard(
        bands=statistics.bands,
        classes=spec.outputs,
        activation=spec.activation,
        background=spec.outputs[0] if spec.activation == "softmax" else None,
        outputs="logits",
        normalization=statistics.normalization(),
        dtype=sources[0].scene.dtype,
        resolution_m=round(resolution_m, 6) if resolution_m else None,
        stride=shape.stride,
        size_offset=shape.size_offset,
        margin=shape.margin,
        receptive_field=shape.receptive_field,
        aligned_halo=shape.aligned_halo,
        training={
            **_parts(split),
            "labels": {"repaired": data.repaired, "dropped": data.dropped},
            "class_share": dict(zip(spec.classes, statistics.class_share.round(6).tolist(), strict=True)),
            "seed": spec.seed,
            "settings": _settings(spec),
            "versions": versions(),
        },
    )


def _parts(split: Split) -> dict[str, object]:
    """Training scenes, and of each held-out part its scenes, number of blocks or scenes, and share of all pixels."""
    record: dict[str, Any] = split.as_record()
    counts = {"validation": len(split.validation), "test": len(split.test)}
    held = {part: {"kind": record["kind"], **record[part], "parts": count} for part, count in counts.items() if count}
    return {"scenes": record["training"]["scenes"], **held}


def _settings(spec: TrainSpec) -> dict[str, object]:
    """All settings; of paths only the file names."""
    validation, test = ([Path(name).stem for name in names] for names in (spec.split.validation, spec.split.test))
    plain = asdict(spec)
    plain["split"] |= {"validation": validation, "test": test}
    plain["labelled_area"] = Path(spec.labelled_area).name if spec.labelled_area else None
    plain["leaves"] = plain.pop("artifacts")  # its key in model cards
    return plain
