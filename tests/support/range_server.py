"""A file server with range requests, in a process of its own: GDAL holds Python's lock while it looks for sidecars.

`python range_server.py FOLDER` serves the folder on a free port of the loopback and prints the port. While the folder
holds a file named `failing`, every connection is dropped. `redirects.json`, an object of path -> address, redirects
GDAL's requests, and ours too for the paths in it that begin with `any:`; a number in place of an address is a status to
answer. Queries count for nothing. Requests are appended to `requests.log`.
"""

from __future__ import annotations

import http.server
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

FOLDER = Path(sys.argv[1] if __name__ == "__main__" else ".")


class RangeHandler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with (FOLDER / "requests.log").open("a") as log:
            log.write(f"{self.command} {self.path} {self.headers.get('Range', '')}\n")
        path = FOLDER / unquote(self.path.partition("?")[0]).lstrip("/")
        if (FOLDER / "failing").exists():
            self.close_connection = True
            return
        target = self.redirect_target()
        if target is not None:
            self.send_response(target if isinstance(target, int) else 302)
            self.send_header("Location", str(target))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        span = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(span[1]), int(span[2] or len(content) - 1) + 1) if span else (0, len(content))
        part = content[start:stop]
        self.send_response(206 if span else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    def redirect_target(self) -> str | int | None:
        redirects = FOLDER / "redirects.json"
        if not redirects.exists():
            return None
        targets: dict[str, str | int] = json.loads(redirects.read_text())
        is_gdal = self.headers.get("User-Agent", "").startswith("GDAL")
        path = self.path.partition("?")[0]
        return targets.get(f"any:{path}") or (targets.get(path) if is_gdal else None)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """The address of a folder on a file server, in a process of its own."""
    command = [sys.executable, __file__, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.terminate()


def requests_of(folder: Path) -> list[str]:
    """The requests that the server of a folder got."""
    log = folder / "requests.log"
    return log.read_text().splitlines() if log.exists() else []


if __name__ == "__main__":
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
