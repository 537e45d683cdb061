"""JSON reader for documents of others: bounded nesting and numbers, no NaN, no key twice, UTF-8 only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from pipeline.text.escapes import quoted

MAX_JSON_DEPTH = 100
"""Lists and maps inside each other; an exported network's graph has about twenty."""
MAX_DIGITS = 40
"""Digits of a whole number; 64 bits take 20. Python prints none of over 4,300."""
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(content: str | bytes | bytearray) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: no JSON as RFC 8259 has it, or past a bound; the message says which.
    """
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        value = json.loads(text, parse_int=_whole_number, parse_constant=_no_number, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise _too_deep() from None
    if _is_deeper(value, MAX_JSON_DEPTH):
        raise _too_deep()
    if _SURROGATE_ESCAPE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair, as \\ud800, which is no character") from None
    return value


def _too_deep() -> ValueError:
    return ValueError(f"lists and maps are nested over {MAX_JSON_DEPTH} deep")


def _is_deeper(value: object, limit: int) -> bool:
    """Whether lists and maps are nested deeper; level by level, since recursion is what such a text exhausts."""
    level = [value]
    for _ in range(limit + 1):
        level = [inner for each in level for inner in _inside(each)]
        if not level:
            return False
    return True


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits, over {MAX_DIGITS}")
    return int(digits)


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word}, which is no number of JSON")


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        seen: set[str] = set()
        twice = next(key for key in keys if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {quoted(twice, 50)} is there twice")
    return content
