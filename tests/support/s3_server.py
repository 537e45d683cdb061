"""A local S3 server (moto) that can be told to fail, in a process of its own: GDAL holds Python's lock while it asks.

`python s3_server.py FOLDER` serves on a free port of the loopback and prints the port. While FOLDER holds a file named
`faults`, each of its lines `METHOD PATTERN STATUS COUNT` lets the first COUNT such requests whose path and query match
the regular expression fail with a status; 0 drops the connection, `kill:PID` kills that process, too. Requests are
appended to `requests.log`, with range, payer and signer.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

FOLDER = Path(sys.argv[1] if __name__ == "__main__" else ".")


class Faulty:
    """A WSGI application before another."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self.app, self.used, self.turn = app, Counter[str](), threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ["REQUEST_METHOD"], f"{environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        with self.turn:
            with (FOLDER / "requests.log").open("a") as log:
                log.write(f"{method} {path} {environ.get('HTTP_RANGE', '-')} {payer(environ)} {signer(environ)}\n")
            status = self.requested_failure(method, path)
        if status is None:
            return self.app(environ, start)
        if status.startswith("kill:"):
            os.kill(int(status.removeprefix("kill:")), signal.SIGKILL)
        if not status.isdigit() or status == "0":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionResetError
        start(f"{status} Fault", [("Content-Type", "application/xml")])
        return [b"<Error><Code>InternalError</Code><Message>as ordered</Message></Error>"]

    def requested_failure(self, method: str, path: str) -> str | None:
        try:
            orders = (FOLDER / "faults").read_text().splitlines()
        except FileNotFoundError:
            self.used.clear()
            return None
        for order in orders:
            wanted, pattern, status, count = order.split()
            if wanted in (method, "ANY") and re.search(pattern, path) and self.used[order] < int(count):
                self.used[order] += 1
                return status
        return None


def payer(environ: dict[str, Any]) -> str:
    """Who pays for a request."""
    return str(environ.get("HTTP_X_AMZ_REQUEST_PAYER", "owner"))


def signer(environ: dict[str, Any]) -> str:
    """Whose key signed it."""
    found = re.search("Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    return found[1] if found else "nobody"


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *args: object) -> None:
        pass


if __name__ == "__main__":
    application = Faulty(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=Quiet)
    print(server.server_port, flush=True)
    server.serve_forever()
