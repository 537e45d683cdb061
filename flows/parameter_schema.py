"""JSON schema of the settings parameter: the form that a Prefect server shows and checks before a run is scheduled.

A flow takes one of our frozen dataclasses. Its sections become nested parts of the form, the sentence under each field
its help, a `Literal` a list to choose from. The server rejects unknown keys, wrong types, and numbers that no settings
accept; all other rules are checked by the code that reads settings files, before the flow does any work.
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

from pipeline.config import aliases_of, build_settings
from pipeline.errors import SettingsError

PLACE = "flow parameter settings"
"""The origin of the settings in error messages."""
COMMON_NUMBERS = (0.5, 1, 2, 10, 100)
"""A field that accepts none of these besides its default gets no bounds: its rules are more than a range."""
ABOVE_ONE = (1 + 1e-9, 2, 10, 1e9)


def settings_validator(kind: type[Any]) -> BeforeValidator:
    """A validator that builds settings of a dataclass from the nested values of a form or a command."""

    def read(value: object) -> object:
        return build_settings(kind, value or {}, place=PLACE) if value is None or isinstance(value, Mapping) else value

    return BeforeValidator(read)


def settings_schema(kind: type[Any]) -> WithJsonSchema:
    """The JSON schema of a settings dataclass."""
    return WithJsonSchema(section_schema(kind()))


def section_schema(section: Any) -> dict[str, Any]:
    """The JSON schema of a section, self-contained; its defaults are the values of this instance."""
    kind = type(section)
    hints, sentences = get_type_hints(kind), dict(field_sentences(kind))
    # Earlier names of keys are accepted and not shown. Where there is none, an unknown key is called unexpected.
    aliases = {f"^{alias}$": _field_schema(section, name, hints[name]) for alias, name in aliases_of(kind).items()}
    return {
        "type": "object",
        "title": kind.__name__,
        "description": inspect.getdoc(kind) or "",
        "properties": {
            each.name: {**_field_schema(section, each.name, hints[each.name]), "description": sentences[each.name]}
            for each in dataclasses.fields(kind)
        },
        **({"patternProperties": aliases} if aliases else {}),
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
            part.update(_bounds(section, name, whole=part["type"] == "integer"))
    return schema


def _bounds(section: Any, name: str, *, whole: bool) -> dict[str, float]:
    """Whether a number must be above 0, or at most 1: found by building the section, which holds the rules."""

    def accepts(number: float) -> bool:
        try:
            dataclasses.replace(section, **{name: number})
        except SettingsError:
            return False
        return True

    bounds: dict[str, float] = {}
    if not any(accepts(number) for number in COMMON_NUMBERS if number != getattr(section, name)):
        return bounds
    if not accepts(-1) and (whole or not accepts(-1e-9)):
        positive: dict[str, float] = {"minimum": 1} if whole else {"exclusiveMinimum": 0}
        bounds |= {"minimum": 0} if accepts(0) else positive
    if not whole and not any(map(accepts, ABOVE_ONE)):
        bounds |= {"maximum": 1} if accepts(1) else {"exclusiveMaximum": 1}
    return bounds


def _plain(value: object) -> Any:
    return json.loads(json.dumps(value))
