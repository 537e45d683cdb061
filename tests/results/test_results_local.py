"""Addresses of results, and results in a local folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import SettingsError, TransientError
from pipeline.results.results import open_results


@pytest.mark.parametrize("out", ["gs://bucket/out", "https://example.com/out", "file:///out", "://"])
def test_an_address_that_results_cannot_have_is_refused(out: str) -> None:
    with pytest.raises(SettingsError, match="results cannot be written to"):
        open_results(out)


@pytest.mark.parametrize("out", [Path("s3://bucket/out"), "s3:/bucket/out"])
def test_an_address_that_was_taken_for_a_path_is_refused(out: str | Path) -> None:
    with pytest.raises(SettingsError, match=r"lost a slash.*pass it as text"):
        open_results(out)


def test_a_file_is_no_place_for_results(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(SettingsError, match=r"file is a file; name another with --out"):
            open_results(out).documents.check()
    open_results(tmp_path / "new" / "folder").documents.check()


def test_documents_are_read_as_they_were_written(tmp_path: Path) -> None:
    results = open_results(tmp_path / "out")
    documents = results.documents
    assert (documents.read("run.json"), [*results.scenes.ids()], documents.sizes("town")) == (None, [], {})
    documents.write("run.json", "{}")
    documents.write("town/item.json", b"\xc3\xa4")
    assert (documents.read("run.json"), documents.read("town/item.json")) == (b"{}", "ä".encode())
    assert ([*results.scenes.ids()], documents.sizes("town")) == (["town"], {"item.json": 2})
    assert (tmp_path / "out" / "run.json").read_text() == "{}"


def test_a_document_that_cannot_be_read_is_a_transient_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(TransientError, match=r"run\.json: cannot be read: .*check the disk"):
        open_results(tmp_path).documents.read("run.json")
    (tmp_path / "file").touch()
    assert open_results(tmp_path / "file").documents.read("run.json") is None
