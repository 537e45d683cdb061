"""Vectorizing a mask: Scenemill against `rasterio.features.shapes` + `shapely.geometry.shape`, in the same run.

    python -m benchmarks.polygons                    prints two tables; a few minutes
    python -m benchmarks.polygons --counts           also up to 3 million polygons, to finished GeoPackages
    python -m benchmarks.polygons --json             also writes benchmarks/polygons.json
    python -m benchmarks.polygons --toy              small masks, only to see that it runs

Two masks: a dense synthetic one (4096 x 4096 px, 22 % set, smooth patches), and the cloud classes of a
whole Sentinel-2 tile (10980 x 10980 px; left out where ../shared/data/zoo is not). Every measurement has
a subprocess: seconds are the best of three, memory is the peak of the resident set beyond
what the process held with its input loaded. The polygons must be the same, as a set.

`mask` has the same input as rasterio, classified pixels. `probabilities` has the input of a mosaic, a byte
per class and pixel, and classifies it. Both also compute each polygon's mean and maximum, which rasterio
does not. One core: the process is bound to a core, with one worker thread; seconds are CPU time,
so that other work on the machine does not count. All cores: wall time.
`streamed` does not keep the polygons; the tall mask repeats the dense one 16 times downwards, and shows that its
memory does not grow.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
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

from pipeline.concurrency import usable_cpus
from pipeline.grid import RasterGrid
from pipeline.model import ModelCard
from pipeline.mosaic import Classification
from pipeline.polygons import PolygonSpec, shape_polygons, vectorize, write_polygons
from pipeline.polygons.shaping import PolygonBatch
from pipeline.polygons.stream import ClassifiedScene, vectorize_classifications

ZOO = Path(__file__).parents[2] / "shared" / "data" / "zoo"
CLOUDS = "S2A_MSIL2A_20170725T142751_N9999_R053_T19GBQ_20240410T040247_expected_output.tif"
TALL = 16
"""How many times the dense mask stands on itself."""
REPEATS = 3
COUNTS = (10_000, 100_000, 1_000_000, 3_000_000)
"""Numbers of polygons that become GeoPackages."""
ACROSS = 16
"""Patterns side by side in the mosaics of many polygons."""
TOP = 254
"""The level of certain pixels."""

Polygons = Iterator[tuple[NDArray[np.object_], NDArray[np.uint8]]]


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One method on one mask."""

    mask: str
    """`dense`, `clouds` or `tall`."""
    method: str
    """`rasterio`, `mask`, `probabilities` or `streamed`."""
    cores: int
    """Cores that the process was bound to."""
    seconds: float
    """Of the clock, best of the repeats."""
    core_s: float
    """Of all cores together, best of the repeats."""
    memory_mib: float
    """Peak of the resident set beyond the loaded input."""
    polygons: int
    """How many."""
    vertices: int
    """Of all rings, closed."""
    digest: str
    """Of the set of normalised polygons with their classes; empty when they were not kept."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Polygons from a mosaic in memory to a finished GeoPackage."""

    polygons: int
    """How many there were."""
    megapixels: float
    """Size of the mosaic."""
    vectorize_s: float
    """Seconds of the clock until all polygons were made, nothing else done with them."""
    seconds: float
    """Seconds of the clock from the mosaic to the file, made, measured and written."""
    core_s: float
    """The same, seconds of all cores together."""
    memory_mib: float
    """Peak of the resident set beyond the loaded pattern."""
    file_mib: float
    """Size of the GeoPackage."""


class MaskSource:
    """A mask as a mosaic of certain probabilities: level 254 for a pixel's class and 0 for the others."""

    levels = TOP

    def __init__(self, mask: NDArray[np.uint8], down: int = 1, across: int = 1):
        """Copies of a mask of values 0..k, in a grid; k classes."""
        self._mask = mask
        self._shape = (mask.shape[0] * down, mask.shape[1] * across)
        classes = int(mask.max())
        names = ("none", *(f"class {value}" for value in range(1, classes + 1)))
        self.card = (
            ModelCard(bands=("red",), classes=names, activation="softmax", background="none")
            if classes > 1
            else ModelCard(bands=("red",), classes=names[1:])
        )
        self._planes: NDArray[np.uint8] | None = None
        transform = Affine(10, 0, 500_000, 0, -10, 5_000_000)
        self.grid = RasterGrid(
            crs=CRS.from_epsg(32719), transform=transform, height=self._shape[0], width=self._shape[1]
        )

    def load_levels(self) -> None:
        """Make the levels, as a mosaic reader holds them; not part of any measurement."""
        self._planes = np.stack([(self._mask == value) * np.uint8(TOP) for value in self.card.mask_values])

    def read_levels(self, window: Window) -> NDArray[np.uint8]:
        """`(classes, height, width)` levels of the window."""
        assert self._planes is not None
        return _repeated(self._planes, window)

    def read_decisions(self, window: Window) -> list[Classification]:
        """The pixels of the window, decided, each as certain as its value."""
        part = _repeated(self._mask[None], window)[0]
        return [Classification(mask=part, level=part)]


def _repeated(planes: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
    """A window of endless copies of planes; a view where it lies within one copy."""
    top, left = window.row_off % planes.shape[1], window.col_off % planes.shape[2]
    if top + window.height <= planes.shape[1] and left + window.width <= planes.shape[2]:
        return planes[:, top : top + window.height, left : left + window.width]
    rows = np.arange(top, top + window.height) % planes.shape[1]
    cols = np.arange(left, left + window.width) % planes.shape[2]
    return planes[:, rows[:, None], cols[None, :]]


def dense_mask(side: int = 4096, share: float = 0.22, sigma: float = 4.25) -> NDArray[np.uint8]:
    """Smooth patches that cover a share of the pixels; about 17,500 of them."""
    field = np.random.default_rng(0).normal(size=(side, side)).astype(np.float32)
    field = ndimage.gaussian_filter(field, sigma)
    mask: NDArray[np.uint8] = (field > np.quantile(field[::4, ::4], 1 - share)).astype(np.uint8)
    return mask


def small_patches(side: int = 1024) -> NDArray[np.uint8]:
    """A pattern of many small patches with an empty rim, so that copies of it stay apart."""
    mask = dense_mask(side, sigma=1.5)
    mask[[0, -1]] = mask[:, [0, -1]] = 0
    return mask


def load(name: str, *, toy: bool = False) -> NDArray[np.uint8]:
    """The mask of a name; values 0..k."""
    if name in ("dense", "tall"):
        return dense_mask(256 if toy else 4096)
    with rasterio.open(ZOO / CLOUDS) as dataset:
        mask: NDArray[np.uint8] = dataset.read(1)
    return mask


def by_scenemill(source: MaskSource, method: str, workers: int) -> Polygons:
    spec = PolygonSpec()
    batches = (
        vectorize_classifications(ClassifiedScene(source.read_decisions, source.grid, TOP), spec, workers=workers)
        if method == "mask"
        else vectorize(source, spec, workers=workers)
    )
    for batch in batches:
        yield batch.geometry, batch.class_value


def by_rasterio(mask: NDArray[np.uint8]) -> Polygons:
    found = rasterio.features.shapes(mask, mask=mask > 0, connectivity=4)
    geometry, values = [], []
    for shape, value in found:
        geometry.append(shapely.geometry.shape(shape))
        values.append(value)
    yield np.array(geometry, dtype=object), np.array(values, np.uint8)


def measure(name: str, method: str, cores: int, *, toy: bool) -> Measurement:
    """Run one method in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    mask = load(name, toy=toy)
    source = MaskSource(mask, TALL if name == "tall" else 1)
    source.load_levels()
    warm = MaskSource(np.eye(40, dtype=np.uint8))
    warm.load_levels()
    list(by_scenemill(warm, method, cores))  # compile, or load what was compiled
    loaded = _forget_peak()
    seconds = core_s = float("inf")
    for _ in range(1 if toy else REPEATS):
        kept: list[tuple[NDArray[np.object_], NDArray[np.uint8]]] = []
        count = vertices = 0
        start, core_start = time.perf_counter(), time.process_time()
        for geometry, values in by_rasterio(mask) if method == "rasterio" else by_scenemill(source, method, cores):
            count += len(geometry)
            vertices += int(shapely.get_num_coordinates(geometry).sum())
            if method != "streamed":
                kept.append((geometry, values))
        seconds = min(seconds, time.perf_counter() - start)
        core_s = min(core_s, time.process_time() - core_start)
    return Measurement(
        mask=name,
        method=method,
        cores=cores,
        seconds=seconds,
        core_s=core_s,
        memory_mib=resident_mib("VmHWM") - loaded,
        polygons=count,
        vertices=vertices,
        digest=digest_of(kept),
    )


def export(count: int, folder: Path) -> Export:
    """About `count` polygons, made in this process and written to a GeoPackage."""
    pattern = small_patches()
    each = int(ndimage.label(pattern)[1])
    copies = max(1, round(count / each))
    across = min(ACROSS, copies)
    source = MaskSource(pattern, -(-copies // across), across)

    def batches() -> Iterator[PolygonBatch]:
        return vectorize_classifications(ClassifiedScene(source.read_decisions, source.grid, TOP), PolygonSpec())

    next(iter(batches()))  # compile, or load what was compiled
    loaded = _forget_peak()
    start = time.perf_counter()
    for _ in batches():
        pass
    vectorized, core_start = time.perf_counter(), time.process_time()
    target = folder / "polygons.gpkg"
    polygons = shape_polygons(batches(), source.grid, PolygonSpec())
    totals = write_polygons(
        target, polygons, crs=source.grid.crs, scene_id="many", model_id="none", classes={1: "patch"}
    )
    return Export(
        polygons=totals.count,
        megapixels=source.grid.height * source.grid.width / 1e6,
        vectorize_s=vectorized - start,
        seconds=time.perf_counter() - vectorized,
        core_s=time.process_time() - core_start,
        memory_mib=resident_mib("VmHWM") - loaded,
        file_mib=target.stat().st_size / 2**20,
    )


def _forget_peak() -> float:
    """Begin to watch the peak of resident memory; returns what is resident now, MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident_mib("VmRSS")


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


def plan(*, toy: bool) -> Iterator[tuple[str, str, int]]:
    """`(mask, method, cores)` of each measurement."""
    every = usable_cpus()
    for name in ("dense", "clouds") if (ZOO / CLOUDS).is_file() and not toy else ("dense",):
        yield name, "rasterio", 1
        for cores in (1, every) if every > 1 else (1,):
            yield name, "mask", cores
            yield name, "probabilities", cores
        yield name, "streamed", every
    yield "tall", "streamed", every


def check(results: list[Measurement], *, toy: bool) -> None:
    """The polygons are the same, in no more time, and memory does not follow the height."""
    theirs = {result.mask: result for result in results if result.method == "rasterio"}
    for result in results:
        if result.digest:
            peer = theirs[result.mask]
            assert (result.polygons, result.digest) == (peer.polygons, peer.digest), f"{result.mask}: other polygons"
            assert toy or result.core_s <= peer.core_s, f"{result.mask}: slower than rasterio"
    streamed = {result.mask: result for result in results if result.method == "streamed"}
    assert streamed["tall"].memory_mib < 2 * streamed["dense"].memory_mib + 100, "memory grows with the mask"


def table(results: list[Measurement]) -> str:
    theirs = {result.mask: result for result in results if result.method == "rasterio"}
    alone = {(result.mask, result.method): result for result in results if result.cores == 1}
    rows = ["| mask | method | cores | seconds | core seconds | rasterio / it, per core | one core / it | polygons "]
    rows[0] += "| vertices | memory, MiB |"
    rows.append("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for each in results:
        peer, one = theirs.get(each.mask), alone.get((each.mask, each.method))
        ratio = f"{peer.core_s / each.core_s:.1f}" if peer else ""
        gain = f"{one.seconds / each.seconds:.2f}" if one and each.cores > 1 else ""
        rows.append(
            f"| {each.mask} | {each.method} | {each.cores} | {each.seconds:.3f} | {each.core_s:.3f} | {ratio} | {gain} "
            f"| {each.polygons:,} | {each.vertices:,} | {each.memory_mib:.0f} |"
        )
    return "\n".join(rows)


def exports_table(results: list[Export]) -> str:
    rows = ["| polygons | Mpx | polygons made, s | to a GeoPackage, s | core seconds | memory, MiB | file, MiB |"]
    rows.append("|---:|---:|---:|---:|---:|---:|---:|")
    rows += [
        f"| {each.polygons:,} | {each.megapixels:,.0f} | {each.vectorize_s:.2f} | {each.seconds:.2f} "
        f"| {each.core_s:.2f} | {each.memory_mib:.0f} | {each.file_mib:,.0f} |"
        for each in results
    ]
    return "\n".join(rows)


def apart(*arguments: str) -> dict[str, object]:
    """Run one measurement in a subprocess."""
    command = [sys.executable, "-m", "benchmarks.polygons", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def here(arguments: argparse.Namespace) -> Measurement | Export | None:
    """The one measurement that the arguments ask of this process."""
    if arguments.measure:
        name, method, cores = arguments.measure
        return measure(name, method, int(cores), toy=arguments.toy)
    if arguments.export:
        with tempfile.TemporaryDirectory() as folder:
            return export(arguments.export, Path(folder))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", action="store_true", help="also write up to 3 million polygons")
    parser.add_argument("--toy", action="store_true", help="small masks")
    parser.add_argument(
        "--json",
        nargs="?",
        type=Path,
        const=Path(__file__).with_suffix(".json"),
        help="write the figures to this file; benchmarks/polygons.json if none is named",
    )
    parser.add_argument("--measure", nargs=3, metavar=("MASK", "METHOD", "CORES"), help=argparse.SUPPRESS)
    parser.add_argument("--export", type=int, metavar="COUNT", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    found = here(arguments)
    if found is not None:
        print(json.dumps(asdict(found)))
        return
    toy = ["--toy"] if arguments.toy else []
    results = []
    for name, method, cores in plan(toy=arguments.toy):
        results.append(Measurement(**apart("--measure", name, method, str(cores), *toy)))
        print(f"{name}, {method}, {cores} cores: {results[-1].core_s:.2f} core seconds", file=sys.stderr)
    print(table(results))
    check(results, toy=arguments.toy)
    counts = (1_000,) if arguments.toy else COUNTS if arguments.counts else COUNTS[:2]
    exports = [Export(**apart("--export", str(count))) for count in counts]
    print(f"\n{exports_table(exports)}")
    if arguments.json:
        figures = {"polygons": [asdict(each) for each in results], "exports": [asdict(each) for each in exports]}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
