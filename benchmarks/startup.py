"""What it takes to begin: the command's help, the import of the library, and the first strip of a run.

    python -m benchmarks.startup                     prints three tables; a minute
    python -m benchmarks.startup --base 16 --json startup.json

The run is `scenemill segment` on a CPU, with the classic U-Net and a scene of 4096 x 4096 px; it is stopped when the
network gets the first tile of the first strip. The flow is `segment-catalog` on a scene of 512 x 512 px without a
server, so that Prefect starts a temporary one. Every figure is the best of several processes. Steps are taken from
the interpreter's trace of calls, so nothing of the product is replaced; importing is done beforehand, in the
order in which a run would meet it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
MAX_HELP_S, MAX_IMPORT_S, MAX_RUN_S = 0.5, 0.3, 3.0
"""The goals."""
IMPORTS = {
    "run": ("torch", "rasterio", "pipeline.cli.app", "pipeline.run.scenes", "pipeline.segment"),
    "flow": ("prefect", "torch", "rasterio", "flows.segment"),
}
"""Kind of run -> what it imports, the slow ones by themselves."""
STEPS = {
    "read_catalog": "start: settings, and the server of a flow",
    "load_predictor": "load the checkpoint",
    "segment_entry": "start the scene's task",
    "describe_scene": "describe the scene",
    "choose_precision": "check the precision",
    "infer_stack": "start the region",
    "read_strips": "read the first strip",
}
"""Function of ours -> the step that ends with it, in the order of a run."""
BEFORE = ("read_catalog", "segment_entry", "infer_stack")
"""Those whose step ends when they are called, not when they return."""
QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "ERROR"}

Moments = list[tuple[str, float]]
"""What had just ended, and seconds since the process was asked for, in order."""


def main() -> None:
    """Measure, print, and say what is over its goal."""
    arguments = _parser().parse_args()
    if arguments.child:
        begin(arguments.child, arguments.paths, arguments.since)
        return
    repeats = 0 if arguments.toy else arguments.repeats
    help_s = best_of(repeats, [Path(sys.executable).with_name("scenemill"), "--help"])
    bare_s = best_of(repeats, [sys.executable, "-c", "pass"])
    import_s = best_of(repeats, [sys.executable, "-c", "import pipeline, sys; assert 'torch' not in sys.modules"])
    figures: dict[str, Any] = {"python_s": bare_s, "help_s": help_s, "import_s": import_s}
    print(small_table(figures))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        write_subjects(Path(folder), base=8 if arguments.toy else arguments.base, toy=arguments.toy)
        for kind in ("run",) if arguments.toy else ("run", "flow"):
            figures[kind] = first_strip(kind, Path(folder), repeats)
            print(f"\n{steps_table(kind, figures[kind])}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, default=64, help="channels of the network's first level")
    parser.add_argument("--repeats", type=int, default=3, help="processes of which the best counts")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="where scene and results go for the time being")
    parser.add_argument("--toy", action="store_true", help="once, with a tiny scene and network, without the flow")
    parser.add_argument("--child", choices=tuple(IMPORTS), help=argparse.SUPPRESS)
    parser.add_argument("--since", type=float, help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    return parser


def best_of(repeats: int, command: list[Any]) -> float:
    """Seconds of the fastest of several runs."""
    seconds = []
    for _ in range(max(repeats, 1)):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def write_subjects(folder: Path, *, base: int, toy: bool) -> None:
    """A scene for either kind of run, and the checkpoint."""
    from benchmarks.subjects import write_classic_unet, write_scene

    for kind, side in {"run": 4096, "flow": 512}.items():
        write_scene(folder / f"{kind}.tif", 256 if toy else side)
    write_classic_unet(folder / "model.safetensors", base)


def first_strip(kind: str, folder: Path, repeats: int) -> Moments:
    """The moments of the fastest of some processes; one before them warms the file cache, and counts if it is alone."""
    tries = [_one_start(kind, folder) for _ in range(repeats + 1)]
    return min(tries[-max(repeats, 1) :], key=lambda moments: moments[-1][1])


def _one_start(kind: str, folder: Path) -> Moments:
    out = Path(tempfile.mkdtemp(dir=folder))
    paths = [folder / f"{kind}.tif", folder / "model.safetensors", out, out / "moments.json"]
    environment = {**os.environ, **QUIET, "PREFECT_HOME": str(folder / "prefect")}
    command = [sys.executable, "-m", "benchmarks.startup", "--child", kind, "--since", str(time.time()), *paths]
    subprocess.run(command, check=True, cwd=ROOT, env=environment)
    return [(name, at) for name, at in json.loads(paths[-1].read_text())]


def begin(kind: str, paths: list[str], since: float) -> None:
    """Import and run, in a subprocess. The command stops at the first tile; the flow must end its server."""
    scene, model, out, moments = paths
    trace = Trace(since, Path(moments), stop=kind == "run")
    trace.note("start Python")
    for name in IMPORTS[kind]:
        __import__(name)
        trace.note(f"import {name}")
    threading.setprofile(trace)
    sys.setprofile(trace)
    if kind == "run":
        from pipeline.cli import main as scenemill

        scenemill(["segment", scene, "--model", model, "--out", out, "--set", "inference.device=cpu"])
    else:
        from flows.segment import segment_catalog

        segment_catalog(scenes=[scene], model=model, out=out, device="cpu")


class Trace:
    """Follows a run by the names of the functions it calls, up to the first tile of the first strip."""

    def __init__(self, since: float, target: Path, *, stop: bool) -> None:
        self._since, self._target, self._stop = since, target, stop
        self._moments: Moments = []
        self._seen: set[str] = set()
        self._network: CodeType | None = None

    def note(self, name: str) -> None:
        """Record that a step has just ended."""
        self._moments.append((name, time.time() - self._since))

    def __call__(self, frame: FrameType, event: str, value: object) -> None:
        """What the interpreter calls at every call and return."""
        code = frame.f_code
        name = code.co_name
        if event == "call" and code is self._network and "read_strips" in self._seen:
            self._end()
        elif event == "return" and name == "runnable" and value is not None:
            self._network = type(value).__call__.__code__
        elif name in STEPS and name not in self._seen and event == ("call" if name in BEFORE else "return"):
            self._seen.add(name)
            self.note(STEPS[name])

    def _end(self) -> None:
        sys.setprofile(None)
        threading.setprofile(None)
        self._network = None
        self.note("hand the first tile to the network")
        self._target.write_text(json.dumps(self._moments))
        if self._stop:
            os._exit(0)


def small_table(figures: Mapping[str, float]) -> str:
    """Markdown: help and import against their goals."""
    return "\n".join(
        [
            "| what | seconds | goal |",
            "|---|---:|---:|",
            f"| `python -c pass` | {figures['python_s']:.3f} | |",
            f"| `scenemill --help` | {figures['help_s']:.3f} | {MAX_HELP_S} |",
            f"| `import pipeline`, without torch | {figures['import_s']:.3f} | {MAX_IMPORT_S} |",
        ]
    )


def steps_table(kind: str, moments: Moments) -> str:
    """Markdown: each step's own seconds, and the sum."""
    goal = f"{MAX_RUN_S}" if kind == "run" else ""
    lines = [f"| {kind}: until the first strip starts | seconds | goal |", "|---|---:|---:|"]
    before = 0.0
    for name, at in moments:
        lines.append(f"| {name} | {at - before:.3f} | |")
        before = at
    return "\n".join([*lines, f"| **all** | **{before:.3f}** | {goal} |"])


if __name__ == "__main__":
    main()
