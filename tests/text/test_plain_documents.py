"""JSON and YAML of others: what is plain comes back as it was written, and what is not is refused."""

from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.plain_json import MAX_DIGITS, MAX_JSON_DEPTH, read_json
from pipeline.text.plain_yaml import MAX_DEPTH, MAX_NUMBER_LENGTH, MAX_VALUES, read_yaml

SCALARS = st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=20)
PLAIN = st.recursive(
    SCALARS | TEXTS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4)
)


@given(PLAIN, st.booleans())
def test_json_gives_back_what_was_written(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert read_json(text) == value
    assert read_json(text.encode()) == value


@given(PLAIN)
def test_yaml_gives_back_what_was_written(value: object) -> None:
    assert read_yaml(yaml.safe_dump(value, allow_unicode=True)) == value


@pytest.mark.parametrize("nest", ['{"a": %s}', "[%s]"])
def test_json_may_be_as_deep_as_the_bound_and_no_deeper(nest: str) -> None:
    text = "1"
    for _ in range(MAX_JSON_DEPTH):
        text = nest % text
    assert read_json(text)
    with pytest.raises(ValueError, match="nested over 100 deep"):
        read_json(nest % text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (r'{"a": "\ud800"}', "half of a surrogate pair"), (r'{"\udc00": 1}', "half of a surrogate pair"),
        ('{"a": 1, "b": {"a": 1, "a": 1}}', "the key 'a' is there twice"),
        ("NaN", "no number of JSON"), ("[-Infinity]", "no number of JSON"),
        ("1" * (MAX_DIGITS + 1), "41 digits"),
    ],
)  # fmt: skip
def test_json_that_is_no_plain_document_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_json(text)


def test_json_at_its_bounds_is_accepted() -> None:
    assert read_json(r'"\ud83c\udfe0"') == "\U0001f3e0"
    assert read_json("9" * MAX_DIGITS) == 10**MAX_DIGITS - 1


@pytest.mark.parametrize("text", ["2026-11-21", "2026-11-21T10:00:00Z", "="])
def test_dates_and_signs_are_texts_in_yaml(text: str) -> None:
    assert read_yaml(f"a: {text}") == {"a": text}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 2\na: 1", "the key 'a' is there twice"), ("x:\n  - {a: 1, a: 2}", "the key 'a' is there twice"),
        ("1: a\n1: b", "the key '1' is there twice"),
        ("a: !!python/name:os.system", "the tag"), ("a: !!str 1", "the tag"),
        ("a: &x [*x]", "contains it"),
        ("9" * (MAX_NUMBER_LENGTH + 1), "a number of 41 characters"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested over 50 deep"),
        ("[" + "1," * MAX_VALUES + "]", "over 20000 values"),
        ("a: &x [" + "1," * 200 + "]\nb: &y [" + "*x," * 101 + "]\n", "over 20000 values"),
    ],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_yaml_that_is_no_plain_document_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_yaml(text)


def test_yaml_at_its_bounds_is_accepted() -> None:
    assert read_yaml("9" * MAX_NUMBER_LENGTH) == 10**MAX_NUMBER_LENGTH - 1
    assert read_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert len(read_yaml("[" + "1," * (MAX_VALUES - 1) + "]")) == MAX_VALUES - 1  # type: ignore[arg-type]
    assert read_yaml("a: &x {b: 1}\nc: {<<: *x, d: 2}") == {"a": {"b": 1}, "c": {"b": 1, "d": 2}}
