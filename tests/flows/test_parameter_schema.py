"""Settings as forms: what a server shows and refuses is what the settings files say and refuse."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from jsonschema import ValidationError
from prefect.utilities.schema_tools.validation import is_valid_schema, validate

from benchmarks.prefect_server import ROOT
from flows.evaluate import evaluate_scenes
from flows.parameter_schema import section_schema
from flows.segment import segment_catalog
from flows.train import train_network
from pipeline.config import SegmentSpec, build_settings, load_settings
from pipeline.errors import SettingsError
from pipeline.evaluation.records import EvaluateSpec
from pipeline.training.settings.spec import TrainSpec

KINDS = (SegmentSpec, TrainSpec, EvaluateSpec)
FLOWS = {"segment": segment_catalog, "train": train_network, "evaluate": evaluate_scenes}
NUMBERS = (-5, -1, -1e-6, 0, 1e-6, 0.5, 1, 1.000001, 2, 7, 64, 1000, 10**9)


def fields(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """Path and schema of every field, sections taken apart."""
    for name, each in schema["properties"].items():
        if "properties" in each:
            yield from fields(each, (*path, name))
        else:
            yield (*path, name), each


def nested(path: tuple[str, ...], value: object) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def out_of_bounds(errors: Sequence[ValidationError]) -> bool:
    """Whether a number was refused for its value, not for being a number."""
    bounds = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
    return any(error.validator in bounds or out_of_bounds(error.context or ()) for error in errors)


def refused(kind: type[Any], values: dict[str, Any]) -> bool:
    try:
        build_settings(kind, values, place="here")
    except SettingsError:
        return True
    return False


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_holds_every_setting_with_its_sentence_and_default(kind: type[Any]) -> None:
    schema = section_schema(kind())
    assert is_valid_schema(schema) is None
    shown = dict(fields(schema))
    defaults: Any = json.loads(json.dumps(dataclasses.asdict(kind())))
    assert len(shown) > 10
    for path, field in shown.items():
        value = defaults
        for name in path:
            value = value[name]
        assert field["default"] == value, path
        assert len(field["description"]) > 10, path
    assert validate(defaults, schema) == []
    assert build_settings(kind, defaults, place="the form") == kind()


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_is_never_stricter_than_the_settings_and_has_their_signs(kind: type[Any]) -> None:
    schema = section_schema(kind())
    refusals = 0
    for path, field in fields(schema):
        for number in NUMBERS:
            if out_of_bounds(validate({"number": number}, {"properties": {"number": field}})):
                refusals += 1
                assert refused(kind, nested(path, number)), (path, number)
    assert refusals > 50


@pytest.mark.parametrize(
    "values",
    [
        {"tilling": {}},
        {"tiling": {"tile_sise": 64}},
        {"tiling": {"tile_size": 0}},
        {"tiling": {"tile_size": "large"}},
        {"blend": "glue"},
        {"polygons": {"threshold": 1.5}},
        {"polygons": {"threshold": 0}},
        {"run": {"retries": -1}},
        {"catalog": {"bbox": [1, 2]}},
    ],
    ids=str,
)
def test_a_server_refuses_what_the_settings_refuse(values: dict[str, Any]) -> None:
    assert validate(values, section_schema(SegmentSpec()))
    assert refused(SegmentSpec, values)


def test_a_form_accepts_deprecated_keys_without_showing_them() -> None:
    schema = section_schema(SegmentSpec())
    deprecated = {"merge": {"into": "gpkg", "prefer": "oldest", "same": 0.25, "lone": "keep"}}
    assert validate(deprecated, schema) == []
    assert validate({"merge": {"into": "shp"}}, schema) != []
    assert not deprecated["merge"].keys() & schema["properties"]["merge"]["properties"].keys()


@pytest.mark.parametrize("name", FLOWS)
def test_the_settings_files_and_the_required_parameters_pass_the_form_of_their_flow(name: str) -> None:
    flow, kind = FLOWS[name], dict(zip(FLOWS, KINDS, strict=True))[name]
    schema = flow.parameters.model_dump()
    file = ROOT / "configs" / f"{name}.yaml"
    settings = json.loads(json.dumps(dataclasses.asdict(load_settings(kind, file if file.is_file() else None))))
    given = {key: ["a"] for key in ("scenes", "images", "labels") if key in schema["properties"]} | {"out": "out"}
    given |= {"model": "m"} if "model" in schema["properties"] else {}
    assert validate({**given, "settings": settings}, schema) == []
    assert validate({**given, "settings": {}}, schema) == []
    assert validate({"settings": settings}, schema) != []
    missing = [key for key, field in schema["properties"].items() if not field.get("description")]
    assert missing == []
