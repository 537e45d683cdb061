"""The commands `train`, `evaluate`, `import-model` and `export-onnx`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from pipeline.cli.console import (
    EXIT_DONE,
    EXIT_SOME_FAILED,
    ConfigFile,
    Images,
    Labels,
    Overrides,
    console,
    escape,
    say,
    show_table,
)

if TYPE_CHECKING:
    from pipeline.evaluation import Estimate, EvaluationReport
    from pipeline.training import TrainReport


def train(
    *,
    images: Images,
    labels: Labels,
    out: Annotated[Path, Parameter(help="Checkpoint to write, *.safetensors.")],
    config: ConfigFile = None,
    overrides: Overrides = (),
    resume: Annotated[bool, Parameter(help="Resume an interrupted run of the same settings and data.")] = True,
) -> int:
    """Train a network on labelled scenes; the best epoch becomes the checkpoint, OUT.run/ holds its history."""
    from pipeline.cli.progress import progress_bars, train_progress
    from pipeline.config import load_settings
    from pipeline.training import TrainSpec
    from pipeline.training import train as train_network

    spec = load_settings(TrainSpec, config, overrides)
    with progress_bars(console) as bars:
        report = train_network(images, labels, out, spec=spec, progress=train_progress(bars), resume=resume)
    _show_history(report)
    _show_parts(report)
    done = "finished before, nothing to do" if report.reused else f"stopped: {report.stopped}"
    say(
        f"{report.checkpoint}: validation IoU {report.best_iou:.3f} in epoch {report.best_epoch}, "
        f"threshold {report.card.threshold:.3g}, temperature {report.card.temperature:.3g}, "
        f"{report.pixels_per_second / 1e6:.2f} Mpx/s, {done}"
    )
    say(f"history, curves, pictures and the card's page: {report.folder}")
    return EXIT_DONE


def evaluate(
    *,
    images: Images,
    labels: Labels,
    out: Annotated[Path, Parameter(help="Folder of the evaluation: page, JSON, error maps.")],
    model: Annotated[
        list[Path] | None, Parameter(help="A checkpoint: every scene is segmented first; several: the mean of all.")
    ] = None,
    mosaics: Annotated[Path | None, Parameter(help="Folder of a segment run, or one probability.tif.")] = None,
    polygons: Annotated[Path | None, Parameter(help="A vector file, a folder of them, or of a segment run.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = (),
) -> int:
    """Compare a model, mosaics or polygons (one of them) with labels: scores with intervals, error maps, a page."""
    from pipeline.cli.progress import progress_bars, scene_progress
    from pipeline.config import load_settings
    from pipeline.evaluation import EvaluateSpec, EvaluationRequest
    from pipeline.evaluation import evaluate as evaluate_request

    spec = load_settings(EvaluateSpec, config, overrides)
    request = EvaluationRequest(images, labels, out, model=model, mosaics=mosaics, polygons=polygons)
    with progress_bars(console) as bars:
        report = evaluate_request(request, spec, progress_of=lambda entry: scene_progress(bars, entry.id))
    _show_evaluation(report)
    say(f"page: {out / 'evaluation.html'}")
    return EXIT_SOME_FAILED if any(scene.reason for scene in report.scenes) else EXIT_DONE


def import_model(
    network: Annotated[Path, Parameter(help="File written by torch.export.save, *.pt2.")],
    *,
    card: Annotated[Path, Parameter(help="Model card as YAML or JSON; see docs/guide/models.md.")],
    out: Annotated[Path, Parameter(help="Model to write, *.pt2; it can be used in place of a checkpoint.")],
) -> int:
    """Import an exported network: check it, run it once, and write it with its model card into one file."""
    from pipeline.model import import_model as import_network

    facts = import_network(network, card, out)
    say(f"{out}: {facts.parameters:,} parameters, takes {facts.sizes}, SHA-256 {facts.sha256[:12]}")
    return EXIT_DONE


def export_onnx(
    model: Annotated[Path, Parameter(help="Checkpoint (.safetensors).")],
    *,
    out: Annotated[Path, Parameter(help="File to write, *.onnx; it returns probabilities and holds the card.")],
) -> int:
    """Export a checkpoint to ONNX for other runtimes."""
    from pipeline.model import export_onnx as export_network

    export_network(model, out)
    say(str(out))
    return EXIT_DONE


def _show_history(report: TrainReport) -> None:
    table = Table("epoch", "loss", "BCE", "IoU", "F1", "learning rate", "seconds", box=None)
    for record in report.history:
        best = "bold green" if record.epoch == report.best_epoch else ""
        scores = (f"{record.loss:.4f}", f"{record.bce:.4f}", f"{record.iou:.4f}", f"{record.f1:.4f}")
        table.add_row(str(record.epoch), *scores, f"{record.learning_rate:.2e}", f"{record.seconds:.0f}", style=best)
    show_table(table)


def _show_parts(report: TrainReport) -> None:
    """The scores of the best epoch on each held-out part, class by class."""
    names = ("iou", "f1", "precision", "recall", "accuracy")
    table = Table("part", "class", *names, "ECE before", "ECE", box=None)
    for part, scores in (("validation", report.validation), ("test", report.test)):
        for label, metrics in scores.classes.items() if scores else ():
            calibration = (f"{scores.ece_before:.4f}", f"{scores.ece:.4f}") if scores else ()
            table.add_row(part, escape(label), *_numbers(metrics, names), *calibration)
    show_table(table)


def _show_evaluation(report: EvaluationReport) -> None:
    names = ("iou", "f1", "precision", "recall", "boundary_iou", "object_f1")
    table = Table("scene", "class", *names, box=None)
    for scene in report.scenes:
        if scene.scores is None:
            console.print(f"[bold red]failed[/]  {escape(scene.scene)}: {escape(scene.reason or '')}", soft_wrap=True)
            continue
        for each in scene.scores.classes:
            table.add_row(escape(scene.scene), escape(each.name), *_estimates(each.metrics, names))
    if report.overall is not None:
        for each in report.overall.classes:
            table.add_row("all", escape(each.name), *_estimates(each.metrics, names), style="bold")
    show_table(table)


def _numbers(metrics: Mapping[str, float | None], names: Iterable[str]) -> list[str]:
    values = [metrics.get(name) for name in names]
    return ["" if value is None else f"{value:.4f}" for value in values]


def _estimates(metrics: Mapping[str, Estimate], names: Iterable[str]) -> list[str]:
    return [_estimate(metrics[name]) for name in names]


def _estimate(estimate: Estimate) -> str:
    if estimate.value is None:
        return ""
    interval = "" if estimate.low is None or estimate.high is None else f" ({estimate.low:.2f}-{estimate.high:.2f})"
    return f"{estimate.value:.3f}{interval}"
