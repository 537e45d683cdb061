"""What a run shows in Prefect's pages: its progress, a card for each scene, and a table of all.

None of it decides anything: a server that is away costs a picture, never a result.
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

from flows.away import unless_away
from flows.scene_card import scene_card
from pipeline.results import SceneReport

KEY = "segment-catalog"
MOST_CARDS = 50
"""Scenes of a run that get a card with a picture; the table tells of all."""
MOST_ROWS = 1000
"""Rows of the table; scenes without a result come first when there are more."""


class RunPage:
    """The page of a run while it goes on; used by the flow's own thread."""

    def __init__(self, scenes: int) -> None:
        """Begin the progress of so many scenes."""
        self._scenes, self._settled, self._cards, self._shown = scenes, 0, 0, 0
        self._progress: UUID | None = None
        with unless_away():
            self._progress = _id(create_progress_artifact(progress=0.0, key=f"{KEY}-progress", description="scenes"))

    def settled(self, report: SceneReport) -> None:
        """Show that a scene is settled. A server that is away is not asked again: each time takes a minute."""
        self._settled += 1
        percent = 100 * self._settled // self._scenes
        if self._progress is None:
            return
        progress, self._progress = self._progress, None
        with unless_away():
            if percent > self._shown:
                update_progress_artifact(artifact_id=progress, progress=float(percent))
                self._shown = percent
            if report.status == "done" and self._cards < MOST_CARDS:
                self._cards += 1
                create_markdown_artifact(markdown=scene_card(report), description=report.scene)
            self._progress = progress


def show_summary(reports: Sequence[SceneReport], out: str) -> None:
    """Show a table of all scenes."""
    counts = ", ".join(f"{count} {status}" for status, count in Counter(each.status for each in reports).items())
    shown = _most_telling(reports)
    left_out = f"; {len(reports) - len(shown)} more in run.json" if len(shown) < len(reports) else ""
    with unless_away():
        create_table_artifact(
            key=KEY, table=[_row(each) for each in shown], description=f"{out}: {counts or 'no scene'}{left_out}"
        )


def _most_telling(reports: Sequence[SceneReport]) -> Sequence[SceneReport]:
    if len(reports) <= MOST_ROWS:
        return reports
    return sorted(reports, key=lambda report: report.status in ("done", "skipped"))[:MOST_ROWS]


def _row(report: SceneReport) -> dict[str, Any]:
    return {
        "scene": report.scene,
        "status": report.status,
        "polygons": report.polygons,
        "area_m2": round(sum(report.area_m2.values()), 1),
        "megapixels": round(report.pixels / 1e6, 1),
        "seconds": round(sum(report.seconds.values()), 1),
        "folder": report.folder,
        "reason": report.reason or "",
    }


def _id(created: object) -> UUID:
    assert isinstance(created, UUID)
    return created
