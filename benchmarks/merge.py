"""Merging the polygons of many overlapping scenes into one file: seconds and peak memory.

    python -m benchmarks.merge                       prints a table; some minutes, mostly to write the scenes
    python -m benchmarks.merge --scenes 4 16         other numbers of scenes
    python -m benchmarks.merge --json                also writes benchmarks/merge.json
    python -m benchmarks.merge --toy                 few small scenes, only to see that it runs

The scenes lie in a square, each overlaps its neighbours by a tenth of its side and shows nearly the same patches:
one pixel in a thousand is random. `stacked` scenes, of as many dates, cover the same place. Every merge runs in a
subprocess; memory is the peak of its resident set beyond what it held with its packages loaded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from benchmarks.polygons import MaskSource, dense_mask, resident_mib
from pipeline.grid import RasterGrid
from pipeline.merge import MergeSpec, merge_scenes
from pipeline.model import ModelCard
from pipeline.mosaic import MosaicSpec, cog_writer, mask_profile, probability_profile
from pipeline.polygons import PolygonSpec, shape_polygons, vectorize, write_polygons
from pipeline.results import OutputFiles, SceneInputs, SceneReport, SceneStatistics, write_report

SCENES = (25, 100)
"""Numbers of scenes side by side."""
DATES = 9
"""Scenes over each other."""
SIDE = 1024
"""Pixels on each side of a scene."""
PATTERN = 1000
"""Period of the patches, px."""
CARD = ModelCard(bands=("red",), classes=("patch",))


@dataclass(frozen=True, kw_only=True)
class Merge:
    """One merge."""

    layout: str
    """`side by side` or `stacked`."""
    scenes: int
    """How many."""
    read: int
    """Polygons of all scenes."""
    polygons: int
    """Polygons of the file."""
    joined: int
    """Polygons that became parts of others."""
    seconds: float
    """Of the clock."""
    core_s: float
    """Of all cores together."""
    memory_mib: float
    """Peak of the resident set beyond the loaded packages."""


def write_scene(folder: Path, pattern: NDArray[np.uint8], row: int, col: int, number: int, side: int) -> None:
    """A finished result whose first pixel is `(row, col)` of the pattern."""
    rows, cols = np.arange(row, row + side) % len(pattern), np.arange(col, col + side) % len(pattern)
    mask = pattern[rows[:, None], cols[None, :]]
    generator = np.random.default_rng(number)
    mask = np.where(generator.random(mask.shape) < 0.001, generator.integers(0, 2, mask.shape), mask).astype(np.uint8)
    mask[0, 0] = 1
    transform = Affine(10, 0, 500_000 + 10 * col, 0, -10, 5_000_000 - 10 * row)
    grid = RasterGrid(crs=CRS.from_epsg(32719), transform=transform, height=side, width=side)
    place = folder / f"scene{number:04}"
    place.mkdir(parents=True)
    source = MaskSource(mask)
    source.grid = grid
    source.load_levels()
    polygons = shape_polygons(vectorize(source, PolygonSpec(), workers=1), grid, PolygonSpec())
    names = {1: "patch"}
    write_polygons(place / "polygons.gpkg", polygons, crs=grid.crs, scene_id=place.name, model_id="none", classes=names)
    for name, form in (("probability", probability_profile), ("mask", mask_profile)):
        with cog_writer(place / f"{name}.tif", form(grid, CARD, MosaicSpec(), {})) as writer:
            writer.write(mask[None])
    report = SceneReport(
        scene=place.name,
        location=place.name,
        status="done",
        inputs=SceneInputs(date=f"2024-06-{1 + number % 28:02}T00:00:00Z"),
        outputs=OutputFiles(names={"probability": "probability.tif", "mask": "mask.tif", "polygons": "polygons.gpkg"}),
        statistics=SceneStatistics(pixels=mask.size, valid_pixels=mask.size),
    )
    write_report(place, report)


def measure(folder: Path, layout: str) -> Merge:
    """Merge a folder here, in a process that has done nothing else."""
    loaded = resident_mib("VmRSS")
    start, spent = time.perf_counter(), time.process_time()
    report = merge_scenes(folder, MergeSpec())
    assert report is not None
    return Merge(
        layout=layout,
        scenes=len(report.scenes),
        read=report.read,
        polygons=report.polygons,
        joined=report.joined,
        seconds=time.perf_counter() - start,
        core_s=time.process_time() - spent,
        memory_mib=resident_mib("VmHWM") - loaded,
    )


def main() -> None:
    """Print a table of merges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, nargs="*", default=None, help="numbers of scenes side by side")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--json", nargs="?", const="benchmarks/merge.json")
    arguments = parser.parse_args()
    side = 128 if arguments.toy else SIDE
    numbers = arguments.scenes or ((4,) if arguments.toy else SCENES)
    layouts = [("side by side", number) for number in numbers]
    layouts.append(("stacked", 2 if arguments.toy else DATES))
    pattern = dense_mask(PATTERN if not arguments.toy else 300, sigma=1.5)
    print("| layout | scenes | polygons read | in the file | joined | seconds | of cores | peak memory |")
    print("|---|---|---|---|---|---|---|---|")
    merges = []
    for layout, number in layouts:
        with tempfile.TemporaryDirectory() as name:
            for place in range(number):
                row, col = divmod(place, isqrt(number)) if layout != "stacked" else (0, 0)
                write_scene(Path(name), pattern, row * side * 9 // 10, col * side * 9 // 10, place, side)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                merge = pool.apply(measure, (Path(name), layout))
        merges.append(merge)
        print(
            f"| {merge.layout} | {merge.scenes:,} | {merge.read:,} | {merge.polygons:,} | {merge.joined:,} | "
            f"{merge.seconds:.1f} | {merge.core_s:.1f} | {merge.memory_mib:,.0f} MiB |",
            flush=True,
        )
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"merges": [asdict(merge) for merge in merges]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
