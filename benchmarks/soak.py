"""Soak of a run: memory, file handles and threads over many small scenes, of which one in twenty is bad.

    python -m benchmarks.soak                        1,000 scenes by the library, 1,000 by the flow; 10 minutes
    python -m benchmarks.soak --scenes 200 --ways library
    python -m benchmarks.soak --json soak.json

Scenes differ in pixel type, layout, compression, CRS, validity, bands and size; `benchmarks.soak_scenes` draws them.
Each way runs all of them in one process, a flow with its server in another. The exit code is 1 unless

    results   every good scene is done and its mask equals numpy's, every bad one has failed, and no other
    handles   the process has no more open files, and no more threads, at the end than after the warm-up
    memory    grows by less than `FLAT_MIB` for 1,000 scenes after the warm-up, the first third of the run; the
              allocator needs some hundred scenes to be warm, so shorter runs do not tell

Handles and threads are counted when a scene ends. Where the next scene is in progress then, the fewest of a tenth of
the run count. Memory is the resident set; its growth is the slope of a line through all scenes after the warm-up.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio

from benchmarks.prefect_server import ROOT, prefect_server
from benchmarks.soak_scenes import SoakScene, write_model, write_scene

WAYS = ("library", "flow")
BAD_EVERY = 20
"""One scene of so many is bad."""
WARM_UP = 1 / 3
"""Share of the run after which memory must be flat."""
FLAT_MIB: Mapping[str, float] = {"library": 32, "flow": 80}
"""Growth of memory for 1,000 scenes that is still called flat; Prefect keeps the state of every task of a run."""
MIN_SCENES = 600
"""Scenes of a run whose memory is judged."""
SETTINGS: Mapping[str, Any] = {
    "inference": {"device": "cpu", "precision": "float32"},
    "tiling": {"tile_size": 128, "overlap": 16},
    "run": {"retry_delay_s": 0.1},
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The process when a scene ends."""

    second: float
    """Since the first sample."""
    resident_mib: float
    """Resident set."""
    handles: int
    """Open file descriptors."""
    threads: int
    """Threads."""


@dataclass(kw_only=True)
class Probe:
    """Samples of this process, one for each call."""

    samples: list[Sample] = field(default_factory=list)
    """In order."""
    process: psutil.Process = field(default_factory=psutil.Process)
    """The sampled process."""
    start: float = field(default_factory=time.perf_counter)
    """Of the clock."""

    def __call__(self, *_: object) -> None:
        """Take a sample."""
        with self.process.oneshot():
            sample = Sample(
                second=time.perf_counter() - self.start,
                resident_mib=self.process.memory_info().rss / 2**20,
                handles=self.process.num_fds(),
                threads=self.process.num_threads(),
            )
        self.samples.append(sample)


@dataclass(frozen=True, kw_only=True)
class Soak:
    """Figures of one way; `mib` are those of the resident set."""

    way: str
    """`library` or `flow`."""
    scenes: int
    """How many ran."""
    failed: int
    """How many of them failed."""
    scene_ms: float
    """Milliseconds of the clock for each scene after the first."""
    warm_mib: float
    """After the warm-up."""
    end_mib: float
    """At the end."""
    growth_mib: float
    """Slope after the warm-up, for 1,000 scenes."""
    handles: tuple[int, int]
    """After the warm-up, and at the end."""
    threads: tuple[int, int]
    """After the warm-up, and at the end."""
    wrong: tuple[str, ...]
    """Scenes with another result than expected."""

    @property
    def faults(self) -> list[str]:
        """What is not as it must be."""
        found = [*self.wrong]
        if self.scenes >= MIN_SCENES and self.growth_mib > FLAT_MIB[self.way]:
            found.append(
                f"memory grows by {self.growth_mib:.0f} MiB for 1,000 scenes, {FLAT_MIB[self.way]:.0f} is flat"
            )
        for name, (warm, end) in (("open files", self.handles), ("threads", self.threads)):
            if end > warm:
                found.append(f"{name}: {warm} after the warm-up, {end} at the end")
        return [f"{self.way}: {fault}" for fault in found]


def main() -> int:
    """Draw the scenes, run them each way, and print the table."""
    arguments = _parser().parse_args()
    if arguments.child:
        probe = Probe()
        RUNS[arguments.child](arguments.list, arguments.model, arguments.out, probe)
        arguments.json.write_text(json.dumps([asdict(sample) for sample in probe.samples]))
        return 0
    count = 40 if arguments.toy else arguments.scenes
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        scenes, listed = write_scenes(folder, count)
        model = write_model(folder)
        soaks = []
        for way in arguments.ways:
            samples = run_apart(way, listed, model, folder / way)
            soaks.append(measure(way, samples, wrong_results(scenes, folder / way)))
    print(table(soaks))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(soak) for soak in soaks], indent=2) + "\n")
    faults = [fault for soak in soaks for fault in soak.faults]
    print("\n".join(faults))
    return int(bool(faults))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=1_000)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="folder for scenes, results and the server's database")
    parser.add_argument("--toy", action="store_true", help="40 scenes, only to see that it runs")
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--list", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser


def write_scenes(folder: Path, count: int) -> tuple[list[SoakScene], Path]:
    """The scenes, and the file that lists them."""
    place = folder / "scenes"
    place.mkdir()
    scenes = [write_scene(place, number, bad=number % BAD_EVERY == BAD_EVERY // 2) for number in range(count)]
    listed = folder / "scenes.txt"
    listed.write_text("".join(f"{scene.path}\n" for scene in scenes))
    return scenes, listed


def run_apart(way: str, listed: Path, model: Path, out: Path) -> list[Sample]:
    """Run all scenes in a process of their own; samples of that process."""
    figures = out.with_suffix(".json")
    command = [sys.executable, "-m", "benchmarks.soak", "--child", way, "--json", str(figures)]
    with ExitStack() as opened:
        environment = None
        if way == "flow":
            server = opened.enter_context(prefect_server(out.with_suffix(".server")))
            environment = {**server.environment, "PREFECT_LOGGING_LEVEL": "CRITICAL"}
        subprocess.run(
            [*command, "--list", str(listed), "--model", str(model), "--out", str(out)],
            cwd=ROOT, env=environment, check=True,
        )  # fmt: skip
    return [Sample(**sample) for sample in json.loads(figures.read_text())]


def run_library(listed: Path, model: Path, out: Path, probe: Callable[..., None]) -> None:
    """Run the scenes by the library, in this thread."""
    from pipeline.catalog import read_catalog
    from pipeline.config import SegmentSpec, build_settings
    from pipeline.run import load_run_models, segment_catalog

    spec = build_settings(SegmentSpec, SETTINGS, place="the soak")
    entries = [*read_catalog([str(listed)], spec.catalog, spec.reading)]
    for report in segment_catalog(entries, out, predictor=load_run_models([model], spec), spec=spec):
        probe(report)


def run_flow(listed: Path, model: Path, out: Path, probe: Callable[..., None]) -> None:
    """Run the scenes by the flow, two at a time."""
    from flows import segment
    from pipeline.config import SegmentSpec, build_settings
    from pipeline.results import SceneReport

    class Sampled(segment.RunArtifacts):
        """Artifacts that are sampled when a scene has ended."""

        def add(self, report: SceneReport) -> None:
            super().add(report)
            probe(report)

    logging.disable(logging.CRITICAL)  # each bad scene is an error of its task
    segment.RunArtifacts = Sampled  # type: ignore[misc]
    spec = build_settings(SegmentSpec, SETTINGS, place="the soak")
    segment.segment_catalog([str(listed)], str(model), str(out), spec, return_state=True)


RUNS: Mapping[str, Callable[[Path, Path, Path, Callable[..., None]], None]] = {
    "library": run_library,
    "flow": run_flow,
}


def wrong_results(scenes: Sequence[SoakScene], out: Path) -> list[str]:
    """What the run made wrongly: one line for each such scene."""
    rows = {row["scene"]: row for row in json.loads((out / "run.json").read_text())["scenes"]}
    found = []
    for scene in scenes:
        row = rows.pop(scene.path.stem, {"status": "not listed", "reason": None})
        fault = _fault_of(scene, row, out)
        if fault is not None:
            found.append(f"{scene.path.name} ({scene.kind}): {fault}")
    return [*found, *(f"{name}: listed, but was not asked for" for name in rows)]


def _fault_of(scene: SoakScene, row: Mapping[str, Any], out: Path) -> str | None:
    """What is wrong with the result of a scene, None if nothing."""
    due = "failed" if scene.mask is None else "done"
    if row["status"] != due:
        return f"{row['status']} and not {due}: {row['reason']}"
    if scene.mask is None:
        if row["reason"].startswith("unexpected"):
            return str(row["reason"])
        return "a refused scene has a folder" if (out / scene.path.stem).exists() else None
    with rasterio.open(out / scene.path.stem / "mask.tif") as dataset:
        made = dataset.read(1)
    if made.shape != scene.mask.shape:
        return f"the mask is {made.shape}, not {scene.mask.shape}"
    different = int(((made != scene.mask) & (scene.mask != 254)).sum())
    return f"{different} px of {made.size} differ" if different else None


def measure(way: str, samples: Sequence[Sample], wrong: Sequence[str]) -> Soak:
    """Figures of a run; the warm-up is left out of all that must be flat."""
    warm = samples[int(len(samples) * WARM_UP) :]
    window = max(1, len(samples) // 10)
    first, last = warm[:window], warm[-window:]
    memory = [sample.resident_mib for sample in warm]
    return Soak(
        way=way,
        scenes=len(samples),
        failed=sum(number % BAD_EVERY == BAD_EVERY // 2 for number in range(len(samples))),
        scene_ms=1e3 * (samples[-1].second - samples[0].second) / max(1, len(samples) - 1),
        warm_mib=memory[0],
        end_mib=memory[-1],
        growth_mib=1e3 * float(np.polyfit(range(len(memory)), memory, 1)[0]),
        handles=(min(each.handles for each in first), min(each.handles for each in last)),
        threads=(min(each.threads for each in first), min(each.threads for each in last)),
        wrong=tuple(wrong),
    )


def table(soaks: Sequence[Soak]) -> str:
    """Markdown: a row for each way."""
    lines = [
        "| scenes by | scenes, of them bad | wrong | clock, a scene | memory warm, at the end | growth, 1,000 scenes "
        "| open files | threads |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for soak in soaks:
        cells = (
            f"{soak.scenes:,}, {soak.failed}", len(soak.wrong), f"{soak.scene_ms:.0f} ms",
            f"{soak.warm_mib:.0f}, {soak.end_mib:.0f} MiB", f"{soak.growth_mib:+.1f} MiB",
            "{} to {}".format(*soak.handles), "{} to {}".format(*soak.threads),
        )  # fmt: skip
        lines.append(f"| {soak.way} | {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
