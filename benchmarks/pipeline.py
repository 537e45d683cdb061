"""File to mosaic with a pointwise predictor: pixels per second and peak memory as scenes grow.

    python -m benchmarks.pipeline                  5k, 10k, 20k and 40k px squares; 6 minutes, 8 GB of disk
    python -m benchmarks.pipeline --sides 2000 --json out.json

Each scene has 4 bands of uint16, ZSTD, 512 px blocks, and repeats one 2048 px pattern of soft blobs, so
it compresses about fourfold. The predictor looks at single pixels: what is measured is everything but the network.
Each side runs in its own process, whose peak resident memory (VmHWM) is reported beside that of a process
that has imported the same libraries and loaded nothing. `decode` is the same bytes read by rasterio alone,
by the same threads, into nothing: the bound.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

SIDES = (5_000, 10_000, 20_000, 40_000)
PATTERN = 2048


def main() -> None:
    """Run every side in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="scene sides, px")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="where scenes and results go for the time being")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, arguments.tile, arguments.folder)))
        return
    idle = run_apart(["--one", "0"])
    rows = []
    print(f"libraries alone: {idle['peak_mib']:.0f} MiB; {os.cpu_count()} CPUs")
    print(f"{'side px':>8} {'Mpx':>7} {'decode':>8} {'to mosaic':>10} {'of decode':>9} {'polygons':>9} {'peak MiB':>9}")
    for side in arguments.sides:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            write_scene(Path(folder) / "scene.tif", side)
            row = run_apart(["--one", str(side), "--tile", str(arguments.tile), "--folder", folder])
        rows.append(row)
        print(
            f"{side:8} {row['mpx']:7.0f} {row['decode_mpx_s']:8.1f} {row['mosaic_mpx_s']:10.1f} "
            f"{row['of_decode']:9.0%} {row['polygons_s']:7.1f} s {row['peak_mib']:9.0f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"idle_mib": idle["peak_mib"], "rows": rows}, indent=2) + "\n")


def run_apart(options: list[str]) -> dict[str, Any]:
    """This script in a process of its own; returns what it measured."""
    command = [sys.executable, "-m", "benchmarks.pipeline", *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(side: int, tile: int, folder: Path | None) -> dict[str, float]:
    """Segment the scene in `folder`; side 0 only imports."""
    import torch

    from pipeline import ModelCard, SegmentSpec, segment_scene
    from pipeline.tiling import TilingSpec

    if not side or folder is None:
        return {"peak_mib": peak_mib()}

    class Pointwise(torch.nn.Module):
        """Mean of the bands, as a probability."""

        def forward(self, tiles: torch.Tensor) -> torch.Tensor:
            return tiles.mean(dim=1, keepdim=True).div_(10_000).clamp_(0, 1)

    card = ModelCard(bands=("red", "green", "blue", "nir"), classes=("blob",), threshold=0.6)
    spec = SegmentSpec(tiling=TilingSpec(tile_size=tile))
    start = time.perf_counter()
    report = segment_scene(folder / "scene.tif", folder / "out", predictor=Pointwise(), card=card, spec=spec)
    total = time.perf_counter() - start
    peak = peak_mib()
    mosaic_s = report.seconds["infer"] + report.seconds["mosaic"]
    decode_s = decode_alone(folder / "scene.tif")
    return {
        "side": side,
        "mpx": report.pixels / 1e6,
        "infer_s": report.seconds["infer"],
        "cog_s": report.seconds["mosaic"],
        "polygons_s": report.seconds["polygons"],
        "polygons": report.polygons,
        "total_s": total,
        "decode_mpx_s": report.pixels / decode_s / 1e6,
        "mosaic_mpx_s": report.pixels / mosaic_s / 1e6,
        "of_decode": decode_s / mosaic_s,
        "peak_mib": peak,
    }


def decode_alone(path: Path) -> float:
    """Seconds to decode every block once with one handle per thread and no further work."""
    with rasterio.open(path) as dataset:
        height, width = dataset.shape
    rows = range(0, height, 512)
    start = time.perf_counter()

    def read(mine: range) -> None:
        with rasterio.open(path) as dataset:
            for row in mine:
                for col in range(0, width, 1024):
                    dataset.read(window=Window(col, row, min(1024, width - col), min(512, height - row)))

    threads = min(os.cpu_count() or 1, 12)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, [rows[k::threads] for k in range(threads)]))
    return time.perf_counter() - start


def peak_mib() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_scene(path: Path, side: int) -> None:
    """A square scene that repeats one pattern."""
    pattern = soft_blobs(PATTERN)
    profile = {
        "driver": "GTiff",
        "height": side,
        "width": side,
        "count": 4,
        "dtype": "uint16",
        "crs": "EPSG:32633",
        "transform": rasterio.Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
        "nodata": 0,
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
        "compress": "zstd",
        "predictor": 2,
        "zstd_level": 1,
        "bigtiff": "if_safer",
        "num_threads": "all_cpus",
    }
    with rasterio.open(path, "w", **profile) as dataset:
        for top in range(0, side, PATTERN):
            for left in range(0, side, PATTERN):
                height, width = min(PATTERN, side - top), min(PATTERN, side - left)
                dataset.write(pattern[:, :height, :width], window=Window(left, top, width, height))
        for number, name in enumerate(("red", "green", "blue", "nir"), start=1):
            dataset.set_band_description(number, name)


def soft_blobs(side: int) -> NDArray[np.uint16]:
    """`(4, side, side)` in 1..10000: waves of many lengths with a little noise, periodic in `side`."""
    generator = np.random.default_rng(0)
    axis = np.arange(side) * (2 * np.pi / side)
    field = np.zeros((side, side), np.float32)
    for _ in range(24):
        down, across = generator.integers(1, 24, 2)
        phase = generator.random(2) * 2 * np.pi
        field += np.outer(np.sin(axis * down + phase[0]), np.sin(axis * across + phase[1])).astype(np.float32)
    level = 5_000 + 1_200 * field + generator.normal(0, 20, (side, side))
    bands = [level * gain for gain in (0.9, 1.0, 0.95, 1.1)]
    return np.clip(np.stack(bands), 1, 10_000).astype(np.uint16)


if __name__ == "__main__":
    main()
