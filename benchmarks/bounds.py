"""Roofline of each stage: its minimum of operations and bytes against the rates of this machine.

    python -m benchmarks.bounds                      the classic U-Net, base 16 and 64; two minutes on 2 cores
    python -m benchmarks.bounds --device cuda --side 20480 --json bounds.json

Measured first: how fast the machine multiplies matrices in the network's number format (the better of a matrix product
and a convolution), and how fast it copies memory larger than its caches, both on all of its cores. A stage cannot be
faster than its operations at the first rate, nor than its bytes at the second. The measured rate comes from a run from
file to mosaic: thread seconds of the stage, divided by the cores, as if nothing else ran. On CUDA only the bounds are
printed; `benchmarks.stages` measures.

A stage's bytes are those it must read and write once when nothing stays in a cache from the stage before: of the
network, the input and output of every convolution, pooling and upsampling.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.sampling import sampled
from benchmarks.subjects import BANDS, classic_unet, write_classic_unet, write_scene
from benchmarks.whole_path import file_to_mosaic
from pipeline.concurrency import usable_cpus
from pipeline.inference import TilingSpec
from pipeline.inference.cpu_workers import torch_num_threads
from pipeline.model import load_predictor

SIDES = {16: 6_144, 64: 2_048}
"""Base channels -> scene side, px."""
TRIALS = 8
FORMATS = {"mixed": torch.bfloat16, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Precision -> number format of most layers; float32 for all others."""
SAMPLE_BYTES = 2
"""Of a stored sample: uint16."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Peak rates of all cores, or of the device, per second."""

    operations: float
    """Floating-point operations of matrix products per second; a multiplication and an addition are two."""
    bytes: float
    """Bytes read and written per second by a copy."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Minimum work of a stage, and its measured time."""

    name: str
    """As in `benchmarks.sampling`."""
    per: str
    """`tile` or `scene`: the pixels that are counted."""
    operations: float
    """Fewest floating-point operations per pixel."""
    bytes: float
    """Fewest bytes read and written per pixel."""
    bound_mpx_s: float
    """Pixels per second at the machine's rates, millions."""
    reached_mpx_s: float | None
    """Pixels per second if all cores did this alone, millions; None where it was not measured."""


def main() -> None:
    """Measure the machine, then the stages; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, nargs="+", default=sorted(SIDES), help="channels of the first level")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--side", type=int, help="scene side, px")
    parser.add_argument("--device", default="cpu", help="a torch device")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="where scenes and results go for the time being")
    parser.add_argument("--toy", action="store_true", help="a tiny scene, network and matrices")
    arguments = parser.parse_args()
    if arguments.toy:
        arguments.base, arguments.tile, arguments.side = [8], 64, 256
    device = torch.device(arguments.device)
    figures = {}
    for base in arguments.base:
        reached, precision = run_stages(base, arguments) if device.type == "cpu" else ({}, torch.float16)
        machine = measure_machine(device, precision, toy=arguments.toy)
        rows = stages(base, machine, precision, arguments.tile, reached)
        figures[base] = {"machine": asdict(machine), "stages": [asdict(row) for row in rows]}
        print(table(base, machine, precision, rows), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def measure_machine(device: torch.device, dtype: torch.dtype, *, toy: bool) -> Machine:
    """The best of some trials of either, with matrices and memory for every core."""
    side, count = (64, 2**16) if toy else (8192, 2**30) if device.type == "cuda" else (2048, 2**27)
    workers = usable_cpus() if device.type == "cpu" else 1
    factors = torch.randn(side, side, device=device).to(dtype)
    features = torch.randn(1, 256, side // 16, side // 16, device=device).to(dtype, memory_format=torch.channels_last)
    weights = torch.randn(256, 256, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    products = {
        2 * side**3: lambda: factors @ factors,
        2 * features.numel() * weights[0].numel(): lambda: nn.functional.conv2d(features, weights, padding=1),
    }
    sources = [torch.ones(count, dtype=torch.uint8, device=device) for _ in range(workers)]
    targets = [torch.empty_like(source) for source in sources]
    copies = [partial(target.copy_, source) for target, source in zip(targets, sources, strict=True)]
    return Machine(
        operations=max(work * workers / _best_s(device, [product] * workers) for work, product in products.items()),
        bytes=2 * count * workers / _best_s(device, copies),
    )


def _best_s(device: torch.device, workers: Sequence[Callable[[], Tensor]]) -> float:
    """Seconds in which every worker does its work once: on a CPU, those of the slowest thread."""

    @torch.inference_mode()
    def seconds_of(work: Callable[[], Tensor]) -> float:
        if device.type == "cpu":
            torch.set_num_threads(1)  # a thread's first operation would be shared out before it learns its number
        clock = time.perf_counter if device.type == "cuda" else time.thread_time
        start = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock() - start

    with torch_num_threads(1), ThreadPoolExecutor(len(workers)) as pool:
        return min(max(pool.map(seconds_of, workers)) for _ in range(TRIALS))


def run_stages(base: int, arguments: argparse.Namespace) -> tuple[Mapping[str, float], torch.dtype]:
    """Pixels per second of each stage on all cores, millions, from a sampled run; and most layers' number format."""
    side = arguments.side or SIDES.get(base, min(SIDES.values()))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place = Path(folder)
        write_classic_unet(place / "model.safetensors", base)
        write_scene(place / "scene.tif", side)
        (place / "out").mkdir()
        predictor = load_predictor(place / "model.safetensors", arguments.device)
        with sampled() as sampler:
            times = file_to_mosaic(
                place / "scene.tif", predictor, place / "out", tiling=TilingSpec(tile_size=arguments.tile)
            )
    cores = usable_cpus()
    pixels = {"tile": times.tile_mpx, "scene": times.scene_mpx}
    per = {name: pixels[PER.get(name, "scene")] for name in sampler.seconds}
    dtype = FORMATS.get(times.precision, torch.float32)
    return {name: cores * per[name] / s for name, s in sampler.seconds.items()}, dtype


PER = {"cut": "tile", "network": "tile", "blend, quantise": "tile"}
"""Stages that meet pixels under overlaps as often as they are computed; the others meet each pixel once."""


def stages(base: int, machine: Machine, dtype: torch.dtype, tile: int, reached: Mapping[str, float]) -> list[Stage]:
    """The table's rows, in the order of the path."""
    network_operations, network_values = network_work(base, tile)
    samples = len(BANDS) * SAMPLE_BYTES
    needs = {
        "decode": (0.0, 1.5 * samples),  # compressed, to about half, and decoded
        "cut": (2.0 * len(BANDS), samples + len(BANDS) * dtype.itemsize),
        "network": (network_operations, network_values * dtype.itemsize),
        "blend, quantise": (3.0, 4 + 2 * 4 + (4 + 1)),  # probability; running mean; mean to level
        "classify, encode": (1.0, 2 * 1 + 0.5 * 2),  # level to class; both, compressed
    }
    return [
        Stage(
            name=name,
            per=PER.get(name, "scene"),
            operations=operations,
            bytes=size,
            bound_mpx_s=min(machine.operations / operations if operations else float("inf"), machine.bytes / size)
            / 1e6,
            reached_mpx_s=reached.get(name),
        )
        for name, (operations, size) in needs.items()
    ]


@torch.no_grad()
def network_work(base: int, tile: int) -> tuple[float, float]:
    """Operations, and values read or written, per pixel of a tile, layer by layer with batch norm and ReLU fused."""
    work = [0.0, 0.0]

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            work[0] += 2 * output.numel() * layer.weight[0].numel()
        elif isinstance(layer, nn.ConvTranspose2d):
            work[0] += 2 * inputs[0].numel() * layer.weight[0].numel()
        work[1] += inputs[0].numel() + output.numel()

    network = classic_unet(base).to("meta")
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.MaxPool2d):
            layer.register_forward_hook(count)
    network(torch.empty((1, len(BANDS), tile, tile), device="meta"))
    return work[0] / tile**2, work[1] / tile**2


def table(base: int, machine: Machine, dtype: torch.dtype, rows: list[Stage]) -> str:
    """Markdown."""
    lines = [
        f"\nbase {base}: {machine.operations / 1e12:.3g} TFLOP/s in {str(dtype).removeprefix('torch.')}, "
        f"{machine.bytes / 1e9:.3g} GB/s copied\n",
        "| stage | pixels of | operations per px | bytes per px | bound, Mpx/s | reached, Mpx/s | of it |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        reached = "" if row.reached_mpx_s is None else f"{row.reached_mpx_s:,.3g}"
        share = "" if row.reached_mpx_s is None else f"{row.reached_mpx_s / row.bound_mpx_s:.0%}"
        lines.append(
            f"| {row.name} | {row.per} | {row.operations:,.0f} | {row.bytes:,.0f} | {row.bound_mpx_s:,.3g} "
            f"| {reached} | {share} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
