"""Everything a run needs before its first step: what is held out, the network, its card, and the feed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from pipeline.training.trainer import Trainer
from pipeline.training.validation.tally import ValidationCounts

if TYPE_CHECKING:
    from pipeline.training.settings.spec import TrainSpec


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What stays the same from the first step to the last, but for the learner's weights."""

    spec: TrainSpec
    """All settings."""
    out: Path
    """The checkpoint to write."""
    split: Split
    """What is learned from, and what is held out."""
    card: ModelCard
    """Of the network before it has learned: no metrics yet, threshold and temperature at their defaults."""
    loader: BatchLoader
    """Makes the batches."""
    trainer: Trainer
    """Learns from them."""

    def cores(self, part: str) -> list[TrainingWindow]:
        """Windows that cover the `validation` or `test` part, each pixel once; none when there is no such part."""
        return tile_windows(getattr(self.split, part), self.loader.core_size)

    def count(self, cores: Sequence[TrainingWindow]) -> ValidationCounts:
        """What the kept weights make of held-out windows, over all thresholds at once."""
        tally = ValidationCounts(self.spec.outputs, self.spec.activation)
        for batch in self.loader.validation(cores):
            tally.add(*self.trainer.predict(batch))
        return tally


@contextmanager
def set_up(data: LabelledData, spec: TrainSpec, out: Path) -> Iterator[Setup]:
    """Split and survey the data, build the network, and start the threads that feed it.

    torch's global generators are as they were when this ends.

    Raises:
        SettingsError: the data do not fit the settings.
        SceneError: the training part has no valid pixel, or a constant band.
        LabelError: a class has no pixel, or nothing is labelled in the validation part.
    """
    core_size = spec.samples.tile_size - 2 * spec.network.shape(bands=1, classes=1).margin
    split = split_data(data, spec.split, seed=spec.seed, core_size=core_size)
    check_validation(split)
    facts = compute_statistics(split.training, spec.classes, seed=spec.seed, spec=spec.normalization)
    shape = spec.network.shape(bands=len(facts.bands), classes=len(spec.outputs))
    card = make_card(spec, shape, data, split, facts)
    loss = make_loss(spec.loss, activation=spec.activation, class_share=facts.class_share.tolist())
    loader = BatchLoader(
        spec,
        card.normalization,
        margin=shape.margin,
        device=resolve_device(spec.learning.device, key="learning.device"),
    )
    with loader, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(spec.seed)
        trainer = Trainer(build_network(shape), loss, spec.learning, batches=loader.batches_per_epoch, seed=spec.seed)
        yield Setup(spec=spec, out=out, split=split, card=card, loader=loader, trainer=trainer)


def make_card(spec: TrainSpec, shape: Shape, data: LabelledData, split: Split, facts: DatasetStatistics) -> ModelCard:
    """The card of a network that is about to be trained."""
    sources = [area.source for area in split.training]
    resolution_m = spec.resolution_m or data.resolution_m
    return ModelCard(
        bands=facts.bands,
        classes=spec.outputs,
        activation=spec.activation,
        background=spec.outputs[0] if spec.activation == "softmax" else None,
        outputs="logits",
        normalization=facts.normalization(),
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
            "class_share": dict(zip(spec.classes, facts.class_share.round(6).tolist(), strict=True)),
            "seed": spec.seed,
            "settings": _settings(spec),
            "versions": versions(),
        },
    )


def _parts(split: Split) -> dict[str, object]:
    """What was learned from, and what was held out: scenes, how many parts (blocks or scenes), share of all pixels."""
    told: dict[str, Any] = split.as_record()
    counts = {"validation": len(split.validation), "test": len(split.test)}
    held = {part: {"kind": told["kind"], **told[part], "parts": count} for part, count in counts.items() if count}
    return {"scenes": told["training"]["scenes"], **held}


def _settings(spec: TrainSpec) -> dict[str, object]:
    """All settings, without the folders of this machine."""
    validation, test = ([Path(name).stem for name in names] for names in (spec.split.validation, spec.split.test))
    plain = asdict(spec)
    plain["split"] |= {"validation": validation, "test": test}
    plain["labelled_area"] = Path(spec.labelled_area).name if spec.labelled_area else None
    return plain
