"""What a redirect keeps of a request, and that a kept-alive connection serves only the policy that opened it."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO

import pytest

from pipeline.errors import SceneError
from pipeline.storage.http.client import HttpRequest, WebClient, read_body
from pipeline.storage.http.hosts import ForbiddenHostError, HostRules, open_connection
from pipeline.storage.http.relay import _proxy, gdal_proxy_options

SECRET = {"Authorization": "Bearer 7f3a", "X-Api-Key": "7f3a", "Cookie": "a=b"}
PUBLIC = {"Range": "bytes=0-1", "User-Agent": "scenemill", "Accept": "*/*"}
REQUEST = HttpRequest(
    address="https://a.example/x/y?page=2", method="POST", query={"q": "1"}, headers=SECRET | PUBLIC, body={"a": 1}
)


@pytest.mark.parametrize("target", ["https://b.example/z", "//b.example/z", "http://a.example:81/z"])
def test_only_public_headers_go_to_another_server(target: str) -> None:
    assert REQUEST.redirected(302, target).headers == PUBLIC


@pytest.mark.parametrize("target", ["/z", "z", "https://a.example/z"])
def test_all_headers_go_to_the_same_server_and_the_parameters_to_none(target: str) -> None:
    followed = REQUEST.redirected(302, target)
    assert followed.headers == SECRET | PUBLIC
    assert followed.query is None
    assert followed.address == ("https://a.example/x/z" if target == "z" else "https://a.example/z")


@pytest.mark.parametrize("status", [301, 302, 303])
def test_method_and_body_stay_only_where_a_redirect_says_so(status: int) -> None:
    assert REQUEST.redirected(status, "/z").method == "GET"
    assert REQUEST.redirected(status, "/z").body is None
    for keeping in (307, 308):
        assert REQUEST.redirected(keeping, "/z").method == "POST"
        assert REQUEST.redirected(keeping, "/z").body == REQUEST.body
    head = HttpRequest(address="https://a.example/", method="HEAD")
    assert head.redirected(status, "/z").method == "HEAD"


@pytest.mark.parametrize("target", ["ftp://a.example/z", "file:///etc/passwd", "data:text/plain,a"])
def test_other_schemes_are_not_followed(target: str) -> None:
    with pytest.raises(SceneError, match="only http and https addresses are followed"):
        REQUEST.redirected(302, target)


class Counting(http.server.BaseHTTPRequestHandler):
    """Redirects from /3 to /2, to /1, to /0, which answers."""

    def do_GET(self) -> None:
        left = int(self.path.strip("/"))
        self.send_response(302 if left else 200)
        if left:
            self.send_header("Location", f"/{left - 1}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_ten_redirects_are_followed_and_no_more() -> None:
    client = WebClient()
    with running(Counting) as port:
        for redirects in (0, 1, 10):
            request = HttpRequest(address=f"http://127.0.0.1:{port}/{redirects}", hosts=("127.0.0.1",))
            with client.send(request) as response:
                assert response.status_code == 200
        request = HttpRequest(address=f"http://127.0.0.1:{port}/11", hosts=("127.0.0.1",))
        with pytest.raises(SceneError, match="redirects more than 10 times"), client.send(request):
            pass
    client.close()


def test_a_connection_goes_to_the_address_that_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: a name that is resolved once more may stand for another machine by then."""
    resolve, names = socket.getaddrinfo, list[object]()

    def count(name: Any, *given: Any, **more: Any) -> Any:
        names.append(name)
        return resolve("127.0.0.1", *given, **more)

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(socket, "getaddrinfo", count)
        open_connection("rebind.example", server.getsockname()[1], ("127.0.0.1",)).close()
    assert names == ["rebind.example"]


class Named(http.server.BaseHTTPRequestHandler):
    """Answers every request with the port it came to, and keeps the connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        content = str(self.server.server_address[1]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def running(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.fixture
def ports() -> Iterator[tuple[int, int]]:
    """Two servers that only this machine can reach."""
    with ExitStack() as stack:
        yield stack.enter_context(running(Named)), stack.enter_context(running(Named))


def test_a_connection_that_is_kept_serves_no_other_policy(ports: tuple[int, int]) -> None:
    client, address = WebClient(), f"http://127.0.0.1:{ports[0]}/"
    for _ in range(2):
        with client.send(HttpRequest(address=address, hosts=("127.0.0.1",))) as response:
            assert b"".join(read_body(response)) == str(ports[0]).encode()
        with pytest.raises(ForbiddenHostError), client.send(HttpRequest(address=address)):
            pass
    client.close()


def asked(
    connection: socket.socket, answers: BinaryIO, port: int, hosts: tuple[str, ...], line: str = "GET http://"
) -> tuple[str, bytes]:
    """Status and body of a request through the proxy of GDAL."""
    given = gdal_proxy_options("http://host.example/", hosts)["GDAL_HTTP_PROXYUSERPWD"]
    name = b64encode(given.encode()).decode()
    head = f"{line}127.0.0.1:{port}/ HTTP/1.1\r\nProxy-Authorization: Basic {name}\r\n\r\n"
    connection.sendall(head.encode())
    status, length = answers.readline().decode().split(" ")[1], 0
    while line := answers.readline().strip():
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return status, answers.read(length)


def test_a_connection_through_the_proxy_goes_to_the_server_of_each_request(ports: tuple[int, int]) -> None:
    with (
        socket.create_connection(("127.0.0.1", _proxy(os.getpid()).port), timeout=20) as connection,
        connection.makefile("rb") as answers,
    ):
        for port in (ports[0], ports[0], ports[1], ports[0]):
            assert asked(connection, answers, port, ("127.0.0.1",)) == ("200", str(port).encode())
        assert asked(connection, answers, ports[0], ())[0] == "451"


@pytest.mark.parametrize("line", ["POST http://", "PUT http://", "GET ftp://", "GET gopher://", "GET https://"])
def test_the_proxy_only_reads_also_from_allowed_hosts(ports: tuple[int, int], line: str) -> None:
    with (
        socket.create_connection(("127.0.0.1", _proxy(os.getpid()).port), timeout=20) as connection,
        connection.makefile("rb") as answers,
    ):
        assert asked(connection, answers, ports[0], ("127.0.0.1",), line)[0] == "451"


def test_a_document_never_adds_its_own_host_to_the_rules() -> None:
    settled = HostRules(("10.1.0.0/16",)).settled("http://127.0.0.1/a")
    assert settled == HostRules(("10.1.0.0/16", "127.0.0.1:80", "127.0.0.1:443"), is_named=False)
    assert settled.settled("http://127.0.0.2/a") == settled
