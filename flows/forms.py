"""Settings as a form: what the server shows, fills in, and checks before a run is scheduled.

A flow takes one of our frozen dataclasses. Its sections become nested parts of the form, the sentence under each field
its help, a `Literal` a list to choose from. The server refuses unknown keys, wrong types, and numbers that are right in
no case; all other rules are held by the code that reads settings files, before the flow does anything.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from pydantic import BeforeValidator, TypeAdapter, WithJsonSchema

from pipeline.config import build_settings
from pipeline.errors import SettingsError

PLACE = "flow parameter settings"
"""Where wrong settings were found, as errors say it."""
USUAL = (0.5, 1, 2, 10, 100)
"""A number that takes none of these besides its default has rules of its own, of which a form can know nothing."""
BEYOND_ONE = (2, 10, 1e9)


def reader(kind: type[Any]) -> BeforeValidator:
    """What makes settings of a kind of the nested values that a form or a command gave."""

    def read(value: object) -> object:
        return build_settings(kind, value or {}, place=PLACE) if value is None or isinstance(value, Mapping) else value

    return BeforeValidator(read)


def form(kind: type[Any]) -> WithJsonSchema:
    """What shows settings of a kind as a form."""
    return WithJsonSchema(section_schema(kind()))


def section_schema(section: Any) -> dict[str, Any]:
    """The JSON schema of a section, whole in itself; its defaults are the values of this instance."""
    kind = type(section)
    hints, sentences = get_type_hints(kind), dict(field_sentences(kind))
    return {
        "type": "object",
        "title": kind.__name__,
        "description": inspect.getdoc(kind) or "",
        "properties": {
            each.name: {**_field_schema(section, each.name, hints[each.name]), "description": sentences[each.name]}
            for each in dataclasses.fields(kind)
        },
        "additionalProperties": False,
    }


def field_sentences(kind: type[Any]) -> Iterator[tuple[str, str]]:
    """Yield each field of a dataclass with the sentence under it."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(body, ast.ClassDef)
    for field, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            yield ast.unparse(field.target), inspect.cleandoc(str(below.value.value))


def _field_schema(section: Any, name: str, hint: Any) -> dict[str, Any]:
    value = getattr(section, name)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {**section_schema(value), "title": name, "default": _plain(dataclasses.asdict(value))}
    schema: dict[str, Any] = {**TypeAdapter(hint).json_schema(), "title": name, "default": _plain(value)}
    for part in (schema, *schema.get("anyOf", ())):
        if part.get("type") in ("integer", "number") and "enum" not in part:
            part.update(_limits(section, name, whole=part["type"] == "integer"))
    return schema


def _limits(section: Any, name: str, *, whole: bool) -> dict[str, float]:
    """Whether a number must be over 0, or at most 1: asked of the section, which holds the rules."""

    def takes(number: float) -> bool:
        try:
            dataclasses.replace(section, **{name: number})
        except SettingsError:
            return False
        return True

    limits: dict[str, float] = {}
    if not any(takes(number) for number in USUAL if number != getattr(section, name)):
        return limits
    if not takes(-1) and (whole or not takes(-1e-9)):
        over_zero: dict[str, float] = {"minimum": 1} if whole else {"exclusiveMinimum": 0}
        limits |= {"minimum": 0} if takes(0) else over_zero
    if not whole and not any(map(takes, (1 + 1e-9, *BEYOND_ONE))):
        limits |= {"maximum": 1} if takes(1) else {"exclusiveMaximum": 1}
    return limits


def _plain(value: object) -> Any:
    return json.loads(json.dumps(value))
