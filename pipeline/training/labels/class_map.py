"""Class map: the meaning of label values, as a class, no class, or unlabelled.

A meaning is a number: the index of a class from 0, `NO_CLASS` or `UNLABELLED_CLASS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pipeline.errors import LabelError

NONE, UNLABELLED_WORD = "none", "unlabelled"
"""Words of a class map in addition to the names of classes."""
NO_CLASS = -1
"""Labelled, and of no class."""
UNLABELLED_CLASS = -2
"""Not labelled: counted neither in the loss nor in metrics."""
Meanings = Mapping[str, int]
"""Label value as text -> meaning."""


def mask_meanings(classes: Sequence[str] | int, class_map: Mapping[str, str] | None = None) -> Meanings:
    """Meanings of mask values; without a map, 0 is no class and `k` is class `k`, counted from 1.

    255 is unlabelled unless the map assigns it.

    >>> mask_meanings(["roof"], {}), mask_meanings(["cell"], {"255": "cell", "0": "none"})
    ({'0': -1, '1': 0, '255': -2}, {'255': 0, '0': -1})
    """
    names = [str(k) for k in range(classes)] if isinstance(classes, int) else list(classes)
    if class_map:
        return {"255": UNLABELLED_CLASS} | _resolved(names, class_map)
    return {"0": NO_CLASS} | {str(k): k - 1 for k in range(1, len(names) + 1)} | {"255": UNLABELLED_CLASS}


def attribute_meanings(classes: Sequence[str], class_map: Mapping[str, str] | None = None) -> Meanings:
    """Meanings of attribute values: each class by its name, plus the entries of the map.

    >>> attribute_meanings(["roof"], {"house": "roof", "maybe": "unlabelled"})
    {'roof': 0, 'house': 0, 'maybe': -2}
    """
    return {name: k for k, name in enumerate(classes)} | _resolved(classes, class_map or {})


def value_text(value: object) -> str:
    """A label value as a class map names it: whole numbers without a point, missing ones as `null`.

    >>> value_text(3.0), value_text("roof"), value_text(None), value_text(float("nan"))
    ('3', 'roof', 'null', 'null')
    """
    if value is None or value != value:
        return "null"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def unknown_values_error(place: str, values: Iterable[str], meanings: Meanings, classes: Sequence[str]) -> LabelError:
    """The error for label values without a meaning."""
    unknown = sorted(values)
    words = {NO_CLASS: NONE, UNLABELLED_CLASS: UNLABELLED_WORD} | dict(enumerate(classes))
    known = ", ".join(f"{value} = {words[meaning]}" for value, meaning in meanings.items())
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return LabelError(
        f"{place} the value(s) {', '.join(unknown[:5])}{more}, which have no meaning; known are {known}; give their "
        f'meaning in class_map, e.g. class_map={{"{unknown[0]}": {NONE}}} (or {UNLABELLED_WORD}, or a class), '
        "or recode the file"
    )


def _resolved(classes: Sequence[str], class_map: Mapping[str, str]) -> dict[str, int]:
    words = {name: k for k, name in enumerate(classes)} | {NONE: NO_CLASS, UNLABELLED_WORD: UNLABELLED_CLASS}
    return {str(value): words[word] for value, word in class_map.items()}
