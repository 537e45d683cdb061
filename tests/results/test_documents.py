"""Documents in a local folder and in an object store behave the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.results.documents import Documents
from pipeline.results.results import open_results


@pytest.fixture(params=["folder", "store"])
def documents(request: pytest.FixtureRequest, tmp_path: Path) -> Documents:
    if request.param == "folder":
        return open_results(tmp_path / "out").documents
    bucket = request.getfixturevalue("store").bucket
    return open_results(f"s3://{bucket}/out", tmp_path / "work").documents


def test_documents_are_written_read_measured_and_removed(documents: Documents) -> None:
    documents.check()
    assert (documents.read("run.json"), documents.size("run.json"), documents.sizes("town")) == (None, None, {})
    documents.remove("run.json")
    with documents.lock():
        documents.write("run.json", "ä")
        documents.write("town/item.json", b"123")
    assert (documents.read("run.json"), documents.size("run.json")) == ("ä".encode(), 2)
    assert documents.sizes("town") == {"item.json": 3}
    documents.remove("run.json")
    assert documents.read("run.json") is None


def test_files_are_uploaded_downloaded_and_located(documents: Documents, tmp_path: Path) -> None:
    (tmp_path / "mask.tif").write_bytes(b"mask")
    documents.upload("town/mask.tif", tmp_path / "mask.tif")
    copy = documents.download("town/mask.tif", tmp_path / "copies")
    assert copy.read_bytes() == b"mask"
    assert copy.is_relative_to(tmp_path / "copies") == (documents.folder is None)
    assert documents.address("town/mask.tif") == documents.location("town/mask.tif").text
