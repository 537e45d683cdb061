"""`run.json`: the status of every scene of a run, updated while it runs.

Two concurrent runs into one folder share the file: each updates its own scenes and keeps those of the other. A run that
ended before this one started is dropped.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, get_args
from uuid import uuid4

from pipeline.results import RUN, Documents, SceneReport, Status
from pipeline.text import read_json

MIN_INTERVAL_S = 1.0
"""Minimum time between writes ..."""
MIN_INTERVAL_PER_WRITE_S = 50
"""... and as a multiple of the duration of the last write: writing takes 2 % of the time at most."""
WITH_RESULT = ("done", "skipped")
"""Statuses of scenes that have a result."""


class RunRecord:
    """The entries of one run in the file; used by one thread."""

    def __init__(
        self,
        documents: Documents,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write nothing yet; `now` is the time of day, `clock` counts seconds."""
        self._documents, self._now, self._clock = documents, now, clock
        self._run, self._began = uuid4().hex[:8], self._time()
        self._before: int | None = None
        self._due_s = 0.0

    @property
    def is_due(self) -> bool:
        """Whether the minimum time since the last write has passed."""
        return self._clock() >= self._due_s

    def write(self, reports: Sequence[SceneReport], *, ended: bool) -> None:
        """Write every scene with its status, and the counts.

        Args:
            reports: of all scenes of this run, in order.
            ended: whether the run has ended; after a kill the file still says `running`.
        """
        start = self._clock()
        with self._documents.lock():
            previous = _parsed(self._documents.read(RUN))
            if self._before is None:
                self._before = previous["writes"]
            state = "ended" if ended else "running"
            this = {"run": self._run, "state": state, "began": self._began, "written": self._time()}
            document = _joined(this, [_row(report, self._run) for report in reports], previous, self._before)
            self._documents.write(RUN, json.dumps(document, indent=2) + "\n")
        self._due_s = self._clock() + max(MIN_INTERVAL_S, MIN_INTERVAL_PER_WRITE_S * (self._clock() - start))

    def _time(self) -> str:
        return self._now().isoformat(timespec="seconds")


def _joined(
    this: Mapping[str, object], rows: Sequence[Mapping[str, Any]], previous: Mapping[str, Any], before: int
) -> dict[str, object]:
    """The document of this run and of those that have written since it started."""
    writes = previous["writes"] + 1
    others = [run for run in previous["runs"] if run["run"] != this["run"] and run["write"] > before]
    known = {run["run"] for run in others}
    theirs = {row["scene"]: row for row in previous["scenes"] if row["run"] in known}
    mine = [_better(row, theirs.pop(row["scene"], None)) for row in rows]
    scenes = [*mine, *theirs.values()]
    counts = Counter(row["status"] for row in scenes)
    return {
        "counts": {status: counts.get(status, 0) for status in get_args(Status)},
        "writes": writes,
        "runs": [{**this, "write": writes}, *others],
        "scenes": scenes,
    }


def _better(mine: Mapping[str, Any], theirs: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The row of a scene in two runs: the one with a result wins."""
    if theirs is None or mine["status"] in WITH_RESULT or theirs["status"] not in WITH_RESULT:
        return mine
    return theirs


def _row(report: SceneReport, run: str) -> dict[str, object]:
    return {
        "scene": report.scene,
        "location": report.location,
        "status": report.status,
        "reason": report.reason,
        "polygons": report.polygons,
        "area_m2": dict(report.area_m2),
        "seconds": dict(report.statistics.seconds),
        "folder": report.folder,
        "run": run,
    }


def _parsed(content: bytes | None) -> Mapping[str, Any]:
    """The parsed file; an empty document if it is missing or of another version."""
    empty: dict[str, Any] = {"writes": 0, "runs": [], "scenes": []}
    try:
        found = {**empty, **read_json(content or b"{}")}
        whole = isinstance(found["writes"], int) and all(_has(run, "run") for run in found["runs"])
        whole = whole and all(isinstance(run["write"], int) for run in found["runs"])
        return found if whole and all(_has(row, "run", "scene", "status") for row in found["scenes"]) else empty
    except (ValueError, TypeError, KeyError):
        return empty


def _has(record: Mapping[str, Any], *keys: str) -> bool:
    """Whether these keys of a record are texts."""
    return all(isinstance(record[key], str) for key in keys)
