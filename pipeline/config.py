"""Settings: YAML files and `section.key=value` overrides become frozen, validated dataclasses.

Each package defines its section, a frozen dataclass whose fields are the keys and whose `__post_init__` checks the
rules. An error names the file, the key, the value and the rule before any work starts.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.catalog import CatalogSpec
from pipeline.distribute import DistributeSpec
from pipeline.errors import SettingsError
from pipeline.inference import Blend, TilingSpec
from pipeline.merge import MergeSpec
from pipeline.model import InferenceSpec
from pipeline.mosaic import MosaicSpec
from pipeline.polygons import PolygonSpec
from pipeline.scene import ReadingSpec
from pipeline.storage import RetryPolicy
from pipeline.text import quoted, read_yaml, read_yaml_file, shorten

MAX_RETRIES = 50
"""Prefect's limit of retry delays of a task."""
MAX_RULE_LENGTH = 600
"""Characters of a violated rule with the value that violates it."""
MAX_PAUSE_S = 300.0
"""Pauses double up to this."""


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """How a run over many scenes handles failures, and its working folder; never changes a result."""

    retries: int = 3
    """Retries of a scene after errors of disk, network or workers; errors of the data are never retried."""
    retry_delay_s: float = 2.0
    """Pause before the first retry, in seconds; each further one is twice as long, up to 300 s."""
    max_failures: int = 0
    """Number of failed scenes that ends the run: scenes in progress are finished, no other starts. 0: no limit."""
    retry_quarantined: bool = False
    """Retry scenes in quarantine, though neither they nor model and settings have changed."""
    repair: bool = False
    """Make a finished result again if its files were changed after they were written; false: skip it with a warning."""
    work_dir: str | None = None
    """Local folder in which results for an object store are written before upload; None: a temporary one."""

    def __post_init__(self) -> None:
        if not 0 <= self.retries <= MAX_RETRIES:
            raise SettingsError(f"retries must be 0 to {MAX_RETRIES}, not {self.retries}")
        if not 0 <= self.retry_delay_s < math.inf:
            raise SettingsError(f"retry_delay_s must be at least 0 s and finite, not {self.retry_delay_s}")
        if self.max_failures < 0:
            raise SettingsError(f"max_failures must be at least 0 (no limit), not {self.max_failures}")

    @property
    def retry_policy(self) -> RetryPolicy:
        """Retries of a scene."""
        return RetryPolicy.exponential(self.retries, float(self.retry_delay_s), max_s=MAX_PAUSE_S)


Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class SegmentSpec:
    """All settings of segmentation, one section per package."""

    catalog: CatalogSpec = field(default_factory=CatalogSpec)
    """How lists, tables and STAC catalogs are read, and which scenes run; never changes a result of the same files."""
    reading: ReadingSpec = field(default_factory=ReadingSpec)
    """How scenes are read."""
    area: str | None = None
    """File of polygons that restricts results: pixels outside become nodata and are skipped; None: whole scenes."""
    tiling: TilingSpec = field(default_factory=TilingSpec)
    """How scenes are split into tiles."""
    blend: Blend = "hann"
    """How overlapping tiles are combined; `exact` equals one pass over the whole scene."""
    inference: InferenceSpec = field(default_factory=InferenceSpec)
    """How the network runs."""
    mosaic: MosaicSpec = field(default_factory=MosaicSpec)
    """How probabilities are stored."""
    polygons: PolygonSpec = field(default_factory=PolygonSpec)
    """How the mask becomes polygons."""
    distribute: DistributeSpec = field(default_factory=DistributeSpec)
    """Where the work runs; never changes the result."""
    run: RunSpec = field(default_factory=RunSpec)
    """How a run over many scenes handles failures; never changes a result."""
    merge: MergeSpec = field(default_factory=MergeSpec)
    """Whether and how the polygons of all scenes are merged into one file; never changes the result of a scene."""

    def result_settings(self) -> dict[str, object]:
        """The settings that change the result, as plain JSON values; the area is identified by its pixels instead."""
        settings = dataclasses.asdict(self)
        del settings["catalog"], settings["area"], settings["distribute"], settings["run"], settings["merge"]
        del settings["reading"]["threads"]
        settings["inference"] = {key: settings["inference"][key] for key in ("precision", "augment", "deterministic")}
        return settings


def load_settings(
    kind: type[Settings], file: Path | None = None, overrides: Sequence[str] = (), **sections: Mapping[str, object]
) -> Settings:
    """Read settings of a dataclass `kind`, e.g. `SegmentSpec`, from a YAML file (None: all defaults) and overrides.

    Overrides read `section.key=value` (YAML values) and override the file; `sections`, whole or partial, override both.
    """
    values = _without_aliases(kind, _read_yaml(file), str(file)) if file else {}
    _check_keys(kind, values, place=str(file) if file else "settings")
    for override in overrides:
        path, value = _parse_override(override)
        place = f"--set {shorten(override)}"
        addition = _without_aliases(kind, _nested(path, value), place)
        _check_keys(kind, addition, place=place)
        values = _merge(values, addition)
    for name, section in sections.items():
        values = _merge(values, _without_aliases(kind, {name: section}, "settings"))
    origins = [str(file)] * (file is not None) + ["--set"] * bool(overrides)
    return build_settings(kind, values, place=" and ".join(origins) or "settings")


def build_settings(kind: type[Settings], values: Mapping[str, object], *, place: str) -> Settings:
    """Build settings of a kind from nested plain values; error messages begin with `place`, their origin.

    SettingsError: an unknown key, a value of the wrong type, or a violated rule.
    """
    values = _without_aliases(kind, values, place)
    _check_keys(kind, values, place=place)
    settings: Settings = _build(kind, values, place, ())
    return settings


def _build(kind: Any, values: Mapping[str, object], place: str, path: tuple[str, ...]) -> Any:
    """Build innermost sections first, so that each violated rule is reported with its key."""
    hints = get_type_hints(kind)
    fields: dict[str, object] = {}
    for key, value in values.items():
        hint, key_path = hints[key], (*path, key)
        if dataclasses.is_dataclass(hint):
            if value is not None:
                fields[key] = _build(hint, _section(value, place, key_path), place, key_path)
            continue
        try:
            adapter: TypeAdapter[object] = TypeAdapter(hint, config=ConfigDict(strict=False))
            plain = _text_keys(value, f"{place}: {'.'.join(key_path)}")
            fields[key] = adapter.validate_python(plain if hint is bool else _without_bools(plain))
        except ValidationError as error:
            rules = shorten("; or ".join(dict.fromkeys(str(each["msg"]) for each in error.errors())))
            raise SettingsError(f"{place}: {'.'.join(key_path)} = {quoted(value)}: {rules}") from error
    try:
        return kind(**fields)
    except SettingsError as error:
        prefix = "".join(f"{name}." for name in path)
        text = shorten(str(error), MAX_RULE_LENGTH)
        raise SettingsError(f"{place}: {text if prefix and text.startswith(prefix) else prefix + text}") from error


def aliases_of(kind: Any) -> dict[str, str]:
    """Earlier name of a key -> its name, of a settings dataclass; a field declares it as `metadata={"alias": ...}`."""
    return {each.metadata["alias"]: each.name for each in dataclasses.fields(kind) if "alias" in each.metadata}


def _without_aliases(kind: Any, values: Mapping[str, object], place: str, path: str = "") -> dict[str, object]:
    """Values with each key under its current name."""
    hints, aliases = get_type_hints(kind), aliases_of(kind)
    renamed: dict[str, object] = {}
    for key, value in values.items():
        name = aliases.get(key, key)
        if name in renamed:
            earlier = next(alias for alias, current in aliases.items() if current == name)
            raise SettingsError(f"{place}: {path}{earlier} is the former name of {path}{name}; set only {path}{name}")
        hint = hints.get(name)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            value = _without_aliases(hint, value, place, f"{path}{name}.")
        renamed[name] = value
    return renamed


def _section(value: object, place: str, path: tuple[str, ...]) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise SettingsError(f"{place}: {'.'.join(path)} must be a section of keys, not {quoted(value)}")
    return value


def _text_keys(value: object, place: str) -> object:
    """A mapping with text keys: 255 and null as written; booleans are refused, since YAML reads `yes` as true."""
    if not isinstance(value, Mapping):
        return value
    for key in value:
        if isinstance(key, bool):
            raise SettingsError(f'{place}: YAML takes the key for {str(key).lower()}; put it in quotes, e.g. "yes"')
    return {"null" if key is None else str(key): each for key, each in value.items()}


def _without_bools(value: object) -> object:
    """Booleans as text, so that `true` is not accepted as the number 1."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return {key: _without_bools(each) for key, each in value.items()}
    return [_without_bools(each) for each in value] if isinstance(value, list) else value


def _read_yaml(file: Path) -> dict[str, object]:
    try:
        values = read_yaml_file(file)
    except FileNotFoundError as error:
        raise SettingsError(f"{file}: no such settings file; check --config") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: cannot be read: {error}") from error
    except ValueError as error:
        raise SettingsError(f"{file}: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{file}: must be a mapping of sections, not a {type(values).__name__}")
    return values


def _parse_override(override: str) -> tuple[list[str], object]:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise SettingsError(f"--set {shorten(override)}: must read section.key=value, e.g. --set tiling.tile_size=256")
    try:
        return path.split("."), read_yaml(text)
    except ValueError as error:
        raise SettingsError(f"--set {shorten(override)}: the value is {error}") from error


def _nested(path: Sequence[str], value: object) -> dict[str, object]:
    return {path[0]: value if len(path) == 1 else _nested(path[1:], value)}


def _merge(base: Mapping[str, object], addition: Mapping[str, object]) -> dict[str, object]:
    merged = dict(base)
    for key, value in addition.items():
        previous = merged.get(key)
        both = isinstance(previous, Mapping) and isinstance(value, Mapping)
        merged[key] = _merge(previous, value) if both else value  # type: ignore[arg-type]
    return merged


def _check_keys(kind: Any, values: object, *, place: str) -> None:
    for path, key, known in _unknown_keys(kind, values, ()):
        raise SettingsError(
            f"{place}: unknown key {shorten('.'.join((*path, key)))}; {_advice(key, path, known, kind)}"
        )


def _unknown_keys(
    kind: Any, values: object, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str, Mapping[str, object]]]:
    """Yield `(section, key, known keys of the section)` for each unknown key."""
    if not isinstance(values, Mapping) or not dataclasses.is_dataclass(kind):
        return
    hints = get_type_hints(kind)
    for key, value in values.items():
        if key in hints:
            yield from _unknown_keys(hints[key], value, (*path, key))
        else:
            yield path, str(key), hints


def _advice(key: str, path: tuple[str, ...], known: Mapping[str, object], kind: Any) -> str:
    other_sections = [
        f"{name}.{key}"
        for name, hint in get_type_hints(kind).items()
        if dataclasses.is_dataclass(hint) and key in get_type_hints(hint)
    ]
    if other_sections:
        return f"did you mean {other_sections[0]}?"
    close = difflib.get_close_matches(key, known, n=1)
    if close:
        return f"did you mean {'.'.join((*path, close[0]))}?"
    return f"known keys are {', '.join(sorted(known))}"
