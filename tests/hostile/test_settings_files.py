"""Settings, overrides and card files that would hang, exhaust or confuse a YAML reader are refused within a second."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import SegmentSpec, load_settings
from pipeline.errors import ModelError, ScenemillError, SettingsError
from pipeline.model.exported.load import read_card

LETTERS = "abcdefghijkl"
LAUGHS = "\n".join(
    ["a: &a [x, x, x, x, x, x, x, x, x]"]
    + [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in itertools.pairwise(LETTERS)]
)
"""A kilobyte whose aliases stand for 9^12 values."""
MERGES = "\n".join(
    ["a: &a {k0: 1, k1: 1}"]
    + [f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}" for before, name in itertools.pairwise(LETTERS)]
)  # fmt: skip
TEXTS: dict[str, tuple[str, str]] = {
    "billion laughs": (LAUGHS, "holds over 20000 values, with those that aliases stand for"),
    "a billion merges": (MERGES, "holds over 20000 values, with those that aliases stand for"),
    "a list that contains itself": ("area: &a [*a]", "the alias 'a' stands for a value that contains it"),
    "a map that contains itself": ("reading: &a {bands: *a}", "the alias 'a' stands for a value that contains it"),
    "lists nested very deep": ("[" * 100_000, "nested over 50 deep"),
    "maps nested very deep": ("{a: " * 100_000, "nested over 50 deep"),
    "blocks nested very deep": ("- " * 100_000, "nested over 50 deep"),
    "very many values": ("[" + "0," * 300_000 + "]", "holds over 20000 values"),
    "very many keys": ("".join(f"k{k}: 0\n" for k in range(80_000)), "holds over 20000 values"),
    "a number of 5,000 digits": ("seed: " + "9" * 5000, "a number of 5000 characters"),
    "a hexadecimal number of 100,000 digits": ("seed: 0x" + "f" * 100_000, "a number of 100002 characters"),
    "a number to base 60 of 100,000 digits": ("seed: 1" + ":1" * 100_000, "a number of 200001 characters"),
    "half a surrogate pair": ('area: "\\ud800"', "half of a surrogate pair"),
    "NUL in a text": ('area: "a\\0b"', "a text with NUL"),
    "a Python object": ("area: !!python/object/apply:os.system [true]", "the tag .* is not accepted"),
    "an integer of no digits": ("seed: 0x_", "invalid YAML: invalid literal"),
    "a tag without a value": ("seed: !!int", "the tag .* is not accepted"),
    "another encoding": ("seed: 1\udcff", "'utf-8' codec can't decode"),
    "a file of 2 MiB": ("#" * 2**21, "over 1048576 bytes, which no settings and no model card need"),
}


def refusal(read: Callable[[], object]) -> ScenemillError:
    """The error of a reader, which it gives within seconds and in few words."""
    started = time.perf_counter()
    with pytest.raises(ScenemillError) as refused:
        read()
    assert time.perf_counter() - started < 20, "a hang guard; it takes about a second"
    assert len(str(refused.value)) < 1000
    return refused.value


@pytest.mark.parametrize("case", TEXTS)
def test_a_hostile_settings_file_or_card_is_refused_with_the_reason(case: str, tmp_path: Path) -> None:
    text, reason = TEXTS[case]
    path = tmp_path / "hostile.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    error = refusal(lambda: load_settings(SegmentSpec, path))
    assert isinstance(error, SettingsError)
    assert re.search(f"{path}: .*{reason}", str(error))
    assert isinstance(refusal(lambda: read_card(path)), ModelError)


@pytest.mark.parametrize("case", [case for case, (text, _) in TEXTS.items() if len(text) < 2**20])
def test_a_hostile_override_is_refused(case: str) -> None:
    text, _ = TEXTS[case]
    assert isinstance(refusal(lambda: load_settings(SegmentSpec, None, [f"area={text}"])), SettingsError)


@pytest.mark.parametrize(
    "setting",
    [
        "catalog.assets=[" + ",".join(["x" * 100] * 3000) + "]",
        "tiling.tile_size=[" + ",".join(["1"] * 19_000) + "]",
        "tiling=" + "x" * 300_000,
        "x" * 300_000 + "=1",
        "tiling." + "x" * 300_000 + "=1",
        "no equals sign " * 10_000,
    ],
    ids=["texts", "numbers", "no section", "unknown section", "unknown key", "no value"],
)
def test_a_wrong_value_of_any_size_is_quoted_in_few_words(setting: str, tmp_path: Path) -> None:
    refusal(lambda: load_settings(SegmentSpec, None, [setting]))
    key, _, value = setting.partition("=")
    path = tmp_path / "settings.yaml"
    path.write_text(json.dumps({key: value}))
    refusal(lambda: load_settings(SegmentSpec, path))


def test_a_json_card_file_nested_very_deep_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "card.json"
    path.write_text('{"bands": ["red"], "classes": ["roof"], "training": ' + '{"a":' * 60 + "1" + "}" * 61)
    assert "nested over 50 deep" in str(refusal(lambda: read_card(path)))


def test_aliases_that_stand_for_few_values_work(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("reading: &r {threads: 2}\ninference: {<<: {batch_size: 3}}\ndistribute: {}\ncatalog: {}\n")
    assert load_settings(SegmentSpec, path).reading.threads == 2
    path.write_text("reading: {bands: &b {red: 1}, drivers: [GTiff]}\n")
    assert load_settings(SegmentSpec, path).reading.bands == {"red": 1}
