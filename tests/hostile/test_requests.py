"""Requests reach only public hosts and those that the operator named, whatever documents and redirects name."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pickle
import socket
import subprocess
import sys
import threading
import urllib.error
from base64 import b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from conftest import MakeScene
from support.range_server import requests_of, serving
from support.stac_api import StacApi
from support.stac_api import serving as serving_api
from support.webhook import webhook

from flows.hooks import post
from pipeline.catalog.entry import CatalogEntry, describe_entry
from pipeline.catalog.read import read_catalog
from pipeline.catalog.spec import CatalogSpec
from pipeline.catalog.stac.links import document_location, resolve_href
from pipeline.errors import SceneError, ScenemillError, SettingsError, TransientError
from pipeline.scene.describe import describe_scene
from pipeline.scene.reader import SceneReader
from pipeline.scene.spec import ReadingSpec
from pipeline.storage.http import client as http_client
from pipeline.storage.http.client import HttpRequest, WebClient, read_body
from pipeline.storage.http.hosts import ForbiddenHostError, HostRules, is_public, resolve_allowed
from pipeline.storage.http.relay import _proxy, gdal_proxy_options
from pipeline.storage.location import resolve_location
from pipeline.storage.remote import remote_version
from pipeline.storage.retries import RetryPolicy


class Listener:
    """A TCP server that counts connections, and answers none."""

    def __init__(self) -> None:
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            connection.close()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def inner() -> Iterator[Listener]:
    """A service that only this machine can reach."""
    listener = Listener()
    yield listener
    assert listener.connections == 0, "a request reached the inner service"
    listener.close()


@pytest.fixture
def api() -> Iterator[StacApi]:
    with serving_api(StacApi()) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder on a file server."""
    folder = tmp_path / "served"
    folder.mkdir()
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[str]:
    with serving(folder) as address:
        yield address


def item(name: str, href: str, **fields: Any) -> dict[str, Any]:
    """A STAC Item of one file."""
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "bbox": None,
        "properties": {"datetime": "2026-05-01T00:00:00Z"},
        "collection": "a",
        "links": [],
        "assets": {"data": {"href": href, "type": "image/tiff; application=geotiff", "roles": ["data"]}},
        **fields,
    }


def items(*features: dict[str, Any], links: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(features), "links": links or []}


def outcome(entry: CatalogEntry) -> str:
    """What the description of an entry ends with."""
    try:
        describe_entry(entry, ReadingSpec())
    except ScenemillError as error:
        return str(error)
    return "described"


# Addresses in every form.


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0", "localhost"),
        *("10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "198.18.0.1", "192.0.0.170"),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::1", "::", "fe80::1", "fd00::1", "fec0::1", "ff02::1", "2001:db8::1", "64:ff9b:1::1"),
        *("::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::"),
        "2001:0:0:0:0:0:80ff:fffe",  # Teredo of 127.0.0.1
    ],
)
def test_an_address_that_is_not_public_is_refused_in_every_form(host: str) -> None:
    with pytest.raises(ForbiddenHostError, match=r"not a public address; .* catalog\.hosts"):
        resolve_allowed(host, 80, ())


@pytest.mark.parametrize("text", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"])
def test_a_public_address_is_allowed_in_every_form(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    ("pattern", "host", "port", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1", 80, True),
        ("127.0.0.1:81", "127.0.0.1", 80, False),
        ("127.0.0.1:80", "2130706433", 80, True),
        ("127.0.0.0/8", "127.9.9.9", 80, True),
        ("127.0.0.0/8", "10.0.0.1", 80, False),
        ("127.0.0.0/8", "::ffff:127.0.0.1", 80, True),
        ("::1", "::1", 80, True),
        ("[::1]:80", "::1", 80, True),
        ("localhost", "LOCALHOST", 80, True),
        ("*.localhost", "localhost", 80, False),
        ("*.lan", "a.lan", 80, True),
        ("*.lan", "lan", 80, False),
        ("*.lan", "lan.evil.example", 80, False),
    ],
)
def test_the_hosts_of_the_settings_are_allowed_and_no_others(
    pattern: str, host: str, port: int, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    names = {"a.lan": "10.0.0.1", "lan": "10.0.0.1", "lan.evil.example": "10.0.0.1"}
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda name, *given, **more: resolve(names.get(name, name), *given, **more)
    )
    CatalogSpec(hosts=(pattern,))
    if allowed:
        assert resolve_allowed(host, port, (pattern,))
    else:
        with pytest.raises(ForbiddenHostError):
            resolve_allowed(host, port, (pattern,))


@pytest.mark.parametrize("pattern", ["http://host", "*", "*.*", "a b", "host/x", "10.0.0.0/33", ""])
def test_a_pattern_that_is_no_host_is_refused(pattern: str) -> None:
    with pytest.raises(SettingsError, match="hosts must hold host names"):
        CatalogSpec(hosts=(pattern,))


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("https://bob:pw@host/a.tif", "user name or password"),
        ("https://good.example@127.0.0.1/a.tif", "user name or password"),
        ("s3://127.0.0.1:80?x/a.tif", "not the name of a bucket"),
        ("s3://127.0.0.1:80#/a.tif", "not the name of a bucket"),
        ("s3://user@bucket/a.tif", "user name or password"),
        ("https:///a.tif", "not an address"),
        ("https://host/a\n.tif", "not an address"),
    ],
)
def test_an_address_that_hides_its_host_is_refused(address: str, problem: str) -> None:
    with pytest.raises(SceneError, match=problem) as raised:
        resolve_location(address)
    assert "pw@" not in str(raised.value)


def test_a_name_that_gets_a_private_address_later_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the own host of an address is allowed only if it is private when it is named."""
    answers = iter(["8.8.8.8", "127.0.0.1"])
    resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda _, *given, **more: resolve(next(answers), *given, **more))
    rules = HostRules().settled("http://rebind.example/a.tif")
    assert rules.hosts == ()
    with pytest.raises(ForbiddenHostError, match=r"rebind\.example \(127\.0\.0\.1\)"):
        resolve_allowed("rebind.example", 80, rules.hosts)


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, 1, 6, "", (ip, 80)) for ip in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ForbiddenHostError, match=r"10\.0\.0\.1"):
        resolve_allowed("both.example", 80, ())


# Documents.


def test_an_items_asset_on_an_inner_host_is_refused_and_the_other_items_run(
    api: StacApi, inner: Listener, make_scene: MakeScene, folder: Path, server: str
) -> None:
    (folder / "a.tif").write_bytes(make_scene().read_bytes())
    base = api.address.removesuffix("/v1")
    bad = [f"http://{inner.address}/x.tif", f"http://localhost:{inner.address.rpartition(':')[2]}/x.tif"]
    api.documents = {"/items.json": items(*(item(f"i{k}", href) for k, href in enumerate([*bad, f"{server}/a.tif"])))}
    spec = CatalogSpec(hosts=(server.removeprefix("http://"),))
    outcomes = [outcome(entry) for entry in read_catalog([f"{base}/items.json"], spec)]
    assert [text.rpartition("allow it")[2] for text in outcomes] == [
        " with catalog.hosts, e.g. [127.0.0.1]",
        " with catalog.hosts, e.g. [localhost]",
        "described",
    ]
    refused = [outcome(entry) for entry in read_catalog([f"{base}/items.json"])]
    assert "not a public address" in refused[2]


@pytest.mark.parametrize("rel", ["item", "child", "items", "next"])
def test_a_remote_documents_links_to_an_inner_host_are_refused(api: StacApi, inner: Listener, rel: str) -> None:
    links = [{"rel": rel, "href": f"http://{inner.address}/{rel}.json"}]
    catalog = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "c", "links": links}
    api.documents = {"/c.json": items(links=links) if rel == "next" else catalog}
    (entry,) = read_catalog([f"{api.address.removesuffix('/v1')}/c.json"])
    assert "not a public address" in outcome(entry)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_next_page_of_a_search_on_an_inner_host_is_refused(api: StacApi, inner: Listener, method: str) -> None:
    link = {"rel": "next", "href": f"http://{inner.address}/search", "method": method, "headers": {"Metadata": "true"}}
    api.items = [item("first", "https://host.example/a.tif")]
    search = api.search
    api.search = lambda *given: {**search(*given), "links": [link]}  # type: ignore[method-assign]
    first, rest = read_catalog([f"stac+{api.address}?collections=a"])
    assert (first.id, first.refused) == ("first", None)
    assert "not a public address" in str(rest.refused)


@pytest.mark.parametrize("method", ["DELETE", "PUT"])
def test_a_search_sends_no_other_methods_than_get_and_post(api: StacApi, method: str) -> None:
    api.items = [item("first", "https://host.example/a.tif")]
    search = api.search
    link = {"rel": "next", "href": f"{api.address}/search", "method": method}
    api.search = lambda *given: {**search(*given), "links": [link]}  # type: ignore[method-assign]
    _, rest = read_catalog([f"stac+{api.address}?collections=a"])
    assert f"asks for the method {method}" in str(rest.refused)
    assert {each for each, _, _ in api.requests} <= {"GET", "POST"}


def test_a_search_address_that_is_a_path_opens_no_local_file(api: StacApi, tmp_path: Path) -> None:
    (tmp_path / "page.json").write_text(json.dumps(items(item("local", "https://host.example/a.tif"))))
    landing = api.landing()
    landing["links"][1:] = [{"rel": "search", "href": f"file://{tmp_path}/page.json", "type": "application/geo+json"}]
    api.documents["/landing.json"] = landing
    entries = [*read_catalog([f"stac+{api.address.removesuffix('/v1')}/landing.json?collections=a"])]
    assert [entry.refused is not None for entry in entries] == [True]


def test_what_the_operators_own_list_and_source_name_is_free(
    make_scene: MakeScene, folder: Path, server: str, tmp_path: Path
) -> None:
    """A local list is the operator's document; below a remote source its own host is free."""
    (folder / "a.tif").write_bytes(make_scene().read_bytes())
    (folder / "items.json").write_text(json.dumps(items(item("a", "a.tif"))))
    (tmp_path / "list.csv").write_text(f"path\n{server}/a.tif\n")
    (tmp_path / "item.json").write_text(json.dumps(item("a", f"{server}/a.tif")))
    for source in (f"{server}/a.tif", tmp_path / "list.csv", tmp_path / "item.json", f"{server}/items.json"):
        assert [outcome(entry) for entry in read_catalog([source])] == ["described"]


def test_a_local_catalogs_remote_document_is_not_the_operators(api: StacApi, inner: Listener, tmp_path: Path) -> None:
    link = {"rel": "item", "href": f"{api.address.removesuffix('/v1')}/i.json"}
    catalog = {"type": "Catalog", "stac_version": "1.0.0", "id": "c", "description": "c", "links": [link]}
    (tmp_path / "c.json").write_text(json.dumps(catalog))
    api.documents = {"/i.json": item("i", f"http://{inner.address}/x.tif")}
    (entry,) = read_catalog([tmp_path / "c.json"])
    assert "not a public address" in outcome(entry)


@pytest.mark.parametrize("href", ["//127.0.0.1/x.tif", "//other/x.tif", "//vsimem/x.tif", "///x.tif"])
@pytest.mark.parametrize("source", ["https://host.example/c.json", "s3://bucket/c.json"])
def test_a_relative_link_never_leaves_its_server_or_bucket(href: str, source: str) -> None:
    if href.startswith("///"):
        assert resolve_href(href, document_location(source)).startswith(source.removesuffix("c.json"))
    else:
        with pytest.raises(SceneError, match="leads to another server"):
            resolve_href(href, document_location(source))


def test_the_rules_of_a_scene_travel_to_other_processes(make_scene: MakeScene, folder: Path, server: str) -> None:
    (folder / "a.tif").write_bytes(make_scene().read_bytes())
    scene = pickle.loads(pickle.dumps(describe_scene(f"{server}/a.tif")))
    assert scene.location.rules == HostRules((server.removeprefix("http://"),), is_named=False)


# Redirects.


def test_our_own_requests_follow_no_redirect_to_an_inner_host(inner: Listener, folder: Path, server: str) -> None:
    redirects = {"any:/a.tif": f"http://{inner.address}/a.tif", "any:/b.tif": f"ftp://{inner.address}/b.tif"}
    (folder / "redirects.json").write_text(json.dumps(redirects))
    with pytest.raises(SceneError, match=r"a\.tif: a document or a redirect leads to 127\.0\.0\.1"):
        describe_scene(f"{server}/a.tif")
    with pytest.raises(SceneError, match="only http and https addresses are followed"):
        describe_scene(f"{server}/b.tif")
    (folder / "redirects.json").write_text(json.dumps({"any:/c.json": f"http://{inner.address}/c.json"}))
    with pytest.raises(SettingsError, match="a document or a redirect leads to"):
        read_catalog([f"{server}/c.json"])


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_gdal_follows_no_redirect_to_an_inner_host(
    make_scene: MakeScene, inner: Listener, folder: Path, server: str, scheme: str
) -> None:
    """The server redirects only GDAL, and only after the first bytes; the scene is read by ranges."""
    path = make_scene(np.zeros((1, 600, 600), np.uint8), tiled=64)
    (folder / "a.tif").write_bytes(path.read_bytes())
    scene = describe_scene(f"{server}/a.tif")
    (folder / "redirects.json").write_text(json.dumps({"/a.tif": f"{scheme}://{inner.address}/a.tif"}))
    with pytest.raises(SceneError, match="redirects to a host that is not public"), SceneReader(scene) as reader:
        reader.read(scene.grid.window)
    with pytest.raises(SceneError, match="redirects to a host that is not public"):
        describe_scene(f"{server}/a.tif")
    assert any("HEAD /a.tif" in line for line in requests_of(folder)), "GDAL did not ask"


def test_gdal_follows_a_redirect_to_an_allowed_host(
    make_scene: MakeScene, folder: Path, server: str, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "a.tif").write_bytes(make_scene().read_bytes())
    with serving(tmp_path / "target") as target:
        (folder / "redirects.json").write_text(json.dumps({"any:/a.tif": f"{target}/a.tif"}))
        (entry,) = read_catalog([f"{server}/a.tif"], CatalogSpec(hosts=("127.0.0.0/8",)))
        assert outcome(entry) == "described"
        (entry,) = read_catalog([f"{server}/a.tif"])
        assert "not a public address" in outcome(entry)


SCRIPT = """
import sys
import rasterio
from pipeline.storage.gdal import gdal_env
from pipeline.storage.http.hosts import HostRules
from pipeline.storage.location import resolve_location

location = resolve_location(sys.argv[1], HostRules((sys.argv[2],), is_named=False))
try:
    with gdal_env(location), rasterio.open(location.gdal_path):
        print("opened")
except rasterio.errors.RasterioIOError as error:
    print(error)
"""


def test_the_variable_no_proxy_does_not_let_gdal_past_the_policy(inner: Listener, folder: Path, server: str) -> None:
    (folder / "redirects.json").write_text(json.dumps({"/a.tif": f"http://{inner.address}/a.tif"}))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, f"{server}/a.tif", server.removeprefix("http://")],
        env={**os.environ, "NO_PROXY": "127.0.0.1,localhost", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "451" in done.stdout, done


class Endless(BaseHTTPRequestHandler):
    """Redirects to itself for ever, with a body that never ends."""

    def do_GET(self) -> None:
        self.send_response(302)
        self.send_header("Location", "/again")
        self.end_headers()
        self.write_until_closed(bytes(2**16))

    def write_until_closed(self, part: bytes) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(part)
                self.server.pace.wait(0.01)  # type: ignore[attr-defined]

    def log_message(self, format: str, *args: object) -> None:
        pass


class TrickledHeaders(Endless):
    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        self.write_until_closed(b"X-More: y\r\n")


class TrickledBody(Endless):
    def do_GET(self) -> None:
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n")
        self.write_until_closed(b"{")


@contextlib.contextmanager
def answering(handler: type[Endless]) -> Iterator[str]:
    """Host and port of a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.pace = threading.Event()  # type: ignore[attr-defined]
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def test_redirects_end() -> None:
    with answering(Endless) as host, pytest.raises(SceneError, match="redirects more than 10 times"):
        describe_scene(f"http://{host}/a.tif")


@pytest.mark.parametrize("handler", [TrickledHeaders, TrickledBody])
def test_a_response_that_trickles_in_meets_a_bound_of_time(
    handler: type[Endless], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_client, "MAX_HEADERS_S", 0.2)
    monkeypatch.setattr(http_client, "MAX_BODY_S", 0.2)
    with (
        answering(handler) as host,
        contextlib.closing(WebClient()) as client,
        pytest.raises(TransientError, match=r"within 0\.2 s"),
        client.send(HttpRequest(address=f"http://{host}/", hosts=(host,))) as response,
    ):
        b"".join(read_body(response))


# The proxy of GDAL's requests.


def ask(head: str) -> str:
    """The status that the proxy answers to a request."""
    with socket.create_connection(("127.0.0.1", _proxy(os.getpid()).port), timeout=20) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        return connection.makefile("rb").readline().decode().strip()


def credentials(hosts: tuple[str, ...] = ()) -> str:
    text = gdal_proxy_options("http://host.example/", hosts)["GDAL_HTTP_PROXYUSERPWD"]
    return f"Proxy-Authorization: Basic {b64encode(text.encode()).decode()}"


def test_the_proxy_serves_only_the_process_that_started_it(inner: Listener) -> None:
    for header in (
        "Host: x",
        "Proxy-Authorization: Basic eDp5",
        "Proxy-Authorization: Basic !",
        "Proxy-Authorization:",
    ):
        assert "407" in ask(f"GET http://{inner.address}/ HTTP/1.1\r\n{header}")
        assert "407" in ask(f"CONNECT {inner.address} HTTP/1.1\r\n{header}")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("GET http://{inner}/ HTTP/1.1", "451"),
        ("CONNECT {inner} HTTP/1.1", "451"),
        ("GET ftp://{inner}/ HTTP/1.1", "451"),
        ("GET file:///etc/passwd HTTP/1.1", "451"),
        ("POST http://{inner}/ HTTP/1.1", "451"),
        ("GET /etc/passwd HTTP/1.1", "451"),
        ("CONNECT {inner}:x HTTP/1.1", "400"),
        ("nonsense", "400"),
    ],
)
def test_the_proxy_refuses_what_is_no_request_for_an_allowed_host(inner: Listener, line: str, status: str) -> None:
    assert status in ask(f"{line.format(inner=inner.address)}\r\n{credentials()}")


def test_the_proxy_bounds_the_headers_of_a_request() -> None:
    assert "431" in ask("GET http://host.example/ HTTP/1.1\r\nX: " + "y" * 400_000)


def test_policies_share_no_connection_of_the_proxy() -> None:
    """Libcurl reuses a tunnel of one proxy host whatever the credentials are."""
    one, other = (gdal_proxy_options("http://host.example/", hosts)["GDAL_HTTP_PROXY"] for hosts in ((), ("a.lan",)))
    assert one != other


def test_the_proxy_ends_with_its_process(folder: Path, server: str) -> None:
    script = "import os\nfrom pipeline.storage.http.relay import _proxy\nprint(_proxy(os.getpid()).port)\nos._exit(1)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # The output ends when the last process that holds it does.
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", int(done.stdout)), timeout=5):
        pass


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "GDAL_HTTP_PROXY", "GDAL_HTTPS_PROXY"])
def test_a_proxy_of_the_operator_is_used_as_it_is(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, "http://proxy.example:3128")
    options = gdal_proxy_options("https://host.example/a.tif", ())
    assert options == dict.fromkeys(("GDAL_HTTP_PROXY", "GDAL_HTTPS_PROXY"), "http://proxy.example:3128")
    if not variable.startswith("GDAL"):
        monkeypatch.setenv("NO_PROXY", "host.example")
        assert "localhost" in gdal_proxy_options("https://host.example/a.tif", ())["GDAL_HTTP_PROXY"]


class NarrowProxy(ThreadingHTTPServer):
    """A proxy of the operator, for requests without TLS to one server; it refuses all others."""

    class Handler(BaseHTTPRequestHandler):
        """Passes a request on without its body."""

        def do_HEAD(self) -> None:
            assert isinstance(self.server, NarrowProxy)
            parts = urlsplit(self.path)
            if parts.netloc != self.server.target:
                self.send_error(403)
                return
            with contextlib.closing(http.client.HTTPConnection(parts.netloc)) as connection:
                connection.request("HEAD", parts.path, headers={"User-Agent": self.headers["User-Agent"]})
                answer = connection.getresponse()
            self.send_response(answer.status)
            self.send_header("Location", answer.headers["Location"])
            self.end_headers()

        do_GET = do_CONNECT = do_HEAD  # noqa: N815 -- names of http.server

        def log_message(self, *_: object) -> None: ...

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), self.Handler)
        self.target = target
        self.address = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


@pytest.mark.parametrize(
    ("variable", "scheme"),
    [
        *(("HTTP_PROXY", "http"), ("HTTP_PROXY", "https"), ("http_proxy", "https"), ("http_proxy", "ftp")),
        *(("GDAL_HTTPS_PROXY", "http"), ("https_proxy", "http"), ("HTTPS_PROXY", "ftp")),
    ],
)
def test_gdal_follows_no_redirect_past_a_proxy_of_the_operator(
    variable: str, scheme: str, inner: Listener, folder: Path, server: str
) -> None:
    """Libcurl has a proxy for each scheme, does not know HTTP_PROXY in upper case, and follows redirects past it."""
    (folder / "redirects.json").write_text(json.dumps({"/a.tif": f"{scheme}://{inner.address}/a.tif"}))
    plain = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with NarrowProxy(server.removeprefix("http://")) as proxy:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, f"{server}/a.tif", server.removeprefix("http://")],
            env={**plain, variable: proxy.address, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert "opened" not in done.stdout
    assert requests_of(folder), "GDAL did not ask"


def test_names_are_checked_before_a_proxy_of_the_operator_gets_them(
    inner: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{inner.address}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setattr("pipeline.storage.remote.REQUEST_RETRIES", RetryPolicy(()))
    rules = HostRules(is_named=False)
    with pytest.raises(ForbiddenHostError):
        remote_version(resolve_location("http://169.254.169.254/latest/meta-data/a.tif", rules))


# The webhook.


def test_a_webhook_is_an_http_url() -> None:
    for address in ("file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "/etc/passwd"):
        with pytest.raises(ValueError, match="must be an http or https URL"):
            post(address, {})


def test_a_webhook_follows_no_redirect(inner: Listener) -> None:
    received: list[dict[str, Any]] = []
    target = f"http://{inner.address}/x"
    with (
        webhook(received=received, status=302, location=target) as address,
        pytest.raises(urllib.error.HTTPError, match="302"),
    ):
        post(address, {"text": "done"})
    assert received == [{"text": "done"}]
