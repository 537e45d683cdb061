"""Prefect artifacts of a run over scenes: its progress, a page for each scene, and a table of all.

An error of the server costs an artifact, never a result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)

from flows.artifact_scene import scene_markdown
from flows.server_errors import ignore_server_errors
from pipeline.results import SceneReport
from pipeline.text import markdown, printable

KEY = "segment-catalog"
MAX_SCENE_PAGES = 50
"""Scenes of a run that get a page with a picture; the table lists all."""
MAX_ROWS = 1000
"""Rows of the table; scenes without a result come first when there are more."""


class RunArtifacts:
    """The artifacts of a run in progress; used by the flow's own thread."""

    def __init__(self, scenes: int) -> None:
        """Create the progress artifact of `scenes` scenes."""
        self._scenes, self._finished, self._pages, self._shown = scenes, 0, 0, 0
        self._progress: UUID | None = None
        with ignore_server_errors():
            self._progress = _id(create_progress_artifact(progress=0.0, key=f"{KEY}-progress", description="scenes"))

    def add(self, report: SceneReport) -> None:
        """Show a finished scene. After one error no further request is sent: each attempt takes a minute."""
        self._finished += 1
        percent = 100 * self._finished // self._scenes
        if self._progress is None:
            return
        progress, self._progress = self._progress, None
        with ignore_server_errors():
            if percent > self._shown:
                update_progress_artifact(artifact_id=progress, progress=float(percent))
                self._shown = percent
            if report.status == "done" and self._pages < MAX_SCENE_PAGES:
                self._pages += 1
                create_markdown_artifact(markdown=scene_markdown(report), description=markdown(report.scene))
            self._progress = progress


def show_summary(reports: Sequence[SceneReport], out: str) -> None:
    """Create the table of all scenes."""
    counts = ", ".join(f"{count} {status}" for status, count in Counter(each.status for each in reports).items())
    shown = _without_result_first(reports)
    left_out = f"; {len(reports) - len(shown)} more in run.json" if len(shown) < len(reports) else ""
    with ignore_server_errors():
        create_table_artifact(
            key=KEY,
            table=[_row(each) for each in shown],
            description=f"{markdown(out)}: {counts or 'no scene'}{left_out}",
        )


def _without_result_first(reports: Sequence[SceneReport]) -> Sequence[SceneReport]:
    """At most `MAX_ROWS` reports."""
    if len(reports) <= MAX_ROWS:
        return reports
    return sorted(reports, key=lambda report: report.status in ("done", "skipped"))[:MAX_ROWS]


def _row(report: SceneReport) -> dict[str, Any]:
    return {
        "scene": printable(report.scene),
        "status": report.status,
        "polygons": report.polygons,
        "area_m2": round(sum(report.area_m2.values()), 1),
        "megapixels": round(report.statistics.pixels / 1e6, 1),
        "seconds": round(sum(report.statistics.seconds.values()), 1),
        "folder": printable(report.folder),
        "reason": printable(report.reason or ""),
    }


def _id(artifact_id: object) -> UUID:
    assert isinstance(artifact_id, UUID)
    return artifact_id
