"""What GDAL's requests cost through the proxy that applies the host policy, against a direct connection.

    python -m benchmarks.trials.proxy                    a minute on 2 cores
    python -m benchmarks.trials.proxy --side 8192 --repeats 12

A scene without compression is read whole from a server on loopback, in turn through the proxy and without it.
Megabytes per second, the median and the best of the runs.
"""

from __future__ import annotations

import argparse
import http.server
import multiprocessing
import re
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import numpy as np
from affine import Affine
from rasterio.windows import Window

from pipeline.storage import create_raster, gdal_env, open_raster, resolve_location

WAYS = ("direct", "proxy")
ROWS = 512
"""Rows of a read."""


def main() -> None:
    """Measure both ways and print them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=4096, help="side of the scene of three bands of uint16, px")
    parser.add_argument("--repeats", type=int, default=8)
    arguments = parser.parse_args()
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scene.tif")
        _write(path, arguments.side)
        with _served(path) as port:
            for run in range(arguments.repeats):
                for way in WAYS[:: 1 if run % 2 else -1]:
                    speeds[way].append(_read(f"http://127.0.0.1:{port}/scene.tif", way))
    for way, each in speeds.items():
        print(f"{way:8} median {statistics.median(each):6.0f} MB/s, best {max(each):6.0f} MB/s")


def _write(path: Path, side: int) -> None:
    profile: dict[str, object] = {
        "driver": "GTiff",
        "width": side,
        "height": side,
        "count": 3,
        "dtype": "uint16",
        "crs": "EPSG:32633",
    }
    profile["transform"] = Affine(1, 0, 500000, 0, -1, 5000000)
    with create_raster(path, **profile, tiled=True, blockxsize=512, blockysize=512, interleave="pixel") as dataset:
        dataset.write(np.random.default_rng(0).integers(0, 2**16, (3, side, side), np.uint16))


def _read(address: str, way: str) -> float:
    """Megabytes per second of a read of all pixels, with a fresh connection."""
    location = resolve_location(address)
    direct = mock.patch("pipeline.storage.gdal.gdal_proxy_options", return_value={})
    with direct if way == "direct" else nullcontext(), gdal_env(location):
        start = time.perf_counter()
        with open_raster(location.gdal_path) as dataset:
            height, width = dataset.shape
            size = sum(
                dataset.read(window=Window(0, top, width, min(ROWS, height - top))).nbytes
                for top in range(0, height, ROWS)
            )
    return size / (time.perf_counter() - start) / 1e6


@contextmanager
def _served(path: Path) -> Iterator[int]:
    """The port of a server of one file, in a process of its own: GDAL holds Python's lock while it opens."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(path, theirs), daemon=True)
    server.start()
    try:
        yield ours.recv()
    finally:
        server.terminate()
        server.join()


def _serve(path: Path, port: Connection) -> None:
    content = memoryview(path.read_bytes())

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            self.wfile.write(self._answer())

        def _answer(self) -> memoryview:
            """Send the headers; returns the body."""
            span = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            start, stop = (int(span[1]), int(span[2] or len(content) - 1) + 1) if span else (0, len(content))
            body = content[start:stop]
            self.send_response(206 if span else 200)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(body)))
            if span:
                self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{len(content)}")
            self.end_headers()
            return body

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        port.send(server.server_port)
        server.serve_forever()


if __name__ == "__main__":
    main()
