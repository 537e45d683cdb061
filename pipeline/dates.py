"""When a scene was taken, as far as its file tells."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

NANOSECONDS = 1_000_000_000

DateOf = Literal["scene", "file", "processing"]
"""What a date tells: when the scene was taken, when its file last changed, or when it was processed."""


@dataclass(frozen=True, kw_only=True)
class SceneDate:
    """The best date that is known of a scene."""

    text: str
    """ISO 8601 in UTC, e.g. `2024-06-01T10:30:00Z`."""
    of: DateOf
    """What happened then."""


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


def resolve_date(acquired: str | None, modified_ns: int | None, *, now: datetime) -> SceneDate:
    """The date of a scene: when it was taken, else when its file changed, else now.

    Args:
        acquired: ISO 8601 in UTC, None when unknown.
        modified_ns: when the file changed, nanoseconds since 1970; None for a remote one.
        now: the time of processing.
    """
    if acquired is not None:
        return SceneDate(text=acquired, of="scene")
    if modified_ns is not None:
        return SceneDate(text=_iso(datetime.fromtimestamp(modified_ns // NANOSECONDS, UTC)), of="file")
    return SceneDate(text=_iso(now), of="processing")


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
