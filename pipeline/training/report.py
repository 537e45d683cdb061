"""`report.json` in a run folder: the report of a finished run, from which the same command returns without work."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.model import describe_checkpoint
from pipeline.storage import atomic_write
from pipeline.training.identity import Identity, describe_difference
from pipeline.training.records import EpochRecord, PartScores, TrainReport

log = logging.getLogger(__name__)

REPORT = "report.json"
EXCLUDED_FIELDS = ("checkpoint", "card", "folder", "reused")
"""Fields that are not stored, because the location or the checkpoint gives them."""


def write_report(report: TrainReport, identity: Identity) -> None:
    """Write a report and the run's identity into its folder, atomically; TransientError when the disk fails."""
    fields = {key: value for key, value in asdict(report).items() if key not in EXCLUDED_FIELDS}
    atomic_write(report.folder / REPORT, json.dumps({"identity": identity, "report": fields}, indent=1))


def read_report(out: Path, folder: Path, identity: Identity, *, max_minutes: float | None) -> TrainReport | None:
    """The report of a finished run of this identity whose checkpoint still exists, else None.

    A run that ended at its time limit counts as finished unless `max_minutes` now allows more time.
    """
    try:
        content = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        facts = describe_checkpoint(out)
        if content["identity"] != identity:
            log.warning("%s is trained again: %s", out, describe_difference(content["identity"], identity))
            return None
        report = _report(content["report"], checkpoint=out, card=facts.card, folder=folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError):
        return None
    short = report.stopped == "time" and (max_minutes is None or report.seconds < 60 * max_minutes)
    return None if short or facts.sha256 != report.sha256 else report


def _report(fields: dict[str, Any], **known: Any) -> TrainReport:
    parts = {part: PartScores(**fields[part]) if fields[part] else None for part in ("validation", "test")}
    history = tuple(EpochRecord(**record) for record in fields["history"])
    return replace(TrainReport(**{**fields, **parts, "history": history}, **known), reused=True)
