"""Final states of flow runs, and the tables that summarise them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.artifacts import show_summary
from flows.server_errors import ignore_server_errors
from pipeline.errors import ScenemillError
from pipeline.evaluation import EvaluationReport
from pipeline.results import SceneReport
from pipeline.text import markdown, printable

COLUMNS = {"IoU": "iou", "F1": "f1", "boundary IoU": "boundary_iou", "object F1": "object_f1"}


class ScenesFailedError(ScenemillError):
    """Some scenes of a run failed; the others are complete, unless the run was stopped early."""

    def __init__(self, message: str, reports: Sequence[SceneReport] = ()) -> None:
        super().__init__(message)
        self.reports = tuple(reports)
        """A report for every scene of the run, in order."""


class EvaluationFailedError(ScenemillError):
    """Some scenes could not be evaluated; the page lists them and shows the scores of the others."""

    def __init__(self, message: str, report: EvaluationReport | None = None) -> None:
        super().__init__(message)
        self.report = report
        """The evaluation, failed scenes included."""


def summarise_run(reports: Sequence[SceneReport], out: str) -> State[Any]:
    """Show the table of a run over scenes, and return its final state."""
    show_summary(reports, out)
    failed = [report for report in reports if report.status == "failed"]
    if failed:
        reasons = "; ".join(f"{report.scene}: {report.reason}" for report in failed)
        message = f"{len(failed)} of {len(reports)} scenes failed{_count(reports, 'not run')}: {reasons}"
        return Failed(message=message, data=ScenesFailedError(message, reports))
    return Completed(message=f"{len(reports)} scenes{_count(reports, 'quarantined')}", data=[*reports])


def summarise_evaluation(report: EvaluationReport) -> State[Any]:
    """Show the table of an evaluation, and return the final state of its run."""
    page = Path(report.folder) / report.page
    with ignore_server_errors():
        create_table_artifact(key="evaluate-scenes", table=[*_rows(report)], description=markdown(page))
    if report.failed:
        reasons = "; ".join(f"{scene.scene}: {scene.reason}" for scene in report.failed)
        message = f"{len(report.failed)} of {len(report.scenes)} scenes could not be evaluated: {reasons}"
        return Failed(message=message, data=EvaluationFailedError(message, report))
    return Completed(message=f"{len(report.scenes)} scenes, {printable(page)}", data=report)


def _count(reports: Sequence[SceneReport], status: str) -> str:
    """`, 3 not run`; empty when there is none."""
    count = sum(report.status == status for report in reports)
    return f", {count} {status}" if count else ""


def _rows(report: EvaluationReport) -> Sequence[dict[str, Any]]:
    rows = [
        _row(scene.scene, scene.status, scene.scores and scene.scores.mean, scene.reason) for scene in report.scenes
    ]
    return [*rows, _row("all", "", report.overall and report.overall.mean, None)]


def _row(name: str, status: str, scores: Any, reason: str | None) -> dict[str, Any]:
    values = {title: _text(scores[key]) if scores else "" for title, key in COLUMNS.items()}
    return {"scene": printable(name), "status": status, **values, "reason": printable(reason or "")}


def _text(estimate: Any) -> str:
    if estimate.value is None:
        return ""
    return f"{estimate.value:.3f}" + ("" if estimate.low is None else f" ({estimate.low:.3f} to {estimate.high:.3f})")
