"""Log records without control characters, whatever handler, formatter or logging service receives them."""

from __future__ import annotations

import logging
import sys
import traceback

from pipeline.text.escapes import printable


class PrintableRecord(logging.LogRecord):
    """A log record whose message is one line of printable text, and whose traceback has no control characters."""

    def getMessage(self) -> str:  # noqa: N802 -- the name of logging
        """The message with escapes."""
        return printable(super().getMessage())


def escape_log_records() -> None:
    """Make every record that is logged from now on in this process printable; for programs, not for libraries.

    A record is changed where it is made, so that handlers of Prefect and dask are covered, which are set up later.
    """
    logging.setLogRecordFactory(_make_record)


def _make_record(*args: object, **kwargs: object) -> logging.LogRecord:
    record = PrintableRecord(*args, **kwargs)  # type: ignore[arg-type]
    if record.exc_info and record.exc_info[0] is not None:
        # Formatters use this text instead of their own.
        record.exc_text = printable_traceback(record.exc_info[1])
    return record


def printable_traceback(error: BaseException | None = None) -> str:
    """The traceback of an error, by default the current one, with escapes on each line."""
    error = sys.exc_info()[1] if error is None else error
    lines = traceback.format_exception(error) if error else []
    return "\n".join(printable(line) for line in "".join(lines).rstrip("\n").split("\n"))
