"""Results in an object store: complete or not found, whatever interrupts a run; the same bytes as in a folder."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.object_stores import Store

from pipeline.errors import AccessError, SettingsError, TransientError
from pipeline.results import lease as results_lease
from pipeline.results.report import OUTPUTS
from pipeline.results.results import Results, open_results
from pipeline.storage.s3 import store_access

KINDS = {"a": "probability", "b": "mask", "c": "polygons", "d": "preview"}
"""Short names of the outputs in these tests."""
FILES = {name: OUTPUTS[kind] for name, kind in KINDS.items()}


def open_store(store: Store, work: Path | None = None, prefix: str = "out") -> Results:
    return open_results(f"s3://{store.bucket}/{prefix}", work)


def publish(results: Results, text: str, *, names: str = "ab") -> None:
    with results.scenes.publishing("town") as work:
        publish_into(work, text, names)


def publish_into(work: Path, text: str, names: str = "ab") -> None:
    for name in names:
        (work / FILES[name]).write_text(text * 3)
    (work / "report.json").write_text(json.dumps(report_of(text, names)))


def report_of(text: str, names: str = "ab") -> dict[str, object]:
    return {
        "scene": "town",
        "location": "town.tif",
        "status": "done",
        "content_key": text,
        "outputs": {KINDS[name]: FILES[name] for name in names},
    }


def contents(store: Store, prefix: str = "out/town/") -> dict[str, str]:
    short = {file: name for name, file in FILES.items()}
    names = [name for name in store.names(prefix) if name != "report.json"]
    return {short.get(name, name): store.get(prefix + name).decode() for name in names}


# Complete or not found


def test_a_result_is_in_the_store_and_no_longer_on_the_disk(store: Store, tmp_path: Path) -> None:
    results = open_store(store, tmp_path / "work")
    publish(results, "x")
    assert contents(store) == {"a": "xxx", "b": "xxx"}
    assert [path.name for path in (tmp_path / "work").rglob("*") if path.is_file()] == ["owner"]
    found = results.scenes.finished("town", "x")
    assert found is not None
    assert (found.inputs.content_key, {*found.outputs.names.values()}) == ("x", {FILES["a"], FILES["b"]})
    assert (results.scenes.finished("town", "y"), results.scenes.finished("town", None)) == (None, None)
    assert results.documents.sizes("town").keys() == {FILES["a"], FILES["b"], "report.json"}
    assert [*results.scenes.ids()] == ["town"]


def test_a_report_names_size_digest_and_etag_of_every_file(store: Store) -> None:
    publish(open_store(store), "x")
    expected = json.loads(store.get("out/town/report.json"))["objects"]
    etag = store.client.head_object(Bucket=store.bucket, Key=f"out/town/{FILES['a']}")["ETag"]
    assert expected[FILES["a"]] == {"size": 3, "sha256": hashlib.sha256(b"xxx").hexdigest(), "etag": etag}
    assert [*expected] == sorted([FILES["a"], FILES["b"]])


@pytest.mark.parametrize("harm", ["gone", "torn", "same size", "no report", "torn report"])
def test_a_result_that_differs_from_its_report_is_not_found(
    store: Store, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    results = open_store(store)
    publish(results, "x")
    name = "report.json" if "report" in harm else FILES["a"]
    if harm in ("gone", "no report"):
        store.client.delete_object(Bucket=store.bucket, Key=f"out/town/{name}")
    else:
        store.put(f"out/town/{name}", {"torn": b"x", "same size": b"yyy", "torn report": b"{"}[harm])
    assert results.scenes.finished("town", "x") is None
    assert (f"{FILES['a']} differ from its report" in caplog.text) == ("report" not in harm)
    assert results.scenes.recover("town", "x") is None
    publish(results, "x")
    assert results.scenes.finished("town", "x") is not None


def test_a_new_result_replaces_the_previous_one_and_keeps_foreign_objects(store: Store) -> None:
    results = open_store(store)
    publish(results, "old", names="abc")
    store.put("out/town/notes.txt", b"mine")
    publish(results, "new")
    assert contents(store) == {"a": "newnewnew", "b": "newnewnew", "notes.txt": "mine"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_no_file_and_keeps_the_previous_result(store: Store, error: type[BaseException]) -> None:
    results = open_store(store)
    publish(results, "old")

    def fail() -> None:
        with results.scenes.publishing("town") as work:
            (work / "a").write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert contents(store) == {"a": "oldoldold", "b": "oldoldold"}
    assert results.scenes.finished("town", "old") is not None


# Kills


class CutOffError(Exception):
    """No request of a killed process reaches the store any more."""


@contextmanager
def cut_off_after(requests: int) -> Iterator[list[int]]:
    """Let `requests` requests through, and none after them; yields the remaining number."""
    left = [requests]

    def send(**_: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise CutOffError

    events = store_access().client.meta.events
    events.register("before-send.s3", send)
    try:
        yield left
    finally:
        events.unregister("before-send.s3", send)


OLD, NEW = {"a": "old" * 3, "b": "old" * 3, "c": "old" * 3}, {"a": "new" * 3, "b": "new" * 3}


def stopped_after(requests: int, store: Store, work: Path) -> tuple[Results, bool]:
    """A store in which a run that replaced an old result was killed; and whether the run finished."""
    results = open_store(store, work, prefix=f"{requests}")
    publish(results, "old", names="abc")
    with cut_off_after(requests) as left:
        try:
            publish(results, "new")
        except CutOffError:
            return results, False
    assert left[0] >= 0
    return results, True


def check_and_resume(results: Results, store: Store, prefix: str) -> None:
    """A result that is found is complete; a rerun leaves the new result alone, and computes nothing twice."""
    found = contents(store, prefix)
    visible = {name: text for name, text in found.items() if not name.startswith(".")}
    found_keys = {key for key in ("old", "new") if results.scenes.finished("town", key)}
    assert (found_keys == {"old"} and visible == OLD) or (found_keys == {"new"} and visible == NEW) or not found_keys
    recovered = results.scenes.recover("town", "new")
    assert recovered or found_keys == {"old"}
    if not recovered:
        publish(results, "new")
    assert contents(store, prefix) in (NEW, NEW | {".lock": found.get(".lock")})
    assert results.scenes.finished("town", "new") is not None


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_kill_between_any_two_requests_leaves_one_complete_result_or_none(
    store: Store, tmp_path: Path, every: int
) -> None:
    for requests in itertools.count(0, every):
        results, is_complete = stopped_after(requests, store, tmp_path)
        check_and_resume(results, store, f"{requests}/town/")
        if is_complete:
            break
    assert requests > 20


def test_nothing_is_computed_or_uploaded_twice(store: Store, tmp_path: Path) -> None:
    results = open_store(store, tmp_path)
    store.fail("PUT \\.partial/report 403 9")
    with pytest.raises(AccessError, match="refuses"):
        publish(results, "x")
    assert store.names("out/town/") == [f".partial/{name}" for name in sorted([FILES["a"], FILES["b"]])]
    store.fail()
    sent = len(store.requests)
    assert results.scenes.recover("town", "x") is not None
    uploads = [line for line in store.requests[sent:] if line.startswith("PUT") and "/.partial/" in line]
    assert [line.split("?")[0].rpartition("/")[2] for line in uploads] == ["report.json"]
    assert contents(store) == {"a": "xxx", "b": "xxx"}


def test_a_staged_result_is_completed_by_another_machine(store: Store, tmp_path: Path) -> None:
    results = open_store(store, tmp_path / "one")
    store.fail(f"PUT out/town/{FILES['a']} 403 9")
    with pytest.raises(AccessError):
        publish(results, "x")
    store.fail()
    other = open_store(store, tmp_path / "other")
    assert other.scenes.finished("town", "x") is None
    assert other.scenes.recover("town", "x") is not None
    assert contents(store) == {"a": "xxx", "b": "xxx"}


def test_parts_of_uploads_that_never_ended_are_removed(store: Store) -> None:
    store.client.create_multipart_upload(Bucket=store.bucket, Key="out/town/.partial/a")
    store.client.create_multipart_upload(Bucket=store.bucket, Key="elsewhere")
    publish(open_store(store), "x")
    left = store.client.list_multipart_uploads(Bucket=store.bucket)["Uploads"]
    assert [each["Key"] for each in left] == ["elsewhere"]


# Two runs at once


def test_two_runs_never_write_one_result(store: Store, tmp_path: Path) -> None:
    one, two = (open_store(store, tmp_path / name) for name in ("one", "two"))
    with one.scenes.publishing("town") as work:
        with pytest.raises(TransientError, match=r"town: another run is writing this result \(.*process \d+, since 20"):
            publish(two, "second")
        with pytest.raises(TransientError, match="another run on this machine"):
            publish(open_store(store, tmp_path / "one"), "third")
        publish_into(work, "first")
    assert contents(store)["a"] == "first" * 3
    publish(two, "fourth")
    assert contents(store)["a"] == "fourth" * 3


def test_a_stale_lock_is_taken_over(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (open_store(store, tmp_path / name) for name in ("one", "two"))

    def overtaken() -> None:
        with one.scenes.publishing("town") as work:
            publish_into(work, "first")
            monkeypatch.setattr(results_lease, "LEASE_S", -1.0)
            publish(two, "second")

    with pytest.raises(TransientError, match="another run has taken over the lock"):
        overtaken()
    assert two.scenes.finished("town", "second") is not None
    assert two.scenes.recover("town", "second") is not None  # and deletes the files staged by the other
    assert contents(store) == {"a": "second" * 3, "b": "second" * 3}


def test_a_restarted_run_holds_the_lock_immediately(store: Store, tmp_path: Path) -> None:
    results, _ = stopped_after(4, store, tmp_path)
    assert ".lock" in store.names("4/town/")
    with pytest.raises(TransientError, match="another run is writing"):
        publish(open_store(store, tmp_path / "other", prefix="4"), "new")
    publish(results, "new")


def test_locks_hold_in_a_store_without_conditional_writes(store: Store, tmp_path: Path) -> None:
    def plainly(params: dict[str, Any], **_: object) -> None:
        params["headers"].pop("If-None-Match", None)
        params["headers"].pop("If-Match", None)

    store_access().client.meta.events.register("before-call.s3.PutObject", plainly)
    one, two = (open_store(store, tmp_path / name) for name in ("one", "two"))
    with one.scenes.publishing("town") as work:
        with pytest.raises(TransientError, match="another run is writing"):
            publish(two, "second")
        publish_into(work, "first")
    publish(two, "second")
    store_access().client.meta.events.unregister("before-call.s3.PutObject", plainly)
    assert contents(store)["a"] == "second" * 3


def test_a_store_that_refuses_conditional_writes_is_written_without_them(store: Store) -> None:
    store.fail("PUT /out/town/.lock 501 1")
    publish(open_store(store), "x")
    assert open_store(store).scenes.finished("town", "x") is not None


def test_a_lock_that_another_process_deleted_is_lost(store: Store) -> None:
    results = open_store(store)

    def robbed() -> None:
        with results.scenes.publishing("town") as work:
            publish_into(work, "x")
            store.client.delete_object(Bucket=store.bucket, Key="out/town/.lock")

    with pytest.raises(TransientError, match="another run has taken over the lock"):
        robbed()
    assert results.scenes.finished("town", "x") is None
    assert results.scenes.recover("town", "x") is not None


# Addresses that cannot be used


def test_an_address_is_refused_before_any_work(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(store).documents.check()
    assert store.names() == []
    with pytest.raises(SettingsError, match="there is no bucket nowhere; check the address"):
        open_results("s3://nowhere/out").documents.check()
    store.fail("PUT /out/.writable 403 1")
    with pytest.raises(SettingsError, match=r"the store refuses .* check the credentials"):
        open_store(store).documents.check()
    open_store(store).documents.check(writing=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(SettingsError, match="no usable credentials"):
        open_store(store).documents.check()


@pytest.mark.parametrize(
    "address", ["s3://", "s3://x", "s3:///out", "s3://bucket//out", "s3://bucket/a/../b", "s3://b_/"]
)
def test_an_address_that_no_bucket_has_is_refused(address: str) -> None:
    with pytest.raises(SettingsError, match="must read s3://bucket/prefix"):
        open_results(address)


def test_a_transient_error_of_a_store_is_retried(store: Store) -> None:
    store.fail("PUT /out/run.json 503 2", "GET /out/run.json 0 1")
    results = open_store(store)
    results.documents.write("run.json", "{}")
    assert results.documents.read("run.json") == b"{}"
