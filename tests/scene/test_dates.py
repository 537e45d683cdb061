"""The date of a scene is the best that is known, and it says what it is."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pipeline.scene.dates import SceneDate, parse_ago, parse_date, parse_tiff_date, resolve_date

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CHANGED_NS = 1_700_000_000_999_999_999


@pytest.mark.parametrize(
    ("acquired", "modified_ns", "text", "of"),
    [
        ("2024-06-01T10:30:00Z", CHANGED_NS, "2024-06-01T10:30:00Z", "scene"),
        (None, CHANGED_NS, "2023-11-14T22:13:20Z", "file"),
        (None, None, "2026-01-02T03:04:05Z", "processing"),
    ],
)
def test_the_best_date_wins(acquired: str | None, modified_ns: int | None, text: str, of: str) -> None:
    date = resolve_date(acquired, modified_ns, now=NOW)
    assert date == SceneDate(text=text, of=of)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", [None, "", "yesterday", "2024-06-01", "2024:13:01 00:00:00", "    :  :     :  :  "])
def test_a_tag_that_is_no_date_is_ignored(text: str | None) -> None:
    assert parse_tiff_date(text) is None


def test_a_tag_may_end_as_old_software_ends_it() -> None:
    assert parse_tiff_date("1999:12:31 23:59:59\0") == "1999-12-31T23:59:59Z"


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("2024-06-01", "2024-06-01T00:00:00Z", "2024-06-01T23:59:59Z"),
        ("2024-06-01T12:30:00Z", "2024-06-01T12:30:00Z", "2024-06-01T12:30:00Z"),
        ("2024-06-01T12:30:00", "2024-06-01T12:30:00Z", "2024-06-01T12:30:00Z"),
        (" 2024-06-01T01:30:00+02:00 ", "2024-05-31T23:30:00Z", "2024-05-31T23:30:00Z"),
        ("2024-06-01T23:30:00-02:00", "2024-06-02T01:30:00Z", "2024-06-02T01:30:00Z"),
        ("2024-06", None, None),
        ("20240601", None, None),
        ("2024-13-01", None, None),
        ("0001-01-01", None, None),
        (None, None, None),
    ],
)
def test_a_date_is_a_moment_of_the_world_and_a_day_ends_with_its_last_second(
    text: str | None, start: str | None, end: str | None
) -> None:
    assert (parse_date(text), parse_date(text, end=True)) == (start, end)


@pytest.mark.parametrize(
    ("text", "date"),
    [("2d", "2024-02-28T12:00:00Z"), ("2h", "2024-03-01T10:00:00Z"), ("0d", "2024-03-01T12:00:00Z"), ("2w", None)],
)
def test_an_age_counts_back_in_days_or_hours(text: str, date: str | None) -> None:
    assert parse_ago(text, datetime(2024, 3, 1, 12, tzinfo=UTC)) == date
