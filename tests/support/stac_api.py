"""A small STAC API on the loopback: a landing page, a search by POST or GET in pages, and static documents.

The search knows collections, bbox, datetime, limit and the query extension, and can be made to fail.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlsplit

CONFORMS = "https://api.stacspec.org/v1.0.0/"
JSON, GEOJSON = "application/json", "application/geo+json"


@dataclass(kw_only=True)
class StacApi:
    """What the server serves, and what it was asked."""

    items: Sequence[Mapping[str, Any]] = ()
    """All items of the search, in its order."""
    documents: dict[str, Mapping[str, Any] | bytes] = field(default_factory=dict)
    """Path -> a document of its own, e.g. `/static/catalog.json`."""
    methods: tuple[str, ...] = ("POST", "GET")
    """Which the landing page tells of."""
    extensions: tuple[str, ...] = ("sort", "query")
    """Extensions of the search that it conforms to."""
    failing: list[int] = field(default_factory=list)
    """Status codes of the next answers, whatever is asked; used up one by one."""
    requests: list[tuple[str, str, Mapping[str, Any]]] = field(default_factory=list)
    """Method, path and parameters of each request."""
    address: str = ""
    """Of the landing page."""

    def landing(self) -> dict[str, Any]:
        """The landing page."""
        search = [
            {"rel": "search", "href": f"{self.address}/search", "type": GEOJSON, "method": method}
            for method in self.methods
        ]
        return {
            "type": "Catalog",
            "stac_version": "1.0.0",
            "id": "api",
            "description": "test",
            "conformsTo": [
                f"{CONFORMS}core",
                f"{CONFORMS}item-search",
                *(f"{CONFORMS}item-search#{name}" for name in self.extensions),
            ],
            "links": [{"rel": "self", "href": self.address, "type": JSON}, *search],
        }

    def search(self, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """A page of a search."""
        found = [item for item in self.items if _fits(item, given)]
        start, limit = int(given.get("token", 0)), int(given.get("limit", 10))
        page: dict[str, Any] = {"type": "FeatureCollection", "features": found[start : start + limit], "links": []}
        if start + limit < len(found):
            further: dict[str, Any] = {"rel": "next", "href": f"{self.address}/search", "method": method}
            token = str(start + limit)
            if method == "POST":
                further |= {"body": {**given, "token": token}}
            else:
                query = "&".join(f"{key}={value}" for key, value in {**given, "token": token}.items())
                further["href"] += f"?{query}"
            page["links"].append(further)
        return page


def _fits(item: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    collections = given.get("collections", [])
    if item["collection"] not in (collections.split(",") if isinstance(collections, str) else collections):
        return False
    first, last = given.get("datetime", "../..").split("/")
    moment = item["properties"]["datetime"]
    if not ((first == ".." or first <= moment) and (last == ".." or moment <= last)):
        return False
    max_cloud = given.get("query", {}).get("eo:cloud_cover", {}).get("lte", 100)
    return bool(item["properties"].get("eo:cloud_cover", 0) <= max_cloud)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, api: StacApi, *given: Any) -> None:
        self.api = api
        super().__init__(*given)

    def do_GET(self) -> None:
        self.answer(dict(parse_qsl(urlsplit(self.path).query)))

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, given: Mapping[str, Any]) -> None:
        path = urlsplit(self.path).path
        self.api.requests.append((self.command, path, given))
        if self.api.failing:
            self.send(self.api.failing.pop(0), b"")
        elif path == "/v1":
            self.send(200, json.dumps(self.api.landing()).encode())
        elif path == "/v1/search":
            self.send(200, json.dumps(self.api.search(self.command, given)).encode())
        elif path in self.api.documents:
            content = self.api.documents[path]
            self.send(200, content if isinstance(content, bytes) else json.dumps(content).encode())
        else:
            self.send(404, b"")

    def send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(api: StacApi) -> Iterator[StacApi]:
    """The API, served on a free port of the loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, api)) as server:
        server.daemon_threads = True
        api.address = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()
