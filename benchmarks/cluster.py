"""Speed-up and overhead of a Dask cluster: scaling, equal bytes, seconds per region, per scene and per task.

    python -m benchmarks.cluster                  four tables; about 4 minutes on two quiet cores, 1 GB of disk
    python -m benchmarks.cluster --json out.json
    python -m benchmarks.cluster --toy

Scheduler, workers and client are separate processes of this machine. Every figure is taken with processes that have
run one scene first as a warm-up.

    scaling   the classic U-Net on a tall scene, on one and on two workers of one thread each, in turns, each cluster
              with its default regions, while the other is stopped; the best time of each counts
    overhead  a pointwise predictor, 10,000 x 10,000 px, in this process, and on one worker that has
              the same threads; in turns, and the median of the quotients
    costs     extra time of a region, and of a scene, on a cluster: many tiny ones
    tasks     empty tasks, as fast as the scheduler runs them
    equal     whether the results of this process and of 1, 2 and 4 workers are identical bytes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distributed import Client

from benchmarks.cluster_processes import Processes
from benchmarks.pipeline import Pointwise, write_scene
from benchmarks.subjects import BANDS, write_classic_unet
from pipeline import ModelCard, SegmentSpec, segment_scene
from pipeline.catalog import CatalogEntry
from pipeline.concurrency import usable_cpus
from pipeline.distribute import DistributeSpec, RemotePredictor
from pipeline.inference import TilingSpec
from pipeline.model import InferenceSpec, load_predictor
from pipeline.polygons import PolygonSpec
from pipeline.results import SceneReport
from pipeline.run import segment_catalog
from pipeline.scene import ReadingSpec

LEAST_SCALING, MOST_OVERHEAD = 1.8, 0.05
"""The goals."""
SMALL = 64
"""Side of what is next to nothing, px."""
CARD = ModelCard(bands=BANDS, classes=("blob",), threshold=0.6)
"""Of the predictor that looks at single pixels."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of the measurements."""

    base: int = 32
    """Channels of the U-Net's first level."""
    tall: tuple[int, int] = (21_120, 1_024)
    """Rows and columns of the scene that is CPU-bound; 47 rows of tiles."""
    side: int = 10_000
    """Side of the scene of the pointwise predictor."""
    tile: int = 512
    """Side of tiles."""
    turns: int = 3
    """How often each side of a comparison runs."""
    regions: int = 64
    """Regions of next to nothing."""
    scenes: int = 24
    """Scenes of next to nothing."""
    tasks: int = 4_000
    """Tasks of nothing."""


TOY = Sizes(base=8, tall=(256, 64), side=300, tile=64, turns=1, regions=3, scenes=3, tasks=20)


def main() -> None:
    """Measure, print, and report missed goals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="next to nothing of each")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="where scenes and results go for the time being")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # ends the processes too
    sizes, figures = TOY if arguments.toy else Sizes(), dict[str, Any]()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        with Processes(folder) as small, Processes(folder) as large:
            one, two = small.client(1), large.client(2)
            figures["scaling"] = scaling(sizes, folder, {one: large, two: small})
            print(scaling_table(figures["scaling"]), flush=True)
            figures["overhead"] = overhead(sizes, folder, one)
            print(overhead_table(figures["overhead"]), flush=True)
            figures["costs"] = costs(sizes, folder, two)
            print(costs_table(figures["costs"]), flush=True)
            figures["tasks"] = trivial_tasks(sizes, two)
            print(tasks_table(figures["tasks"]), flush=True)
            figures["equal"] = equal(sizes, folder, [None, one, two, large.client(4)])
            print(f"results of this process, 1, 2 and 4 workers: {'equal' if figures['equal'] else 'NOT EQUAL'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def settings(tile: int, *, threads: int, regions: int = 0, overlap: int | None = None) -> SegmentSpec:
    """Settings on a CPU with `threads` threads."""
    return SegmentSpec(
        tiling=TilingSpec(tile_size=tile, overlap=overlap),
        reading=ReadingSpec(threads=threads),
        inference=InferenceSpec(device="cpu", threads=threads),
        distribute=DistributeSpec(regions=regions),
    )


def scaling(sizes: Sizes, folder: Path, others: Mapping[Client, Processes]) -> dict[str, Any]:
    """Seconds of one scene on one and on two workers of one thread, while the other cluster is stopped."""
    scene, model = folder / "tall.tif", folder / "unet.safetensors"
    # No polygons: a network with random weights would find one in every other pixel.
    spec = replace(settings(sizes.tile, threads=1), polygons=PolygonSpec(threshold=1.0))
    write_scene(scene, *sizes.tall)
    write_scene(folder / "warm.tif", 3 * sizes.tile, sizes.tile)  # something to do for each worker
    write_classic_unet(model, sizes.base)
    predictor = RemotePredictor(model, "cpu", precision="auto")
    times: dict[int, list[SceneReport]] = {1: [], 2: []}
    for path in (folder / "warm.tif", *[scene] * sizes.turns):
        for workers, (client, other) in enumerate(others.items(), start=1):
            with other.asleep():
                report = segment_scene(path, fresh(folder / "out"), predictor=predictor, spec=spec, client=client)
            times[workers] += [report] * (path == scene)
    infer, whole = ({workers: min(map(of, found)) for workers, found in times.items()} for of in (infer_s, all_s))
    return {
        "mpx": report.statistics.pixels / 1e6,
        "infer_s": [infer[1], infer[2]],
        "seconds": [whole[1], whole[2]],
        "infer_times": infer[1] / infer[2],
        "times": whole[1] / whole[2],
    }


def equal(sizes: Sizes, folder: Path, clients: Sequence[Client | None]) -> bool:
    """Whether the network's results on part of the scene are the same to the byte in this process and on clusters."""
    scene, spec = folder / "part.tif", settings(sizes.tile, threads=1, regions=4)
    write_scene(scene, sizes.tall[0] // 8, sizes.tall[1])
    model, found = folder / "unet.safetensors", set[str]()
    for client in clients:
        predictor = RemotePredictor(model, "cpu", precision="auto") if client else load_predictor(model, "cpu")
        report = segment_scene(scene, fresh(folder / "out"), predictor=predictor, spec=spec, client=client)
        found.add(digest(report))
    return len(found) == 1


def overhead(sizes: Sizes, folder: Path, client: Client) -> dict[str, float]:
    """Seconds of one scene in this process, and on a cluster whose one worker has the same threads."""
    scene, cpus = folder / "square.tif", usable_cpus()
    write_scene(scene, sizes.side)
    spec, here, there = settings(sizes.tile, threads=cpus), list[float](), list[float]()
    for turn in range(sizes.turns + 1):
        for found, where in ((here, None), (there, client)):
            out = fresh(folder / "out")
            start = time.perf_counter()
            segment_scene(scene, out, predictor=Pointwise(), card=CARD, spec=spec, client=where)
            found += [time.perf_counter() - start] * (turn > 0)
    share = statistics.median(other / one for one, other in zip(here, there, strict=True)) - 1
    return {"mpx": sizes.side**2 / 1e6, "here_s": min(here), "there_s": min(there), "overhead": share}


def costs(sizes: Sizes, folder: Path, cluster: Client) -> dict[str, dict[str, float]]:
    """Seconds of a tiny region and a tiny scene, in this process and on a cluster."""
    write_scene(folder / "rows.tif", SMALL * sizes.regions, SMALL)
    write_scene(folder / "small.tif", SMALL)
    model = folder / "small.safetensors"
    write_classic_unet(model, 8)
    scenes = [CatalogEntry(id=f"s{number}", location=str(folder / "small.tif")) for number in range(sizes.scenes)]
    one_thread = settings(SMALL, threads=1, overlap=0)

    def regions(client: Client | None, count: int) -> float:
        spec = replace(one_thread, distribute=DistributeSpec(regions=count))
        out = fresh(folder / "out")
        report = segment_scene(folder / "rows.tif", out, predictor=Pointwise(), card=CARD, spec=spec, client=client)
        return infer_s(report)

    def catalog(client: Client | None) -> float:
        start, predictor = time.perf_counter(), RemotePredictor(model, "cpu", precision="float32")
        spec = replace(one_thread, inference=replace(one_thread.inference, precision="float32"))
        reports = [*segment_catalog(scenes, fresh(folder / "out"), predictor=predictor, spec=spec, client=client)]
        assert all(report.status == "done" for report in reports)
        return (time.perf_counter() - start) / len(scenes)

    found = {}
    for name, where in (("here", None), ("cluster", cluster)):
        catalog(where)
        several, one = (min(regions(where, count) for _ in range(2)) for count in (sizes.regions, 1))
        found[name] = {"region_s": (several - one) / (sizes.regions - 1), "scene_s": catalog(where)}
    return found


def trivial_tasks(sizes: Sizes, client: Client) -> dict[str, float]:
    """Empty tasks per second, all submitted at once; and seconds of a single one, submitted and awaited."""
    client.gather(client.map(_nothing, range(100), pure=False))
    start = time.perf_counter()
    client.gather(client.map(_nothing, range(sizes.tasks), pure=False))
    rate = sizes.tasks / (time.perf_counter() - start)
    lone = []
    for number in range(min(100, sizes.tasks)):
        start = time.perf_counter()
        client.submit(_nothing, number, pure=False).result()
        lone.append(time.perf_counter() - start)
    return {"tasks_per_s": rate, "lone_s": statistics.median(lone)}


def _nothing(number: int) -> int:
    return number


def fresh(folder: Path) -> Path:
    """An empty output folder."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def digest(report: SceneReport) -> str:
    """Of all rasters and polygons of a scene."""
    names = ("probability.tif", "mask.tif", "polygons.gpkg")
    return hashlib.sha256(b"".join((Path(report.folder) / name).read_bytes() for name in names)).hexdigest()


def infer_s(report: SceneReport) -> float:
    """Seconds of the stage that runs on workers with a device."""
    return report.statistics.seconds["infer"]


def all_s(report: SceneReport) -> float:
    """Seconds of all stages."""
    return sum(report.statistics.seconds.values())


def scaling_table(found: Mapping[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"| scaling, {found['mpx']:.1f} Mpx | one worker, s | two workers, s | times | goal |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, (one, two), times in (
        ("regions", found["infer_s"], found["infer_times"]),
        ("all stages", found["seconds"], found["times"]),
    ):
        lines.append(f"| {name} | {one:.2f} | {two:.2f} | {times:.2f} | {LEAST_SCALING} |")
    return "\n".join([*lines, ""])


def overhead_table(found: Mapping[str, float]) -> str:
    """Markdown."""
    figures = f"{found['mpx']:.0f} | {found['here_s']:.2f} | {found['there_s']:.2f} | {found['overhead']:.1%}"
    return "\n".join(
        [
            "| overhead: Mpx | this process, s | cluster, s | overhead | goal |",
            "|---:|---:|---:|---:|---:|",
            f"| {figures} | {MOST_OVERHEAD:.0%} |",
            "",
        ]
    )


def costs_table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown."""
    lines = ["| costs of | this process, ms | cluster, ms | more, ms |", "|---|---:|---:|---:|"]
    for name, key in (("a region", "region_s"), ("a scene", "scene_s")):
        here, there = (found[where][key] * 1e3 for where in ("here", "cluster"))
        lines.append(f"| {name} | {here:.1f} | {there:.1f} | {there - here:.1f} |")
    return "\n".join([*lines, ""])


def tasks_table(found: Mapping[str, float]) -> str:
    """Markdown."""
    return "\n".join(
        [
            "| trivial tasks | |",
            "|---|---:|",
            f"| handed out at once, tasks/s | {found['tasks_per_s']:.0f} |",
            f"| one that is waited for, ms | {found['lone_s'] * 1e3:.1f} |",
        ]
    )


if __name__ == "__main__":
    main()
