"""Whatever the bytes of a file of others, its reader succeeds or raises an error of ours; findings are kept as cases.

`python -m support.fuzzing` runs the same targets for as long as one likes; see CONTRIBUTING.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pyarrow
import pytest
import shapely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from support.checkpoint_bytes import signed
from support.fuzz_targets import TARGETS, checkpoint
from support.fuzzing import UnexpectedError, try_input

from pipeline.catalog import CatalogSpec, read_catalog
from pipeline.errors import ModelError, ScenemillError, SettingsError
from pipeline.model import load_checkpoint
from pipeline.results.stage_records import StageRecords
from pipeline.run.record import _parsed
from pipeline.scene import describe_scene
from pipeline.storage import sha256_of_json

EXAMPLES = {
    "tiff": 250, "checkpoint": 150, "archive": 120, "card": 300, "csv": 150, "geojson": 60, "geoparquet": 150,
    "stac": 150, "settings": 60, "records": 100,
}  # fmt: skip
"""About five seconds for each target."""


@pytest.mark.parametrize("target", TARGETS)
def test_every_reader_accepts_a_file_or_refuses_it_with_an_error_of_ours(
    target: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp(target)

    @settings(max_examples=EXAMPLES[target], suppress_health_check=[*HealthCheck])
    @given(seed=st.integers(0, 2**32))
    def read(seed: int) -> None:
        try_input(target, TARGETS[target].make(Random(seed)), folder)

    read()


@pytest.mark.parametrize("target", TARGETS)
def test_the_same_seed_gives_the_same_file(target: str) -> None:
    assert TARGETS[target].make(Random(5)) == TARGETS[target].make(Random(5))


def test_an_exception_that_is_none_of_ours_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise KeyError(path)

    monkeypatch.setitem(TARGETS, "tiff", replace(TARGETS["tiff"], read=fail))
    with pytest.raises(UnexpectedError, match="tiff: KeyError"):
        try_input("tiff", b"", tmp_path)


def test_a_file_outside_its_folder_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def escape(path: Path) -> None:
        (path.parent.parent / "planted").write_text("x")

    monkeypatch.setitem(TARGETS, "tiff", replace(TARGETS["tiff"], read=escape))
    with pytest.raises(UnexpectedError, match="wrote outside its folder"):
        try_input("tiff", b"", tmp_path)


# Findings


def test_a_table_whose_first_line_is_no_csv_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scenes.csv").write_text("path," + "x" * 200_000 + "\na.tif,b\n")
    with pytest.raises(SettingsError, match="its first line does not name columns: field larger than field limit"):
        [*read_catalog([tmp_path / "scenes.csv"], CatalogSpec())]


def test_a_record_without_a_key_counts_for_no_stage(tmp_path: Path) -> None:
    content = {"facts": {}, "files": {}}
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "done.json").write_text(json.dumps({"sha256": sha256_of_json(content), **content}))
    assert StageRecords(tmp_path).find("done", "k") is None


def test_a_header_of_tens_of_thousands_of_bands_is_described_in_seconds(make_scene) -> None:
    """Properties of all bands were asked for anew for each band: many minutes for 40,000."""
    path = make_scene(np.zeros((20_000, 2, 2), np.uint8), interleave="pixel")
    started = time.process_time()
    assert len(describe_scene(path).bands) == 20_000
    assert time.process_time() - started < 20


@pytest.mark.parametrize(
    "text",
    [
        '{"writes": 1, "runs": [{"run": "a", "write": [1]}]}', '{"writes": 1, "runs": [{"run": {}, "write": 1}]}',
        '{"writes": 1, "runs": [{"run": "a", "write": 1}], "scenes": [{"run": "a", "scene": [], "status": "done"}]}',
        '{"writes": 1, "scenes": [{"run": "a", "scene": "b", "status": {}}]}',
        '{"writes": 1, "scenes": [{"run": "a"}]}',
        '{"a":' * 5000 + "1" + "}" * 5000, '{"writes": ' + "9" * 5000 + "}", "[]", "5", "",
    ],
)  # fmt: skip
def test_a_run_document_of_other_types_is_replaced(text: str) -> None:
    assert _parsed(text.encode()) == {"writes": 0, "runs": [], "scenes": []}


def test_a_network_of_hostile_settings_is_refused_in_few_words(tmp_path: Path) -> None:
    header, data = checkpoint()
    header = {**header, "__metadata__": {**header["__metadata__"]}}
    for norm in ("x" * 50_000, ["x"] * 5000, {"a": "b" * 50_000}):
        facts = {"name": "unet", "bands": 3, "classes": 1, "norm": norm}
        header["__metadata__"]["architecture"] = json.dumps(facts)
        (tmp_path / "model.safetensors").write_bytes(signed(header, data))
        with pytest.raises(ModelError) as refused:
            load_checkpoint(tmp_path / "model.safetensors")
        assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "geo",
    [
        b'{"primary_column": "gone", "columns": {"gone": {"encoding": "WKB"}}}', b"[]", b"5",
        b"{", b"\xff", b"{" * 5000,
        b'{"primary_column": {}, "columns": {}}', b'{"primary_column": "geometry", "columns": null}',
        b'{"primary_column": "geometry", "columns": {"geometry": "WKB"}}', b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"primary_column": "geometry", "columns": {"geometry": {"encoding": "WKB", "crs": {"a": [1]}}}}',
    ],
)  # fmt: skip
def test_metadata_of_geoparquet_that_lie_are_refused_or_left_out(geo: bytes, tmp_path: Path) -> None:
    table = pyarrow.table({"path": ["a.tif"], "geometry": [shapely.box(10, 50, 11, 51).wkb]})
    path = tmp_path / "scenes.parquet"
    parquet.write_table(table.replace_schema_metadata({b"geo": geo}), path)
    with suppress(ScenemillError):
        assert len([*read_catalog([path], CatalogSpec(bbox=(10, 50, 11, 51)))]) <= 1
