"""The page of errors, held against the code: every message that can be raised has a row there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from pipeline import errors

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "errors.md").read_text(encoding="utf-8")
KINDS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
HOLE = "\0"
"""Stands for what a message fills in."""


def rows() -> Iterator[str]:
    """The first cell of each row that tells of messages."""
    for line in PAGE.split("## Settings and arguments")[1].splitlines():
        if line.startswith("| `"):
            yield line.split(" | ")[0].removeprefix("| ")


def known_messages() -> list[re.Pattern[str]]:
    quoted = [phrase for row in rows() for phrase in re.findall(r"`([^`]+)`", row)]
    return [re.compile(".*".join(map(re.escape, phrase.split("..."))), re.DOTALL) for phrase in quoted]


def raised() -> Iterator[tuple[str, str]]:
    """Place and text of every message of ours that is written where it is raised."""
    for path in sorted((ROOT / "pipeline").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS and node.args:
                text = written(node.args[0])
                if text.strip(HOLE + ": "):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", text


def written(node: ast.expr) -> str:
    """The fixed words of a message, with holes between them."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(written(value) for value in node.values)
    return HOLE


def test_every_message_that_is_raised_has_a_row() -> None:
    patterns, messages = known_messages(), [*raised()]
    assert len(messages) > 300
    unknown = [f"{place}: {text}" for place, text in messages if not any(pattern.search(text) for pattern in patterns)]
    assert unknown == [], "give the message a row in docs/reference/errors.md"


def test_every_kind_of_error_is_explained() -> None:
    explained = set(re.findall(r"^\| `(\w+Error)` \|", PAGE, re.MULTILINE))
    assert explained == KINDS - {"ScenemillError"}


def test_every_row_has_cause_and_cure() -> None:
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            assert len(cells := line.strip("|").split(" | ")) in (3, 4), line
            assert all(cell.strip() for cell in cells), line
