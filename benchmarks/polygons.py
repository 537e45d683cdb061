"""Mask to polygons: ours against `rasterio.features.shapes` + `shapely.geometry.shape`, in the same run.

    python -m benchmarks.polygons                    prints the table; about a minute
    python -m benchmarks.polygons --json             also writes benchmarks/polygons.json
    python -m benchmarks.polygons --workers 1

Two masks: a dense synthetic one (4096 x 4096 px, 22 % set, smooth patches), and the cloud classes of a
whole Sentinel-2 tile (10980 x 10980 px; left out where ../shared/data/zoo is not). Every measurement has
a process of its own: seconds are the best of three, memory is the peak of the resident set beyond
what the process held with the mask loaded. The polygons must be the same, as a set. `streamed` does not keep the
polygons; the tall mask repeats the dense one 16 times downwards, and shows that its memory does not grow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rasterio
import rasterio.features
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.windows import Window
from scipy import ndimage

from pipeline.card import ModelCard
from pipeline.grid import RasterGrid
from pipeline.shaping import PolygonSpec
from pipeline.vectorize import vectorize

ZOO = Path(__file__).parents[2] / "shared" / "data" / "zoo"
CLOUDS = "S2A_MSIL2A_20170725T142751_N9999_R053_T19GBQ_20240410T040247_expected_output.tif"
TALL = 16
"""How many times the dense mask stands on itself."""
REPEATS = 3

Polygons = Iterator[tuple[NDArray[np.object_], NDArray[np.uint8]]]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One method on one mask."""

    mask: str
    """`dense`, `clouds` or `tall`."""
    method: str
    """`rasterio`, `scenemill` or `streamed`."""
    seconds: float
    """Best of the repeats."""
    memory_mib: float
    """Peak of the resident set beyond the loaded mask."""
    polygons: int
    """How many."""
    vertices: int
    """Of all rings, closed."""
    digest: str
    """Of the set of normalised polygons with their classes; empty when they were not kept."""


class MaskSource:
    """A mask as a mosaic of certain probabilities: level 254 for a pixel's class and 0 for the others."""

    levels = 254

    def __init__(self, mask: NDArray[np.uint8], repeated: int = 1):
        """`repeated` copies of a mask of values 0..k, one below the other; k classes."""
        self._mask = mask
        self._repeated = repeated
        classes = int(mask.max())
        names = ("none", *(f"class {value}" for value in range(1, classes + 1)))
        self.card = (
            ModelCard(bands=("red",), classes=names, activation="softmax", background="none")
            if classes > 1
            else ModelCard(bands=("red",), classes=names[1:])
        )
        self._values = self.card.mask_values
        height, width = mask.shape[0] * repeated, mask.shape[1]
        transform = Affine(10, 0, 500_000, 0, -10, 5_000_000)
        self.grid = RasterGrid(crs=CRS.from_epsg(32719), transform=transform, height=height, width=width)

    def read_levels(self, window: Window) -> NDArray[np.uint16]:
        """`(classes, height, width)` levels of the window."""
        rows = np.arange(window.row_off, window.row_off + window.height) % len(self._mask)
        part = self._mask[:, window.col_off : window.col_off + window.width]
        part = part[rows[0] : rows[-1] + 1] if rows[0] <= rows[-1] else part[rows]
        levels = np.empty((len(self._values), *part.shape), np.uint16)
        for level, value in zip(levels, self._values, strict=True):
            np.multiply(part == value, np.uint16(254), out=level)
        return levels


def dense_mask(side: int = 4096, share: float = 0.22) -> NDArray[np.uint8]:
    """Smooth patches that cover a share of the pixels; about 17,500 of them."""
    field = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    field = ndimage.gaussian_filter(field, 4.25)
    mask: NDArray[np.uint8] = (field > np.quantile(field[::4, ::4], 1 - share)).astype(np.uint8)
    return mask


def load(name: str) -> NDArray[np.uint8]:
    """The mask of a name; values 0..k."""
    if name in ("dense", "tall"):
        return dense_mask()
    with rasterio.open(ZOO / CLOUDS) as dataset:
        mask: NDArray[np.uint8] = dataset.read(1)
    return mask


def by_scenemill(source: MaskSource, workers: int) -> Polygons:
    for batch in vectorize(source, PolygonSpec(), workers=workers):
        yield batch.geometry, batch.class_value


def by_rasterio(mask: NDArray[np.uint8]) -> Polygons:
    found = rasterio.features.shapes(mask, mask=mask > 0, connectivity=4)
    geometry, values = [], []
    for shape, value in found:
        geometry.append(shapely.geometry.shape(shape))
        values.append(value)
    yield np.array(geometry, dtype=object), np.array(values, np.uint8)


def measure(name: str, method: str, workers: int) -> Measurement:
    """Run one method in this process."""
    mask = load(name)
    source = MaskSource(mask, TALL if name == "tall" else 1)
    list(by_scenemill(MaskSource(np.eye(40, dtype=np.uint8)), workers))  # compile, or load what was compiled
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    loaded = resident_mib("VmRSS")
    seconds, count, vertices = float("inf"), 0, 0
    for _ in range(REPEATS):
        kept: list[tuple[NDArray[np.object_], NDArray[np.uint8]]] = []
        count = vertices = 0
        start = time.perf_counter()
        for geometry, values in by_rasterio(mask) if method == "rasterio" else by_scenemill(source, workers):
            count += len(geometry)
            vertices += int(shapely.get_num_coordinates(geometry).sum())
            if method != "streamed":
                kept.append((geometry, values))
        seconds = min(seconds, time.perf_counter() - start)
    peak = resident_mib("VmHWM")
    return Measurement(
        mask=name,
        method=method,
        seconds=seconds,
        memory_mib=peak - loaded,
        polygons=count,
        vertices=vertices,
        digest=digest_of(kept),
    )


def resident_mib(which: str) -> float:
    """Resident memory of this process now (`VmRSS`) or at its peak (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(which))


def digest_of(parts: list[tuple[NDArray[np.object_], NDArray[np.uint8]]]) -> str:
    """The same for equal sets of polygons, whatever their order and where their rings begin."""
    if not parts:
        return ""
    geometry = shapely.normalize(np.concatenate([part[0] for part in parts]))
    values = np.concatenate([part[1] for part in parts])
    rows = zip(shapely.to_wkb(geometry), values.tolist(), strict=True)
    each = sorted(hashlib.sha256(wkb + bytes([value])).digest() for wkb, value in rows)
    return hashlib.sha256(b"".join(each)).hexdigest()


def measure_apart(name: str, method: str, workers: int) -> Measurement:
    """Run one method in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.polygons", "--measure", name, method, "--workers", str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Measurement(**json.loads(done.stdout))


def plan() -> Iterator[tuple[str, str]]:
    """`(mask, method)` of each measurement."""
    for name in ("dense", "clouds") if (ZOO / CLOUDS).is_file() else ("dense",):
        for method in ("rasterio", "scenemill", "streamed"):
            yield name, method
    yield "tall", "streamed"


def check(results: list[Measurement]) -> None:
    """The polygons are the same, in no more time, and memory does not follow the height."""
    by_name = {(result.mask, result.method): result for result in results}
    for (name, method), result in by_name.items():
        if method == "scenemill":
            theirs = by_name[name, "rasterio"]
            assert (result.polygons, result.digest) == (theirs.polygons, theirs.digest), f"{name}: other polygons"
            assert result.seconds <= theirs.seconds, f"{name}: slower than rasterio"
    assert by_name["tall", "streamed"].memory_mib < 2 * by_name["dense", "streamed"].memory_mib + 100


def table(results: list[Measurement]) -> str:
    rasterio_s = {result.mask: result.seconds for result in results if result.method == "rasterio"}
    rows = ["| mask | method | polygons | vertices | seconds | rasterio / it | memory beyond the mask, MiB |"]
    rows.append("|---|---|---:|---:|---:|---:|---:|")
    for each in results:
        ratio = f"{rasterio_s[each.mask] / each.seconds:.1f}" if each.mask in rasterio_s else ""
        rows.append(
            f"| {each.mask} | {each.method} | {each.polygons:,} | {each.vertices:,} | {each.seconds:.2f} | {ratio} "
            f"| {each.memory_mib:.0f} |"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="threads of ours")
    parser.add_argument("--json", action="store_true", help="write benchmarks/polygons.json")
    parser.add_argument("--measure", nargs=2, metavar=("MASK", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, method = arguments.measure
        print(json.dumps(asdict(measure(name, method, arguments.workers))))
        return
    results = []
    for name, method in plan():
        results.append(measure_apart(name, method, arguments.workers))
        print(f"{name} {method}: {results[-1].seconds:.2f} s", file=sys.stderr)
    print(table(results))
    check(results)
    if arguments.json:
        path = Path(__file__).with_suffix(".json")
        path.write_text(json.dumps([asdict(result) for result in results], indent=2) + "\n")


if __name__ == "__main__":
    main()
