"""Overhead of Prefect: seconds before the first pixel, and seconds per scene.

    python -m benchmarks.orchestration                 prints two tables; 3 minutes on two idle cores
    python -m benchmarks.orchestration --json orchestration.json
    python -m benchmarks.orchestration --toy

    first pixel  from the call until the work folder of the first scene exists and reading starts: the command, the flow
                 without a server, the flow as a deployment on a server with a worker; the best of several starts,
                 polled every 10 ms
    per scene    many scenes of 64 x 64 px by the library, and by the flow on a server: first processed, then found
                 finished. A flow processes two scenes concurrently, so CPU seconds are given next to wall seconds;
                 they are those of the run's process, without the server. The figure is the difference between many
                 scenes and a few, without the fixed cost of a run

Server, database and worker are processes of this machine, made for the purpose. What a dask cluster costs per scene and
region is printed by `python -m benchmarks.cluster`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.prefect_server import ROOT, Server, end, prefect_server

SETTINGS = {"inference": {"device": "cpu", "precision": "float32"}, "tiling": {"tile_size": 64}}
OPTIONS = ("--set", "inference.device=cpu", "--set", "inference.precision=float32", "--set", "tiling.tile_size=64")
SIDE = 64
"""Side of a scene, px."""
COMMAND = "scenemill segment"
WAYS = {
    COMMAND: ("-c", "from pipeline.cli import main; main()", "segment"),
    "flow without a server": ("-m", "flows.segment"),
}
"""Ways to start that run in a subprocess."""
PATIENCE_S = 120


@dataclass(frozen=True, kw_only=True)
class PerScene:
    """Cost of one more scene."""

    by: str
    """`library` or `flow on a server`."""
    finished: bool
    """True: all scenes were finished before, and are skipped."""
    wall_ms: float
    """Wall time."""
    cpu_ms: float
    """CPU time of the run's process."""


def main() -> None:
    """Measure and print."""
    arguments = _parser().parse_args()
    if arguments.child:
        runs = timed_runs(arguments.child, arguments.scenes, arguments.few, arguments.model, arguments.out)
        print(json.dumps(runs))
        return
    few, many, repeats = (1, 3, 0) if arguments.toy else (5, 45, 2)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        scenes, model = write_subjects(folder, many)
        with prefect_server(folder / "server") as server:
            first = first_pixels(server, scenes[0], model, folder, repeats=repeats, all_ways=not arguments.toy)
            print(first_table(first))
            costs = [cost for by in ("library", "flow") for cost in per_scene(by, server, scenes, few, model, folder)]
            print(f"\n{cost_table(costs)}")
    if arguments.json:
        figures = {"first_pixel_s": first, "per_scene": [asdict(cost) for cost in costs]}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="folder for scenes, results and the server's database")
    parser.add_argument("--toy", action="store_true", help="once, with three scenes; the command and no flow begins")
    parser.add_argument("--child", choices=("library", "flow"), help=argparse.SUPPRESS)
    parser.add_argument("--scenes", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--few", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    return parser


def write_subjects(folder: Path, count: int) -> tuple[list[str], str]:
    """Tiny scenes, and a small network."""
    from benchmarks.subjects import write_classic_unet, write_scene

    scenes = [folder / f"scene-{number:03}.tif" for number in range(count)]
    for scene in scenes:
        write_scene(scene, SIDE)
    write_classic_unet(folder / "model.safetensors", 8)
    return [str(scene) for scene in scenes], str(folder / "model.safetensors")


def first_pixels(
    server: Server, scene: str, model: str, folder: Path, *, repeats: int, all_ways: bool
) -> dict[str, float]:
    """Way -> seconds until the first scene is read; the first start of each warms the file cache."""
    starts: dict[str, Callable[[Path], float]] = {
        way: lambda out, words=words: own_process(words, scene, model, out, folder)  # type: ignore[misc]
        for way, words in WAYS.items()
        if all_ways or way == COMMAND
    }
    if all_ways:
        server.call("work-pool", "create", "local-proc", "--type", "process")
        server.call("deploy", "--all")
        server.start_worker()
        starts["deployment on a server"] = lambda out: on_worker(server, scene, model, out)
    seconds = {}
    for way, start in starts.items():
        outs = [folder / f"first-{len(seconds)}-{number}" for number in range(repeats + 1)]
        seconds[way] = min([start(out) for out in outs][-max(repeats, 1) :])
    return seconds


def own_process(words: Sequence[str], scene: str, model: str, out: Path, folder: Path) -> float:
    """Seconds of a process until it reads its scene; it is ended then."""
    surroundings = {key: value for key, value in os.environ.items() if key != "PREFECT_API_URL"}
    environment = {**surroundings, "PREFECT_HOME": str(folder / "without"), "PREFECT_LOGGING_LEVEL": "ERROR"}
    command = [sys.executable, *words, scene, "--model", model, "--out", str(out), *OPTIONS]
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        return seconds_until_read(out, start)
    finally:
        end(process)


def on_worker(server: Server, scene: str, model: str, out: Path) -> float:
    """Seconds from asking for a run until the worker's process reads its scene."""
    start = time.perf_counter()
    run_id = server.begin(
        "segment-catalog/ad-hoc", {"scenes": [scene], "model": model, "out": str(out), "settings": SETTINGS}
    )
    seconds = seconds_until_read(out, start)
    server.finished(run_id)
    return seconds


def seconds_until_read(out: Path, start: float) -> float:
    """Wait for the work folder of a scene."""
    while time.perf_counter() - start < PATIENCE_S:
        if any(out.glob(".*.partial/*")) or any(out.glob("*/report.json")):
            return time.perf_counter() - start
        time.sleep(0.01)
    raise TimeoutError(f"no scene was read within {PATIENCE_S} s")


def per_scene(
    by: str, server: Server, scenes: Sequence[str], few: int, model: str, folder: Path
) -> tuple[PerScene, PerScene]:
    """Cost of one more scene, processed and found finished."""
    command = [sys.executable, "-m", "benchmarks.orchestration", "--child", by, "--few", str(few), "--model", model]
    environment = {**server.environment, "PREFECT_LOGGING_LEVEL": "ERROR"}
    done = subprocess.run(
        [*command, "--out", str(folder / by), "--scenes", *scenes],
        cwd=ROOT, env=environment, check=True, capture_output=True, text=True,
    )  # fmt: skip
    runs = json.loads(done.stdout.splitlines()[-1])
    more = len(scenes) - few
    name = {"library": "library", "flow": "flow on a server"}[by]
    made, found = (
        PerScene(
            by=name,
            finished=finished,
            wall_ms=1e3 * (runs[f"many {key}"]["wall_s"] - runs[f"few {key}"]["wall_s"]) / more,
            cpu_ms=1e3 * (runs[f"many {key}"]["cpu_s"] - runs[f"few {key}"]["cpu_s"]) / more,
        )
        for key, finished in (("made", False), ("found", True))
    )
    return made, found


def timed_runs(by: str, scenes: Sequence[str], few: int, model: str, out: str) -> dict[str, dict[str, float]]:
    """In a subprocess: run few scenes, then many, each new and again finished, after one scene as a warm-up."""
    run = run_of(by)
    run(scenes[:1], model, f"{out}-warm")
    return {
        f"{name} {key}": _timed(lambda some=some, name=name: run(some, model, f"{out}-{name}"))  # type: ignore[misc]
        for name, some in (("few", scenes[:few]), ("many", scenes))
        for key in ("made", "found")
    }


def run_of(by: str) -> Callable[[Sequence[str], str, str], None]:
    """The library's run of a catalog, or the flow's."""
    from pipeline.catalog import read_catalog
    from pipeline.config import SegmentSpec, build_settings
    from pipeline.run import load_run_models, segment_catalog

    spec = build_settings(SegmentSpec, SETTINGS, place="the benchmark")

    def library(scenes: Sequence[str], model: str, out: str) -> None:
        predictor = load_run_models([model], spec)
        entries = [*read_catalog(scenes, spec.catalog, spec.reading)]
        for report in segment_catalog(entries, out, predictor=predictor, spec=spec):
            assert report.reason is None, report.reason

    def flow(scenes: Sequence[str], model: str, out: str) -> None:
        from flows.segment import segment_catalog as run_flow

        run_flow([*scenes], model, out, spec)

    return library if by == "library" else flow


def _timed(work: Callable[[], None]) -> dict[str, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def first_table(seconds: Mapping[str, float]) -> str:
    """Markdown: seconds before the first pixel."""
    lines = ["| until the first scene is read | seconds |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {way} | {value:.1f} |" for way, value in seconds.items())])


def cost_table(costs: Sequence[PerScene]) -> str:
    """Markdown: milliseconds per scene, and what the flow adds."""
    lines = [
        f"| {SIDE} x {SIDE} px, one more scene | clock, made | processor, made | clock, found | processor, found |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(cost.by for cost in costs):
        made, found = (cost for cost in costs if cost.by == name)
        cells = (made.wall_ms, made.cpu_ms, found.wall_ms, found.cpu_ms)
        lines.append(f"| {name} | {' | '.join(f'{value:.0f} ms' for value in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
