"""Final checkpoint, calibration and report: the last steps of a training run.

Temperature and threshold are chosen on the validation part; the test part is only scored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from torch import Tensor

from pipeline.model import ModelCard, load_checkpoint, save_checkpoint
from pipeline.model.predictor import activate
from pipeline.training.artifacts.overlays import PredictedWindow
from pipeline.training.artifacts.write import write_artifacts
from pipeline.training.data.loader import Batch
from pipeline.training.data.samples import read_padded
from pipeline.training.data.windows import TrainingWindow
from pipeline.training.records import EpochRecord, PartScores, Stop, TrainReport
from pipeline.training.report import write_report
from pipeline.training.setup import Setup
from pipeline.training.state import StateStore, TrainingState
from pipeline.training.validation.calibration import (
    Reliability,
    fit_temperature,
    reliability,
    resolvable_temperature,
    scaled_threshold,
)
from pipeline.training.validation.tally import ValidationCounts


@dataclass(frozen=True, kw_only=True)
class PartResult:
    """Scores and calibration of the kept weights on one held-out part."""

    scores: PartScores
    """At the threshold and temperature chosen on validation."""
    before: Reliability
    """Of the uncalibrated probabilities."""
    after: Reliability
    """Of the calibrated probabilities."""


def finish(setup: Setup, store: StateStore, state: TrainingState, stopped: Stop) -> TrainReport:
    """Write the final checkpoint of the kept epoch, the artifacts of the run, and its report."""
    record = state.kept_epoch(setup.spec.learning.keep)
    assert record is not None
    assert store.best is not None

    # The network holds the last epoch's weights, which need not be those kept.
    setup.trainer.checkpoint_network.load_state_dict(load_checkpoint(store.best).network.state_dict())
    counts = setup.count(setup.cores("validation"))
    threshold = counts.best_threshold  # of uncalibrated probabilities
    temperature = resolvable_temperature(fit_temperature(counts.sample, setup.spec.activation), threshold)
    parts = {"validation": score_part(counts, threshold, temperature)}
    if tests := setup.cores("test"):
        parts["test"] = score_part(setup.count(tests), threshold, temperature)
    card = _final_card(setup.card, record, parts, threshold=threshold, temperature=temperature)
    sha256 = save_checkpoint(setup.out, setup.trainer.checkpoint_network, card)
    report = TrainReport(
        checkpoint=setup.out,
        sha256=sha256,
        card=card,
        best_epoch=record.epoch,
        best_iou=record.iou,
        stopped=stopped,
        history=state.history,
        seconds=state.seconds,
        pixels_per_second=_pixels(setup, state) / state.learning_s if state.learning_s else 0.0,
        folder=store.folder,
        validation=parts["validation"].scores,
        test=parts["test"].scores if "test" in parts else None,
    )

    # The report comes last: it marks the run as finished.
    windows = predict_windows(setup, setup.cores("validation"), card) if setup.spec.artifacts.overlays else ()
    curves = parts["validation"].before, parts["validation"].after
    write_artifacts(store.folder, report, spec=setup.spec.artifacts, reliability=curves, windows=windows)
    write_report(report, store.identity)
    if stopped != "time":  # a later command may allow more time
        store.clear()
    return report


def provisional_card(card: ModelCard, record: EpochRecord) -> ModelCard:
    """The card of the best epoch so far, while the run is in progress: usable, not yet calibrated."""
    scores = {"iou": record.iou, "f1": record.f1, "bce": record.bce, "classes": record.classes}
    metrics = {"epoch": record.epoch, "validation": _plain(scores)}
    return replace(card, threshold=record.threshold, training={**card.training, "metrics": metrics})


def score_part(counts: ValidationCounts, threshold: float, temperature: float) -> PartResult:
    """Scores of one held-out part at a threshold of the uncalibrated probabilities."""
    confusion = counts.confusion(threshold)
    before = reliability(counts.sample, counts.activation, 1.0)
    after = reliability(counts.sample, counts.activation, temperature)
    scores = PartScores(
        iou=confusion.mean_iou,
        f1=confusion.mean_f1,
        bce=counts.bce,
        ece_before=before.ece,
        ece=after.ece,
        classes=confusion.as_record(counts.outputs),
    )
    return PartResult(scores=scores, before=before, after=after)


def predict_windows(setup: Setup, cores: Sequence[TrainingWindow], card: ModelCard) -> Iterator[PredictedWindow]:
    """Held-out windows with the predictions of the kept weights, one by one."""
    rest = iter(cores)
    for batch in setup.loader.validation(cores):
        probabilities = activate(setup.trainer.predict(batch)[0], card)
        for row, core in zip(range(len(probabilities)), rest, strict=False):
            yield _predicted_window(core, batch, row, probabilities[row])


def _predicted_window(core: TrainingWindow, batch: Batch, row: int, probability: Tensor) -> PredictedWindow:
    sample = read_padded(core.source, core.row, core.col, probability.shape[-1])
    return PredictedWindow(
        scene=core.source.scene.id,
        row=core.row,
        col=core.col,
        pixels=sample.pixels,
        valid=sample.valid,
        truth=batch.target[row].cpu().numpy() > 0,
        weight_mask=batch.weight_mask[row].cpu().numpy(),
        probability=probability.float().cpu().numpy(),
    )


def _final_card(
    card: ModelCard, record: EpochRecord, parts: dict[str, PartResult], *, threshold: float, temperature: float
) -> ModelCard:
    metrics = {part: _plain(asdict(result.scores)) for part, result in parts.items()}
    calibration = {"temperature": temperature, "threshold_before": threshold}
    training = {**card.training, "metrics": {"epoch": record.epoch, **metrics}, "calibration": calibration}
    return replace(card, temperature=temperature, threshold=scaled_threshold(threshold, temperature), training=training)


def _plain(scores: Mapping[str, object]) -> dict[str, object]:
    """Scores for JSON: rounded, None where undefined."""
    return {
        key: value if not isinstance(value, float) else round(value, 6) if math.isfinite(value) else None
        for key, value in scores.items()
    }


def _pixels(setup: Setup, state: TrainingState) -> int:
    """Pixels trained on in all epochs."""
    batches = len(state.history) * setup.loader.batches_per_epoch + state.batch
    return batches * setup.spec.samples.batch_size * setup.spec.samples.tile_size**2
