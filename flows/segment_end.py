"""How a run over scenes ends: its table, and the state that Prefect keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows.artifacts import show_summary
from pipeline.errors import ScenemillError
from pipeline.results import SceneReport


class ScenesFailedError(ScenemillError):
    """Some scenes of a run failed; the others are complete, unless the run was stopped before."""

    def __init__(self, message: str, reports: Sequence[SceneReport] = ()) -> None:
        super().__init__(message)
        self.reports = tuple(reports)
        """A report for every scene of the run, in order."""


def summarise(reports: Sequence[SceneReport], out: str) -> State[Any]:
    """Show the summary, and settle the run's final state."""
    show_summary(reports, out)
    failed = [report for report in reports if report.status == "failed"]
    if failed:
        reasons = "; ".join(f"{report.scene}: {report.reason}" for report in failed)
        message = f"{len(failed)} of {len(reports)} scenes failed{_count(reports, 'not run')}: {reasons}"
        return Failed(message=message, data=ScenesFailedError(message, reports))
    return Completed(message=f"{len(reports)} scenes{_count(reports, 'quarantined')}", data=[*reports])


def _count(reports: Sequence[SceneReport], status: str) -> str:
    """`, 3 not run`, or nothing where none is."""
    count = sum(report.status == status for report in reports)
    return f", {count} {status}" if count else ""
