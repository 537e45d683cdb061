"""One run at a time writes a result to a store, also where the store helps little; local work is private."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.object_stores import Store
from support.small_results import A, B, publish, publish_into

from pipeline.errors import AccessError, TransientError
from pipeline.results import Results, open_results
from pipeline.results import lease as results_lease
from pipeline.storage import store_access


def open_store(store: Store, work: Path | None = None) -> Results:
    return open_results(f"s3://{store.bucket}/out", work)


def test_a_staged_result_is_completed_before_the_scene_is_made_anew(store: Store, tmp_path: Path) -> None:
    results = open_store(store, tmp_path)
    store.fail(f"PUT out/town/({A}|{B}) 403 9")
    with pytest.raises(AccessError):
        publish(results, "x")
    store.fail()
    with results.scenes.publishing("town") as work:
        assert (store.get(f"out/town/{A}"), store.get(f"out/town/{B}")) == (b"x", b"x")
        assert results.scenes.finished("town", "x") is not None
        publish_into(work, "y")
    assert results.scenes.finished("town", "y") is not None


def test_of_two_runs_that_a_store_lets_take_one_lock_the_first_gives_way(store: Store, tmp_path: Path) -> None:
    """Without conditional writes both writes succeed; what is read back tells the runs apart."""
    requests = list[str]()

    def unconditional(params: dict[str, Any], **_: object) -> None:
        requests.append(params["url_path"])
        params["headers"].pop("If-None-Match", None)
        params["headers"].pop("If-Match", None)

    def overtake(**_: object) -> None:
        if len(requests) == 1:
            store.put("out/town/.lock", b'{"owner": "other"}')

    events = store_access().client.meta.events
    events.register("before-call.s3.PutObject", unconditional)
    events.register("after-call.s3.PutObject", overtake)
    try:
        with (
            pytest.raises(TransientError, match="another run is writing this result"),
            open_store(store, tmp_path).scenes.publishing("town"),
        ):
            raise AssertionError("two runs hold one lock")
    finally:
        events.unregister("before-call.s3.PutObject", unconditional)
        events.unregister("after-call.s3.PutObject", overtake)
    assert requests[0].endswith("/.lock")
    assert store.get("out/town/.lock") == b'{"owner": "other"}'


def test_a_run_that_lost_its_lock_leaves_that_of_its_successor(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (open_store(store, tmp_path / name) for name in ("one", "two"))
    with ExitStack() as later:

        def overtaken() -> None:
            with one.scenes.publishing("town") as work, monkeypatch.context() as patched:
                publish_into(work, "first")
                patched.setattr(results_lease, "LEASE_S", -1.0)
                publish_into(later.enter_context(two.scenes.publishing("town")), "second")

        with pytest.raises(TransientError, match="taken over the lock"):
            overtaken()
        assert ".lock" in store.names("out/town/")
        with pytest.raises(TransientError, match="another run is writing"):
            publish(open_store(store, tmp_path / "three"), "third")
    assert two.scenes.finished("town", "second") is not None


def test_a_lock_whose_answer_was_lost_is_held_by_the_run_that_wrote_it(store: Store, tmp_path: Path) -> None:
    """The request arrived, its answer did not; tried again, the store refuses it, since the lock is there."""
    arrived = list[str]()

    def write_before(params: dict[str, Any], **_: object) -> None:
        if params["url_path"].endswith("/.lock") and "If-None-Match" in params["headers"]:
            store.put("out/town/.lock", params["body"].getvalue())
            arrived.append(params["url_path"])

    events = store_access().client.meta.events
    events.register("before-call.s3.PutObject", write_before)
    try:
        publish(open_store(store, tmp_path), "x")
    finally:
        events.unregister("before-call.s3.PutObject", write_before)
    assert len(arrived) == 1
    assert open_store(store, tmp_path).scenes.finished("town", "x") is not None


@pytest.fixture
def shared_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"scenemill-{os.geteuid()}"


def use_local_work(store: Store) -> None:
    with open_store(store).documents.lock():
        pass


def test_local_work_is_open_to_its_user_only(store: Store, shared_temporary_folder: Path) -> None:
    use_local_work(store)
    assert shared_temporary_folder.stat().st_mode & 0o777 == 0o700
    shared_temporary_folder.chmod(0o777)
    use_local_work(store)
    assert shared_temporary_folder.stat().st_mode & 0o777 == 0o700


def test_local_work_follows_no_link_of_another_user(
    store: Store, shared_temporary_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    shared_temporary_folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AccessError, match="symbolic link"):
        use_local_work(store)
    assert not [*(tmp_path / "elsewhere").iterdir()]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")
def test_a_folder_of_another_user_is_not_used(store: Store, shared_temporary_folder: Path) -> None:
    shared_temporary_folder.mkdir()
    os.chown(shared_temporary_folder, 12345, 12345)
    with pytest.raises(AccessError, match="belongs to another user, number 12345"):
        use_local_work(store)
