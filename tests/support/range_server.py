"""A file server with range requests, in a process of its own: GDAL holds Python's lock while it looks for sidecars.

`python range_server.py FOLDER` serves the folder on a free port of the loopback and prints the port. While the folder
holds a file named `failing`, every connection is dropped. Requests are appended to `requests.log`.
"""

from __future__ import annotations

import http.server
import re
import sys
from pathlib import Path
from urllib.parse import unquote

FOLDER = Path(sys.argv[1] if __name__ == "__main__" else ".")


class RangeHandler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        with (FOLDER / "requests.log").open("a") as log:
            log.write(f"{self.command} {self.path} {self.headers.get('Range', '')}\n")
        path = FOLDER / unquote(self.path).lstrip("/")
        if (FOLDER / "failing").exists():
            self.close_connection = True
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

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), RangeHandler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
