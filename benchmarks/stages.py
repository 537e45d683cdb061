"""Profile of a run from file to mosaic: time of the threads, and of the device.

    python -m benchmarks.stages --base 64                          one scene, after a first one
    python -m benchmarks.stages --base 64 --device cuda --side 20480 --json stages.json

Threads are sampled (`benchmarks/sampling.py`): seconds of all threads together, waiting left out. Of a CUDA device, the
torch's profiler reports when kernels and copies ran: *busy* is the time during which at least one kernel ran.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.sampling import sampled
from benchmarks.subjects import write_classic_unet, write_scene
from benchmarks.whole_path import Shape, batch_shape, file_to_mosaic
from pipeline.inference import TilingSpec
from pipeline.model import load_predictor
from pipeline.model.predictor import BatchShape, LoadedPredictor

KINDS = {"gpu_memcpy": "copies", "gpu_memset": "fills", "kernel": "kernels"}
"""Category in the profiler's trace -> what it is called here."""
CONVOLUTION = ("conv", "gemm", "xmma", "cutlass", "cudnn", "implicit", "nvjet")
"""Parts of the names of kernels that multiply matrices."""
MANY = 10**7
"""Batches that repay compiling any network."""


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """One run."""

    base: int
    """Channels of the network's first level."""
    wall_s: float
    """File to mosaic."""
    tile_mpx_s: float
    """Tile pixels per second, millions."""
    threads_s: Mapping[str, float]
    """Stage -> seconds of all threads together."""
    device_s: Mapping[str, float]
    """Kind of work -> seconds on the device, `busy` for all kernels together; empty without one."""


def main() -> None:
    """Run, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, default=64, help="channels of the first level")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--side", type=int, default=2048, help="scene side, px")
    parser.add_argument("--device", default="cpu", help="a torch device")
    parser.add_argument("--compiled", action="store_true", help="compile on CUDA, repaid or not")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="where scenes and results go for the time being")
    parser.add_argument("--toy", action="store_true", help="a tiny scene and network")
    arguments = parser.parse_args()
    if arguments.toy:
        arguments.base, arguments.tile, arguments.side = 8, 64, 256
    times = measure(arguments)
    print(tables(times))
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(times), indent=2) + "\n")


def measure(arguments: argparse.Namespace) -> StageTimes:
    """One scene under the sampler and the profiler, after one of the same kind."""
    tiling = TilingSpec(tile_size=arguments.tile)
    on_device = torch.device(arguments.device).type == "cuda"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place = Path(folder)
        write_classic_unet(place / "model.safetensors", arguments.base)
        write_scene(place / "scene.tif", arguments.side)
        predictor = load_predictor(place / "model.safetensors", arguments.device)
        if arguments.compiled:
            compile_for(batch_shape(place / "scene.tif", predictor, tiling), predictor)
        for name in ("warm", "out"):
            (place / name).mkdir()
        if on_device:
            file_to_mosaic(place / "scene.tif", predictor, place / "warm", tiling=tiling)
        profiler: AbstractContextManager[Any] = (
            profile(activities=[ProfilerActivity.CUDA]) if on_device else nullcontext()
        )
        with profiler, sampled() as sampler:
            times = file_to_mosaic(place / "scene.tif", predictor, place / "out", tiling=tiling)
        device_s = {}
        if isinstance(profiler, profile):
            profiler.export_chrome_trace(str(place / "trace.json"))
            device_s = device_seconds(json.loads((place / "trace.json").read_text())["traceEvents"])
    return StageTimes(
        base=arguments.base,
        wall_s=times.seconds,
        tile_mpx_s=times.tile_mpx / times.seconds,
        threads_s=sampler.seconds,
        device_s=device_s,
    )


def compile_for(shape: Shape, predictor: LoadedPredictor) -> None:
    """Have the network compiled in the precision that the device prefers."""
    predictor.runnable(BatchShape(precision="float16", batches=MANY, shape=shape))


def device_seconds(events: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Seconds on the device by kind, from the events of a Chrome trace, whose times are microseconds."""
    seconds: defaultdict[str, float] = defaultdict(float)
    kernels = []
    for event in events:
        if event.get("cat") not in KINDS or "dur" not in event:
            continue
        kind = KINDS[event["cat"]]
        if kind == "kernels":
            kernels.append((event["ts"], event["ts"] + event["dur"]))
            name = event["name"].lower()
            kind = "matrix kernels" if any(part in name for part in CONVOLUTION) else "other kernels"
        seconds[kind] += event["dur"] / 1e6
    return {**seconds, "busy": _union(kernels) / 1e6}


def _union(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of some intervals."""
    length, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        length += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return length


def tables(times: StageTimes) -> str:
    """Markdown: threads, then the device."""
    lines = [
        f"base {times.base}: {times.wall_s:.2f} s, {times.tile_mpx_s:.3g} tile Mpx/s",
        "",
        "| threads at | seconds, all threads | of the wall time |",
        "|---|---:|---:|",
    ]
    rows = [*times.threads_s.items()]
    lines += [f"| {stage} | {seconds:.2f} | {seconds / times.wall_s:.0%} |" for stage, seconds in rows]
    if times.device_s:
        lines += ["", "| device at | seconds | of the wall time |", "|---|---:|---:|"]
        lines += [f"| {kind} | {s:.3f} | {s / times.wall_s:.0%} |" for kind, s in times.device_s.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
