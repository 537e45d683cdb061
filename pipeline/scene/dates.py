"""Acquisition dates of scenes, from their files or catalogs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

NANOSECONDS = 1_000_000_000
EARLIEST_S = -30_610_224_000
"""The year 1000, in seconds since 1970."""

DATE_PATTERN = re.compile(r"[1-9]\d{3}-\d{2}-\d{2}")
"""The beginning of dates in settings and catalogs; bare numbers are ambiguous."""
AGE_PATTERN = re.compile(r"(\d{1,5})(d|h)")
"""Days or hours before now."""

DateOf = Literal["scene", "file", "processing"]
"""Meaning of a date: when the scene was taken, when its file last changed, or when it was processed."""


@dataclass(frozen=True, kw_only=True)
class SceneDate:
    """The best date that is known of a scene."""

    text: str
    """ISO 8601 in UTC, e.g. `2024-06-01T10:30:00Z`."""
    of: DateOf
    """Meaning of the date."""


def parse_tiff_date(text: str | None) -> str | None:
    """The tag TIFFTAG_DATETIME, `YYYY:MM:DD HH:MM:SS` without a time zone and taken for UTC, as ISO 8601.

    >>> parse_tiff_date("2024:06:01 10:30:00"), parse_tiff_date("0000:00:00 00:00:00"), parse_tiff_date(None)
    ('2024-06-01T10:30:00Z', None, None)
    """
    try:
        taken = datetime.strptime((text or "").strip("\0 "), "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    return _iso(taken)


def parse_date(text: str | None, *, end: bool = False) -> str | None:
    """A date, or a date and time, as ISO 8601 in UTC and whole seconds; without a zone it is taken for UTC.

    A date alone means its first second, or with `end` its last.

    >>> parse_date("2024-06-01"), parse_date("2024-06-01 12:00:00.5+02:00"), parse_date("June")
    ('2024-06-01T00:00:00Z', '2024-06-01T10:00:00Z', None)
    >>> parse_date("2024-06-01", end=True)
    '2024-06-01T23:59:59Z'
    """
    text = (text or "").strip()
    if not DATE_PATTERN.match(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return _iso(moment.replace(hour=23, minute=59, second=59) if end and len(text) == len("2024-06-01") else moment)
    except (ValueError, OverflowError):
        return None


def parse_ago(text: str | None, now: datetime) -> str | None:
    """Days or hours before now, written as `7d` or `36h`, in the format of `parse_date`; None for other texts.

    >>> parse_ago("36h", datetime(2024, 6, 2, tzinfo=UTC)), parse_ago("a week", datetime(2024, 6, 2, tzinfo=UTC))
    ('2024-05-31T12:00:00Z', None)
    """
    found = AGE_PATTERN.fullmatch((text or "").strip())
    if found is None:
        return None
    return _iso(now - timedelta(**{"days" if found[2] == "d" else "hours": int(found[1])}))


def resolve_date(acquired: str | None, modified_ns: int | None, *, now: datetime) -> SceneDate:
    """The date of a scene: when it was taken, else when its file changed, unless that is in the future, else now.

    Args:
        acquired: ISO 8601 in UTC, None when unknown.
        modified_ns: when the file changed, nanoseconds since 1970; None for a remote one.
        now: the time of processing.
    """
    if acquired is not None:
        return SceneDate(text=acquired, of="scene")
    # A clock that was set back leaves files of the future, some file systems of years that no date has.
    if modified_ns is not None and EARLIEST_S <= modified_ns // NANOSECONDS <= now.timestamp():
        return SceneDate(text=_iso(datetime.fromtimestamp(modified_ns // NANOSECONDS, UTC)), of="file")
    return SceneDate(text=_iso(now), of="processing")


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
