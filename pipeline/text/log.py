"""Log records and warnings without control characters and secrets of addresses, whatever handler receives them."""

from __future__ import annotations

import logging
import sys
import traceback
import warnings

from pipeline.text.addresses import without_secrets
from pipeline.text.escapes import printable, printable_lines


class PrintableRecord(logging.LogRecord):
    """A log record whose message is one line of printable text, and whose traceback has no control characters."""

    def getMessage(self) -> str:  # noqa: N802 -- the name of logging
        """The message with escapes."""
        return printable(without_secrets(super().getMessage()))


def escape_messages() -> None:
    """Make each record that is logged and each warning that is shown from now on printable; for programs only.

    A record is changed where it is made, so that handlers of Prefect and dask are covered, which are set up later.
    """
    logging.setLogRecordFactory(_make_record)
    warnings.formatwarning = _format_warning


def printable_traceback(error: BaseException | None = None) -> str:
    """The traceback of an error, by default the current one, with escapes on each line and without secrets."""
    error = sys.exc_info()[1] if error is None else error
    text = "".join(traceback.format_exception(error)).rstrip("\n") if error else ""
    return printable_lines(without_secrets(text))


def _make_record(*args: object, **kwargs: object) -> logging.LogRecord:
    record = PrintableRecord(*args, **kwargs)  # type: ignore[arg-type]
    if record.exc_info and record.exc_info[1] is not None:
        # Formatters take this text instead of their own.
        record.exc_text = printable_traceback(record.exc_info[1])
    return record


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    return f"{filename}:{lineno}: {category.__name__}: {printable(without_secrets(str(message)))}\n"
