"""The ledger of a run: which scenes are left out, what became of the others, and whether the run goes on.

Each scene of a run ends in exactly one of five ways:

    done | skipped (was done before) | failed | quarantined (failed before, unchanged) | not run (the run was stopped)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.catalog import CatalogEntry
from pipeline.config import RunSpec, SegmentSpec
from pipeline.errors import ScenemillError
from pipeline.model.predictor import LoadedModel
from pipeline.results import RUN, SceneReport, Status, open_results, write_collection
from pipeline.run.quarantine import Quarantine, is_data_fault, run_inputs
from pipeline.run.record import RunRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _WhyNotRun:
    """What is said of scenes without an outcome."""

    in_work: str
    """Of those that were begun."""
    waiting: str
    """Of the others."""


_STOPPED = _WhyNotRun(
    in_work="the run was stopped while it was in work; run again to continue",
    waiting="the run was stopped before its turn; run again to continue",
)
_GOING_ON = _WhyNotRun(
    in_work="it was in work when this was written; if no run is going on, run again to continue",
    waiting="its turn had not come when this was written; if no run is going on, run again to continue",
)


class RunLedger:
    """What became of every scene of a run; used by one thread."""

    def __init__(
        self,
        entries: Sequence[CatalogEntry],
        out_dir: str | Path,
        *,
        spec: RunSpec,
        quarantine: Quarantine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open a ledger in which nothing is settled.

        Args:
            entries: the scenes, in order.
            out_dir: where the results go.
            spec: when the run ends early, and whether quarantine counts.
            quarantine: scenes that failed before.
            clock: seconds; says how often `run.json` is written.
        """
        self._entries, self._results, self._spec = tuple(entries), open_results(out_dir, spec.work_dir), spec
        self._quarantine, self._record = quarantine, RunRecord(self._results, clock=clock)
        self._begun: set[str] = set()
        self._settled: dict[str, SceneReport] = {}
        self._failures = 0

    @property
    def is_stopped(self) -> bool:
        """Whether so many scenes have failed that no other is begun."""
        return self._failures >= self._spec.max_failures > 0

    @property
    def reports(self) -> tuple[SceneReport, ...]:
        """A report for every scene, in order, also for those that were not run."""
        return self._reports(_STOPPED)

    def passed_over(self, entry: CatalogEntry) -> SceneReport | None:
        """Why a scene is left out: the run is stopped, or the scene in quarantine; None: it is begun now."""
        if self.is_stopped:
            return self._settle(entry, self._not_run(entry, _STOPPED))
        asked_for = self._spec.retry_quarantined or entry.refused is not None
        held = None if asked_for else self._quarantine.holding(entry)
        if held is not None:
            reason = f"in quarantine since {held.since}: {held.reason}"
            return self._settle(entry, _without_result(entry, "quarantined", reason))
        self._begun.add(entry.id)
        self._quarantine.begin(entry)
        self._note()
        return None

    def settle(self, entry: CatalogEntry, outcome: SceneReport | BaseException) -> SceneReport:
        """Enter what became of a scene; faults of its data bring it into quarantine, a result frees it.

        A row that the catalog refused names no scene that could be in quarantine.
        """
        try:
            if isinstance(outcome, SceneReport):
                self._quarantine.release(entry)
            elif is_data_fault(outcome) and entry.refused is None:
                self._quarantine.add(entry, outcome)
        except ScenemillError as error:
            log.warning("%s: quarantine is not up to date: %s", entry.id, error)
        return self._settle(entry, outcome if isinstance(outcome, SceneReport) else failed_report(entry, outcome))

    def save(self, *, ended: bool = False) -> None:
        """Write `run.json` and the STAC Collection as things are now; nothing before a scene is begun or left out.

        Args:
            ended: whether nothing more will be entered.

        Raises:
            TransientError: disk or network refuse.
        """
        if self._begun or self._settled:
            self._record.write(self.reports, ended=ended)
            write_collection(self._results)

    def _note(self) -> None:
        """Keep `run.json` up to date now and then, so that it tells something after a kill too."""
        if not self._record.is_due:
            return
        try:
            self._record.write(self._reports(_GOING_ON), ended=False)
        except ScenemillError as error:
            log.warning("%s is not up to date: %s", RUN, error)

    def _settle(self, entry: CatalogEntry, report: SceneReport) -> SceneReport:
        self._settled[entry.id] = report
        self._failures += report.status == "failed"
        self._note()
        return report

    def _reports(self, why: _WhyNotRun) -> tuple[SceneReport, ...]:
        return tuple(self._settled.get(entry.id) or self._not_run(entry, why) for entry in self._entries)

    def _not_run(self, entry: CatalogEntry, why: _WhyNotRun) -> SceneReport:
        if entry.id in self._begun:
            return _without_result(entry, "not run", why.in_work)
        if self.is_stopped:
            reason = f"the run was stopped after {self._spec.max_failures} failures (run.max_failures)"
            return _without_result(entry, "not run", reason)
        return _without_result(entry, "not run", why.waiting)


@contextmanager
def open_ledger(
    entries: Sequence[CatalogEntry], out_dir: str | Path, *, predictor: LoadedModel, spec: SegmentSpec
) -> Iterator[RunLedger]:
    """Yield the ledger of a run, and write `run.json` when it ends, also by an exception, Ctrl-C or SIGTERM.

    Raises:
        SettingsError: `quarantine.json` cannot be read.
        TransientError: the disk refuses.
    """
    inputs = run_inputs(predictor, spec)
    drivers, work_dir = spec.reading.drivers, spec.run.work_dir
    quarantine = Quarantine(out_dir, inputs=inputs, drivers=drivers, work_dir=work_dir)
    ledger = RunLedger(entries, out_dir, spec=spec.run, quarantine=quarantine)
    try:
        yield ledger
    finally:
        ledger.save(ended=True)


def failed_report(entry: CatalogEntry, error: BaseException) -> SceneReport:
    """The record of a scene that could not be processed."""
    reason = str(error) if isinstance(error, ScenemillError) else f"unexpected {type(error).__name__}: {error}"
    return _without_result(entry, "failed", reason)


def _without_result(entry: CatalogEntry, status: Status, reason: str) -> SceneReport:
    return SceneReport(scene=entry.id, location=entry.location, status=status, reason=reason)
