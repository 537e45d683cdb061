"""`report.json` in a run folder: what a finished run did, by which the same command knows that nothing is to do."""

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
"""Fields of a report that are known from where it lies, or from the checkpoint."""


def write_report(report: TrainReport, identity: Identity) -> None:
    """Write a report and what decided it into its folder, whole or not at all.

    Raises:
        TransientError: the disk refuses.
    """
    told = {key: value for key, value in asdict(report).items() if key not in EXCLUDED_FIELDS}
    atomic_write(report.folder / REPORT, json.dumps({"identity": identity, "report": told}, indent=1))


def read_report(out: Path, folder: Path, identity: Identity, *, max_minutes: float | None) -> TrainReport | None:
    """The report of a finished run of this identity whose checkpoint is still there, else None.

    A run that ended for lack of time is finished only as long as it is given no more.

    Args:
        out: the checkpoint.
        folder: the run's.
        identity: of the run that is asked for.
        max_minutes: its limit.
    """
    try:
        content = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        facts = describe_checkpoint(out)
        if content["identity"] != identity:
            log.warning("%s is trained anew: %s", out, describe_difference(content["identity"], identity))
            return None
        report = _report(content["report"], checkpoint=out, card=facts.card, folder=folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ModelError):
        return None
    short = report.stopped == "time" and (max_minutes is None or report.seconds < 60 * max_minutes)
    return None if short or facts.sha256 != report.sha256 else report


def _report(told: dict[str, Any], **known: Any) -> TrainReport:
    parts = {part: PartScores(**told[part]) if told[part] else None for part in ("validation", "test")}
    history = tuple(EpochRecord(**record) for record in told["history"])
    return replace(TrainReport(**{**told, **parts, "history": history}, **known), reused=True)
