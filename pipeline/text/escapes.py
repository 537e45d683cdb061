"""Unicode text made safe to show: characters that move a cursor, hide or reorder text become escapes.

Names of bands, classes, files and CRS come from files of others. Shown raw, an ESC sequence sets a terminal's title or
clears it, a line break forges a log line, and a bidirectional override swaps the order of what is read.
"""

from __future__ import annotations

import re
import unicodedata

MAX_NAME_LENGTH = 100
"""Characters of the name of a band, class or model."""
MAX_QUOTED_LENGTH = 200
"""Characters of a value in a message; the rest is cut off."""


def printable(text: object) -> str:
    r"""Text on one line: control, format, surrogate and private characters as escapes; spaces of any width stay.

    Covered are C0 and C1 controls, line breaks, bidirectional overrides, characters of no width, and bytes of a file
    name that are not UTF-8. Backslashes are not doubled: the text is for people, and no inverse is needed.

    >>> print(printable("roof\x1b[2J\n\u202eexe"))
    roof\x1b[2J\n\u202eexe
    >>> print(printable("façade 屋根"))
    façade 屋根
    """
    plain = str(text)
    return plain if plain.isprintable() else "".join(map(_shown, plain))


def is_utf8(text: str) -> bool:
    """Whether a text can be encoded: a file name that is not UTF-8 has a lone surrogate for each such byte."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def printable_lines(text: object) -> str:
    """Text of several lines, each as `printable` gives it."""
    return "\n".join(map(printable, str(text).split("\n")))


def quoted(value: object, limit: int = MAX_QUOTED_LENGTH) -> str:
    """A value as Python writes it, at most `limit` characters of it: for messages about values of any size.

    >>> quoted("roof"), quoted("x" * 1000, limit=10)
    ("'roof'", "'xxxxxxxxx... (1000 characters)")
    """
    try:
        text = printable(repr(value[: limit + 1] if isinstance(value, str) else value))
    except (ValueError, RecursionError):  # an integer of thousands of digits; a very deep list
        return f"a {type(value).__name__}"
    length = len(value) if isinstance(value, str) else len(text)
    return text if len(text) <= limit else f"{text[:limit]}... ({length} characters)"


def shorten(text: str, limit: int = MAX_QUOTED_LENGTH) -> str:
    """Printable text of at most `limit` characters, and dots for the rest.

    >>> shorten("tiling.tile_size=256"), shorten("x" * 1000, limit=10)
    ('tiling.tile_size=256', 'xxxxxxxxxx...')
    """
    return printable(text if len(text) <= limit else f"{text[:limit]}...")


def name_fault(name: object) -> str | None:
    r"""The rule of names that a name violates, None if it is good: 1 to 100 printable characters, not all spaces.

    >>> name_fault("roof"), name_fault("a\x1bb"), name_fault(" ")
    (None, "'a\\x1bb' holds characters that cannot be printed", 'a name is empty')
    """
    if not isinstance(name, str):
        return f"{quoted(name)} is no text"
    if not name.strip():
        return "a name is empty"
    if len(name) > MAX_NAME_LENGTH:
        return f"{quoted(name, 30)} is {len(name)} characters long, over {MAX_NAME_LENGTH}"
    if printable(name) != name:
        return f"{quoted(name)} holds characters that cannot be printed"
    return None


def markdown(value: object) -> str:
    r"""Any text on one line of Markdown, also in a table, with markup, HTML and entities escaped.

    >>> print(markdown("a|b <i> &#27;"))
    a\|b \<i\> \&\#27;
    """
    return re.sub(r"([\\`*\[\]<>|#~&])", r"\\\1", printable(" ".join(str(value).split())))


def _shown(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")
