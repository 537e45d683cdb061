"""What a server of scenes answers: gone, empty, busy, or without an answer to the question."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import pytest

from pipeline.errors import DamagedSceneError, SceneError, TransientError
from pipeline.storage import remote
from pipeline.storage.location import resolve_location
from pipeline.storage.remote import remote_version
from pipeline.storage.retries import RetryPolicy


class Answers(http.server.BaseHTTPRequestHandler):
    """`/404` answers 404; `/206/5/x` answers with an ETag `x` and a part of 5 bytes."""

    def do_GET(self) -> None:
        status, *facts = self.path.strip("/").split("/")
        self.send_response(int(status))
        if facts:
            size, etag = facts
            self.send_header("Content-Range", f"bytes 0-0/{size}")
            if etag != "none":
                self.send_header("ETag", etag)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (404, SceneError, "nothing is there"),
        (410, SceneError, "nothing is there"),
        (416, DamagedSceneError, "an empty file"),
        (429, TransientError, "the server answers 429"),
        (503, TransientError, "the server answers 503"),
    ],
)
def test_an_answer_says_whose_fault_it_is(
    server: str, status: int, kind: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "REQUEST_RETRIES", RetryPolicy((0.0,)))
    with pytest.raises(kind, match=message) as caught:
        remote_version(resolve_location(f"{server}/{status}"))
    assert type(caught.value) is kind


@pytest.mark.parametrize("status", [400, 403, 405])
def test_a_server_that_does_not_answer_such_a_request_gives_no_version(server: str, status: int) -> None:
    assert remote_version(resolve_location(f"{server}/{status}")) is None


def test_a_version_holds_tag_and_size_and_is_unknown_without_a_tag(server: str) -> None:
    versions = [remote_version(resolve_location(f"{server}/206/{facts}")) for facts in ("5/x", "6/x", "5/y")]
    assert None not in versions
    assert len(set(versions)) == 3
    assert remote_version(resolve_location(f"{server}/206/5/none")) is None
