"""Ledger of a run: which scenes are skipped, the status of the others, and whether the run continues.

Each scene of a run ends with exactly one of five statuses:

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
from pipeline.run.quarantine import Quarantine, is_data_error, run_inputs
from pipeline.run.record import RunRecord
from pipeline.text import without_secrets

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _WhyNotRun:
    """Reasons of scenes without an outcome."""

    in_work: str
    """Of scenes that were started."""
    waiting: str
    """Of scenes that were not started."""


_STOPPED = _WhyNotRun(
    in_work="the run was stopped while it was in work; run again to continue",
    waiting="the run was stopped before its turn; run again to continue",
)
_RUNNING = _WhyNotRun(
    in_work="it was in work when this was written; if no run is going on, run again to continue",
    waiting="its turn had not come when this was written; if no run is going on, run again to continue",
)


class RunLedger:
    """The status of every scene of a run; used by one thread."""

    def __init__(
        self,
        entries: Sequence[CatalogEntry],
        out_dir: str | Path,
        *,
        spec: RunSpec,
        quarantine: Quarantine,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Open a ledger without entries.

        Args:
            entries: the scenes, in order.
            out_dir: of the results.
            spec: limits of failures, and whether scenes in quarantine are retried.
            quarantine: scenes that failed before.
            clock: seconds; limits how often `run.json` is written.
        """
        self._entries, self._results, self._spec = tuple(entries), open_results(out_dir, spec.work_dir), spec
        self._quarantine, self._record = quarantine, RunRecord(self._results.documents, clock=clock)
        self._started: set[str] = set()
        self._recorded: dict[str, SceneReport] = {}
        self._failures = 0

    @property
    def is_stopped(self) -> bool:
        """Whether too many scenes have failed to start another."""
        return self._failures >= self._spec.max_failures > 0

    @property
    def reports(self) -> tuple[SceneReport, ...]:
        """A report for every scene, in order, including those that were not run."""
        return self._reports(_STOPPED)

    def skip(self, entry: CatalogEntry) -> SceneReport | None:
        """The report of a scene that is in quarantine, or not run since the run is stopped; None: it is started."""
        if self.is_stopped:
            return self._enter(entry, self._not_run_report(entry, _STOPPED))
        is_retried = self._spec.retry_quarantined or entry.refused is not None
        listed = None if is_retried else self._quarantine.entry(entry)
        if listed is not None:
            reason = f"in quarantine since {listed.since}: {listed.reason}"
            return self._enter(entry, _without_result(entry, "quarantined", reason))
        self._started.add(entry.id)
        self._quarantine.begin(entry)
        self._save_if_due()
        return None

    def record(self, entry: CatalogEntry, outcome: SceneReport | BaseException) -> SceneReport:
        """Record the outcome of a scene; an error of its data puts it into quarantine, a result removes it from there.

        A row that the catalog refused is no scene that could be in quarantine.
        """
        # The outcome of a scene counts even if the quarantine cannot be written.
        try:
            if isinstance(outcome, SceneReport):
                self._quarantine.remove(entry)
            elif is_data_error(outcome) and entry.refused is None:
                self._quarantine.add(entry, outcome)
        except ScenemillError as error:
            log.warning("%s: quarantine is not up to date: %s", entry.id, error)
        return self._enter(entry, outcome if isinstance(outcome, SceneReport) else failed_report(entry, outcome))

    def save(self, *, ended: bool = False) -> None:
        """Write `run.json` and the STAC Collection, once a scene was started or skipped.

        Args:
            ended: whether this is the last write.

        Raises:
            TransientError: disk or network refuse.
        """
        if self._started or self._recorded:
            self._record.write(self.reports, ended=ended)
            write_collection(self._results)

    def _save_if_due(self) -> None:
        """Write `run.json` from time to time, so that it is useful after a kill."""
        if not self._record.is_due:
            return
        try:
            self._record.write(self._reports(_RUNNING), ended=False)
        except ScenemillError as error:
            log.warning("%s is not up to date: %s", RUN, error)

    def _enter(self, entry: CatalogEntry, report: SceneReport) -> SceneReport:
        self._recorded[entry.id] = report
        self._failures += report.status == "failed"
        self._save_if_due()
        return report

    def _reports(self, why: _WhyNotRun) -> tuple[SceneReport, ...]:
        return tuple(self._recorded.get(entry.id) or self._not_run_report(entry, why) for entry in self._entries)

    def _not_run_report(self, entry: CatalogEntry, why: _WhyNotRun) -> SceneReport:
        if entry.id in self._started:
            return _without_result(entry, "not run", why.in_work)
        if self.is_stopped:
            reason = f"the run was stopped after {self._spec.max_failures} failures (run.max_failures)"
            return _without_result(entry, "not run", reason)
        return _without_result(entry, "not run", why.waiting)


@contextmanager
def open_ledger(
    entries: Sequence[CatalogEntry], out_dir: str | Path, *, predictor: LoadedModel, spec: SegmentSpec
) -> Iterator[RunLedger]:
    """Yield the ledger of a run, and write `run.json` when it ends, also after an exception, Ctrl-C or SIGTERM."""
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
    return SceneReport(scene=entry.id, location=entry.shown, status=status, reason=without_secrets(reason))
