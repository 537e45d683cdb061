"""File to mosaic with a pointwise predictor: its time against three bounds, and memory as scenes grow.

    python -m benchmarks.pipeline                  5k, 10k, 20k and 40k px squares; 5 minutes, 8 GB of disk
    python -m benchmarks.pipeline --sides 100000   100,000 px square; 5 minutes, 8 GB of disk
    python -m benchmarks.pipeline --toy --json out.json

Each scene has 4 bands of uint16, ZSTD, 512 px blocks, and repeats one 2048 px pattern of soft blobs, so
it compresses about fourfold. From 50,000 px on only a diagonal band 10,240 px wide holds data, and the rest
is sparse: nodata. The predictor is pointwise: everything but the network is measured.

Three bounds are measured in the same run, over the same pixels, with as many threads as CPUs:

    decode    every block of the scene read into nothing, by rasterio alone
    + encode  then the pixels of both results, from memory, written as tiled GeoTIFFs without overviews
    + COGs    then the same, written by GDAL's COG driver from memory: the files that the pipeline writes

The last is the minimum with GDAL that writes the same files and computes nothing.
Each side runs in a subprocess, whose peak resident memory (VmHWM) is reported, polygons and preview
included, next to that of a scene of 64 px, which shows the memory of libraries and compiled code. Small sides run three
times, bounds and all, and the best time of each counts.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
import torch
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from rasterio.windows import Window

from pipeline import ModelCard, SegmentSpec, segment_scene
from pipeline.concurrency import usable_cpus
from pipeline.inference import TilingSpec
from pipeline.results import SceneReport

SIDES = (5_000, 10_000, 20_000, 40_000)
TOY_SIDES = (300, 700)
PATTERN = 2048
MIN_SIDE = 64
"""Side of the scene that shows the minimal memory of a run, px."""
SPARSE_FROM = 50_000
"""Sides from which scenes are sparse, px."""
MOST_IN_MEMORY = 20_000
"""Sides up to which the bounds that hold all pixels in memory are measured, px."""
REPEATED_UP_TO = 10_000
"""Sides up to which everything runs three times, px."""
COLUMNS = (
    ("side px", "side", "{:8,}"),
    ("Mpx", "mpx", "{:8,.0f}"),
    ("decode s", "decode_s", "{:9.2f}"),
    ("+ encode s", "encode_s", "{:10.2f}"),
    ("+ COGs s", "cogs_s", "{:9.2f}"),
    ("mosaic s", "mosaic_s", "{:9.2f}"),
    ("Mpx/s", "mosaic_mpx_s", "{:7.1f}"),
    ("of COGs", "of_cogs", "{:8.0%}"),
    ("of encode", "of_encode", "{:9.0%}"),
    ("polygons", "polygons", "{:9,}"),
    ("polygons s", "polygons_s", "{:10.1f}"),
    ("peak MiB", "peak_mib", "{:8,.0f}"),
)
"""Head, key and form of each column."""
BOTH_COPIES = {"compress": "zstd", "num_threads": "all_cpus", "bigtiff": "if_safer"}
"""What the bounds ask of GDAL, with and without overviews."""


class Pointwise(torch.nn.Module):
    """Mean of the bands, as a probability."""

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """`(N, bands, H, W)` -> `(N, 1, H, W)`."""
        return tiles.mean(dim=1, keepdim=True).div_(10_000).clamp_(0, 1)


def main() -> None:
    """Run every side in its own process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", help="scene sides, px")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--toy", action="store_true", help="sides of a few hundred px")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="where scenes and results go for the time being")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(measure(arguments.one, arguments.tile, arguments.folder)))
        return
    least = run_side(MIN_SIDE, arguments)
    print(f"a scene of {MIN_SIDE} px: {least['peak_mib']:.0f} MiB; {usable_cpus()} CPUs")
    print(" ".join(head.rjust(len(form.format(0))) for head, _, form in COLUMNS), flush=True)
    rows = []
    for side in arguments.sides or (TOY_SIDES if arguments.toy else SIDES):
        rows.append(run_side(side, arguments))
        print(" ".join(shown(rows[-1].get(key), form) for _, key, form in COLUMNS), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"least_mib": least["peak_mib"], "rows": rows}, indent=2) + "\n")


def shown(value: float | None, form: str) -> str:
    """A figure, or a dash of the same width."""
    return "-".rjust(len(form.format(0))) if value is None else form.format(value)


def run_side(side: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Write a scene and measure it in a subprocess."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_scene(Path(folder) / "scene.tif", side)
        options = ["--one", str(side), "--tile", str(arguments.tile), "--folder", folder]
        command = [sys.executable, "-m", "benchmarks.pipeline", *options]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(side: int, tile: int, folder: Path) -> dict[str, float]:
    """Segment the scene in `folder` and time the bounds."""
    scene, out = folder / "scene.tif", folder / "out"
    reports, decodes, encodes, cogs, peak = [], [], [], [], 0.0
    for _ in range(3 if side <= REPEATED_UP_TO else 1):
        shutil.rmtree(out, ignore_errors=True)
        reports.append(segment(scene, out, tile))
        peak = peak or peak_mib()
        decodes.append(timed(lambda: decode_alone(scene)))
        if side <= MOST_IN_MEMORY:
            rasters = [out / "scene" / name for name in ("probability.tif", "mask.tif")]
            encodes.append(sum(time_copy(path, write_tiled) for path in rasters))
            cogs.append(sum(time_copy(path, write_cog) for path in rasters))
    return figures(side, reports, decodes, encodes, cogs) | {"peak_mib": peak}


def segment(scene: Path, out: Path, tile: int) -> SceneReport:
    """The whole pipeline."""
    card = ModelCard(bands=("red", "green", "blue", "nir"), classes=("blob",), threshold=0.6)
    spec = SegmentSpec(tiling=TilingSpec(tile_size=tile))
    return segment_scene(scene, out, predictor=Pointwise(), card=card, spec=spec)


def figures(
    side: int,
    reports: Sequence[SceneReport],
    decodes: Sequence[float],
    encodes: Sequence[float],
    cogs: Sequence[float],
) -> dict[str, float]:
    """The best of every time, and how they compare."""
    report = min(reports, key=mosaic_seconds)
    mosaic_s, decode_s = mosaic_seconds(report), min(decodes)
    row = {
        "side": side,
        "mpx": report.statistics.pixels / 1e6,
        "valid_mpx": report.statistics.valid_pixels / 1e6,
        "decode_s": decode_s,
        "infer_s": report.statistics.seconds["infer"],
        "cog_s": report.statistics.seconds["mosaic"],
        "mosaic_s": mosaic_s,
        "mosaic_mpx_s": report.statistics.pixels / mosaic_s / 1e6,
        "of_decode": decode_s / mosaic_s,
        "polygons": report.polygons,
        "polygons_s": report.statistics.seconds["polygons"],
        "preview_s": report.statistics.seconds["preview"],
    }
    for name, bound in (("encode", encodes), ("cogs", cogs)):
        if bound:
            row |= {f"{name}_s": decode_s + min(bound), f"of_{name}": (decode_s + min(bound)) / mosaic_s}
    return row


def mosaic_seconds(report: SceneReport) -> float:
    """From file to both finished COGs."""
    return report.statistics.seconds["infer"] + report.statistics.seconds["mosaic"]


def timed(work: Callable[[], None]) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decode_alone(path: Path) -> None:
    """Decode every block once, with one handle per thread, and no further work."""
    with rasterio.open(path) as dataset:
        height, width = dataset.shape
    rows = range(0, height, 512)

    def read(mine: range) -> None:
        with rasterio.open(path) as dataset:
            for row in mine:
                for col in range(0, width, 1024):
                    dataset.read(window=Window(col, row, min(1024, width - col), min(512, height - row)))

    threads = min(usable_cpus(), 12)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, [rows[k::threads] for k in range(threads)]))


def time_copy(path: Path, write: Callable[[rasterio.DatasetReader, Path], None]) -> float:
    """Seconds to write a result of ours again from memory, compressed in the same way."""
    with rasterio.open(path) as source:
        profile = {key: source.profile[key] for key in ("height", "width", "count", "dtype", "nodata")}
        with rasterio.open("pixels", "w+", driver="MEM", crs=source.crs, transform=source.transform, **profile) as held:
            held.write(source.read())
            if holds_classes(source):
                held.write_colormap(1, source.colormap(1))
            return timed(lambda: write(held, path.with_name("copy.tif")))


def write_tiled(source: rasterio.DatasetReader, target: Path) -> None:
    """A tiled GeoTIFF without overviews."""
    options = {"tiled": True, "blockxsize": 512, "blockysize": 512, "zstd_level": 1}
    options["predictor"] = 1 if holds_classes(source) else 2
    rasterio.shutil.copy(source, target, driver="GTiff", **options, **BOTH_COPIES)


def write_cog(source: rasterio.DatasetReader, target: Path) -> None:
    """A Cloud-Optimized GeoTIFF with overviews."""
    classes = holds_classes(source)
    options = {"blocksize": 512, "level": 1, "predictor": "no" if classes else "yes"}
    options["overview_resampling"] = "mode" if classes else "average"
    rasterio.shutil.copy(source, target, driver="COG", **options, **BOTH_COPIES)


def holds_classes(source: rasterio.DatasetReader) -> bool:
    """True for `mask.tif`."""
    return bool(source.colorinterp[0] == ColorInterp.palette)


def peak_mib() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_scene(path: Path, side: int, width: int | None = None) -> None:
    """A scene that repeats one pattern, everywhere or along the diagonal; square, unless its width is another."""
    pattern = soft_blobs(PATTERN)
    profile = {
        "driver": "GTiff",
        "height": side,
        "width": width or side,
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
        "sparse_ok": side >= SPARSE_FROM,
    }
    with rasterio.open(path, "w", **profile) as dataset:
        for top in range(0, side, PATTERN):
            for left in range(0, width or side, PATTERN):
                if side < SPARSE_FROM or abs(left - top) <= 2 * PATTERN:
                    rows, columns = min(PATTERN, side - top), min(PATTERN, (width or side) - left)
                    dataset.write(pattern[:, :rows, :columns], window=Window(left, top, columns, rows))
        for number, name in enumerate(("red", "green", "blue", "nir"), start=1):
            dataset.set_band_description(number, name)


@cache
def soft_blobs(side: int) -> NDArray[np.uint16]:
    """`(4, side, side)` in 1..10000: waves of many lengths with a little noise, periodic in `side`; made once."""
    generator = np.random.default_rng(0)
    axis = np.arange(side) * (2 * np.pi / side)
    field = np.zeros((side, side), np.float32)
    for _ in range(24):
        down, across = generator.integers(1, 24, 2)
        phase = generator.random(2) * 2 * np.pi
        field += np.outer(np.sin(axis * down + phase[0]), np.sin(axis * across + phase[1])).astype(np.float32)
    level = 5_000 + 1_200 * field + generator.normal(0, 20, (side, side))
    bands = [level * gain for gain in (0.9, 1.0, 0.95, 1.1)]
    pattern = np.clip(np.stack(bands), 1, 10_000).astype(np.uint16)
    pattern.flags.writeable = False
    return pattern


if __name__ == "__main__":
    main()
