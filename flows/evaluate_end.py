"""How an evaluation ends: its table, and the state that Prefect keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.away import unless_away
from pipeline.errors import ScenemillError
from pipeline.evaluation import EvaluationReport


class EvaluationFailedError(ScenemillError):
    """Some scenes could not be evaluated; the others are, and the page tells of all."""

    def __init__(self, message: str, report: EvaluationReport | None = None) -> None:
        super().__init__(message)
        self.report = report
        """The evaluation, failed scenes included."""


def summarise(report: EvaluationReport) -> State[Any]:
    """Show the summary, and settle the run's final state."""
    page = Path(report.folder) / report.page
    with unless_away():
        create_table_artifact(key="evaluate-scenes", table=[*_rows(report)], description=str(page))
    if report.failed:
        reasons = "; ".join(f"{scene.scene}: {scene.reason}" for scene in report.failed)
        message = f"{len(report.failed)} of {len(report.scenes)} scenes could not be evaluated: {reasons}"
        return Failed(message=message, data=EvaluationFailedError(message, report))
    return Completed(message=f"{len(report.scenes)} scenes, {page}", data=report)


def _rows(report: EvaluationReport) -> Sequence[dict[str, Any]]:
    rows = [
        _row(scene.scene, scene.status, scene.scores and scene.scores.mean, scene.reason) for scene in report.scenes
    ]
    return [*rows, _row("all", "", report.overall and report.overall.mean, None)]


def _row(name: str, status: str, scores: Any, reason: str | None) -> dict[str, Any]:
    shown = {"IoU": "iou", "F1": "f1", "boundary IoU": "boundary_iou", "object F1": "object_f1"}
    values = {title: _text(scores[key]) if scores else "" for title, key in shown.items()}
    return {"scene": name, "status": status, **values, "reason": reason or ""}


def _text(estimate: Any) -> str:
    if estimate.value is None:
        return ""
    return f"{estimate.value:.3f}" + ("" if estimate.low is None else f" ({estimate.low:.3f} to {estimate.high:.3f})")
