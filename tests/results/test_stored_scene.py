"""A staged result replaces the current one in steps, none of which shows a mixture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.object_stores import Store
from support.small_results import A, B, C, publish

from pipeline.errors import AccessError
from pipeline.results import Results, open_results
from pipeline.results.stored_scene import ExpectedFile
from pipeline.storage import StoredFile

DIGEST = "0" * 64


@pytest.fixture
def results(store: Store, tmp_path: Path) -> Results:
    return open_results(f"s3://{store.bucket}/out", tmp_path)


def fail_to_publish(results: Results, store: Store, text: str, *orders: str, names: str = "ab") -> None:
    store.fail(*orders)
    with pytest.raises(AccessError):
        publish(results, text, names)
    store.fail()


@pytest.mark.parametrize(
    ("size", "etag", "matches"), [(3, "x", True), (3, "y", False), (4, "x", False), (4, "y", False)]
)
def test_a_file_is_the_expected_one_by_size_and_version(size: int, etag: str, matches: bool) -> None:
    assert ExpectedFile(size=3, sha256=DIGEST, etag="x").matches(StoredFile(size_bytes=size, etag=etag)) is matches
    assert ExpectedFile(size=3, sha256=DIGEST).matches(StoredFile(size_bytes=size, etag=etag)) is (size == 3)
    assert not ExpectedFile(size=3, sha256=DIGEST).matches(None)


def test_the_previous_report_is_gone_before_its_files_are_replaced(store: Store, results: Results) -> None:
    publish(results, "old")
    fail_to_publish(results, store, "new", f"PUT out/town/{B} 403 9")
    # Files are copied at the same time: the other one is there or not yet.
    assert store.get(f"out/town/{A}") in (b"old", b"new")
    assert "report.json" not in store.names("out/town/")
    assert results.scenes.finished("town", "old") is None
    assert results.scenes.recover("town", "new") is not None
    assert (store.get(f"out/town/{A}"), store.get(f"out/town/{B}")) == (b"new", b"new")


def test_files_that_an_earlier_run_staged_do_not_stay(store: Store, results: Results) -> None:
    fail_to_publish(results, store, "first", "PUT .partial/report 403 9", names="abc")
    assert f".partial/{C}" in store.names("out/town/")
    publish(results, "second")
    assert sorted(store.names("out/town/")) == sorted([A, B, "report.json"])


def test_a_staged_result_that_lost_a_file_is_dropped(store: Store, results: Results, tmp_path: Path) -> None:
    publish(results, "old")
    fail_to_publish(results, store, "new", f"PUT out/town/({A}|{B}) 403 9")
    store.client.delete_object(Bucket=store.bucket, Key=f"out/town/.partial/{B}")
    other = open_results(f"s3://{store.bucket}/out", tmp_path / "another machine")
    assert other.scenes.recover("town", "new") is None
    assert not [name for name in store.names("out/town/") if name.startswith(".partial")]
    publish(other, "new")
    assert other.scenes.finished("town", "new") is not None


def test_a_report_in_a_store_lists_its_files(store: Store, results: Results) -> None:
    publish(results, "x")
    report: dict[str, Any] = json.loads(store.get("out/town/report.json"))
    assert {name: file["size"] for name, file in report["objects"].items()} == {A: 1, B: 1}
