"""Speed and error of each number format and variant of the bare network, against plain float32.

    python -m benchmarks.precision                          the classic U-Net, base 16 and 64; 5 minutes on 2 cores
    python -m benchmarks.precision --device cuda            all forms that CUDA knows; compiling takes a minute more
    python -m benchmarks.precision --base 16 --tile 1024 --json precision.json

The first row is the network as torch makes it: float32, default memory layout, batch norm as a layer, torch's own
threads, no TF32. Each row adds the change in its name to the rows above it; the last is
what `load_predictor` hands out. Tiles lie on the device in float32; each form brings them to its own format and returns
probabilities. *Change* is the largest of a probability against the first row. Weights are random; see `subjects`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.subjects import classic_unet, model_input, write_classic_unet
from pipeline.concurrency import usable_cpus
from pipeline.inference import disable_malloc_trim
from pipeline.inference.cpu_workers import BATCHES_PER_WORKER, map_in_workers
from pipeline.model import ModelCard, load_predictor
from pipeline.model.predictor import BatchShape, activate
from pipeline.model.predictor.compiled import CompiledNetwork
from pipeline.model.predictor.optimize import (
    Arithmetic,
    compile_network,
    converted,
    fold_batch_norm,
    optimize_network,
    pin_convolution_kernels,
)

COMPARED = 4
"""Tiles on which probabilities are compared."""
MANY = 10**7
"""Batches that repay compiling any network."""
CUDA_BATCH = 16

Run = Callable[[Tensor], Tensor]
"""`(N, bands, H, W)` float32 tiles on the device -> probabilities."""


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to run the network."""

    name: str
    """What is new in it."""
    run: Run
    """Runs it."""
    workers: bool = False
    """True: on a CPU, batches side by side, each on one thread; False: torch's own threads share each batch."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One form of one network."""

    base: int
    """Channels of the network's first level."""
    tile: int
    """Side of a tile, px."""
    batch: int
    """Tiles per call."""
    form: str
    """What is new in it."""
    mpx_s: float
    """Tile pixels per second, millions."""
    core_s_per_mpx: float
    """CPU seconds of all threads for a million of them."""
    times: float
    """Pixels per second as a multiple of the first form's."""
    change: float
    """Largest change of a probability against the first form."""


def main() -> None:
    """Measure every form of every network and print the table."""
    arguments = _parser().parse_args()
    if arguments.toy:
        arguments.base, arguments.tile, arguments.seconds = [8], 64, 0.0
    rows = [row for base in arguments.base for row in measure(base, arguments)]
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, nargs="+", default=[16, 64], help="channels of the first level")
    parser.add_argument("--tile", type=int, default=512, help="side of a tile, px")
    parser.add_argument("--device", default="cpu", help="a torch device")
    parser.add_argument("--batch", type=int, help="tiles per call; 1 on a CPU, 16 on CUDA")
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="time for each of two runs, of which the best counts"
    )
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--toy", action="store_true", help="a tiny network, a batch of each form")
    return parser


def measure(base: int, arguments: argparse.Namespace) -> Iterator[Measurement]:
    """Every form of the network of a size."""
    device = torch.device(arguments.device)
    batch = arguments.batch or (CUDA_BATCH if device.type == "cuda" else 1)
    tiles, compared = (model_input(count, arguments.tile).to(device) for count in (batch, COMPARED))
    first, expected = 0.0, torch.empty(0)
    with tempfile.TemporaryDirectory() as folder:
        for form in forms(base, device, (*tiles.shape,), Path(folder)):
            probabilities = torch.cat([form.run(compared[k : k + batch]).cpu() for k in range(0, COMPARED, batch)])
            mpx_s, core_s = max(speed(form, tiles, arguments.seconds) for _ in range(2))
            if not first:
                first, expected = mpx_s, probabilities
            yield Measurement(
                base=base,
                tile=arguments.tile,
                batch=batch,
                form=form.name,
                mpx_s=mpx_s,
                core_s_per_mpx=core_s,
                times=mpx_s / first,
                change=float((probabilities - expected).abs().max()),
            )
            print(f"base {base}, {form.name}: {mpx_s:.3g} Mpx/s, {mpx_s / first:.1f} times", flush=True)


def speed(form: Form, tiles: Tensor, seconds: float) -> tuple[float, float]:
    """Millions of tile pixels per second, and CPU seconds for a million, over about this number of seconds."""
    workers = usable_cpus() if form.workers else 1
    once = elapsed(form, tiles, workers)
    count = workers * max(1, round(seconds / once))
    core_s, mpx = time.process_time(), count * tiles.shape[0] * tiles.shape[2] * tiles.shape[3] / 1e6
    wall = elapsed(form, tiles, count)
    return mpx / wall, (time.process_time() - core_s) / mpx


def elapsed(form: Form, tiles: Tensor, count: int) -> float:
    """Wall seconds for these batches."""
    on_cuda, cpus = tiles.device.type == "cuda", usable_cpus()
    if on_cuda:
        torch.cuda.synchronize(tiles.device)
    start = time.perf_counter()
    if form.workers:
        results = map_in_workers(lambda _: form.run(tiles), range(count), workers=cpus, ahead=BATCHES_PER_WORKER * cpus)
        deque(results, maxlen=0)
    else:
        for _ in range(count):
            form.run(tiles)
    if on_cuda:
        torch.cuda.synchronize(tiles.device)
    return time.perf_counter() - start


def forms(base: int, device: torch.device, shape: tuple[int, ...], folder: Path) -> Iterator[Form]:
    """All forms that a device knows, the plain network first, the product's own last."""
    network, card = classic_unet(base), write_classic_unet(folder / "model.safetensors", base)
    network.to(device)
    trial = model_input(1, min(128, shape[-1]))

    def copied(arithmetic: Arithmetic) -> Run:
        return CompiledNetwork(converted(network, arithmetic), card, arithmetic)

    def fused(arithmetic: Arithmetic) -> Run:
        return CompiledNetwork(optimize_network(network, arithmetic, trial), card, arithmetic)

    yield Form(
        name="float32, default layout",
        run=copied(Arithmetic(device=device, layout=torch.contiguous_format, tf32=False)),
    )
    if device.type == "cuda":
        yield from _on_cuda(network, card, device, copied, fused)
    else:
        yield from _on_cpu(network, device, copied, fused)
    predictor = load_predictor(folder / "model.safetensors", device=str(device))
    precision = predictor.check_precision(model_input(1, shape[-1])).precision
    batch = (shape[0], shape[1], shape[2], shape[3])
    ready = predictor.runnable(
        BatchShape(precision=precision, batches=MANY if device.type == "cuda" else 1, shape=batch)
    )
    yield Form(name=f"as loaded: {precision}", run=ready, workers=device.type == "cpu")


Make = Callable[[Arithmetic], Run]


def _on_cpu(network: torch.nn.Module, device: torch.device, copied: Make, fused: Make) -> Iterator[Form]:
    float32, bfloat16 = (Arithmetic(device=device, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    mixed = replace(bfloat16, first_blocks_dtype=torch.float32)
    yield Form(name="float32, channels_last", run=copied(float32))
    fold_batch_norm(network)
    pin_convolution_kernels(network)
    yield Form(name="batch norm folded", run=copied(float32))
    yield Form(name="convolution + ReLU fused", run=fused(float32))
    yield Form(name="bfloat16, not fused", run=copied(bfloat16))
    yield Form(name="bfloat16, fused", run=fused(bfloat16))
    yield Form(name="mixed, fused", run=fused(mixed))
    disable_malloc_trim()
    yield Form(name="float32, heap kept", run=fused(float32))
    yield Form(name="bfloat16, heap kept", run=fused(bfloat16))
    yield Form(name="float32 in worker threads", run=fused(float32), workers=True)
    yield Form(name="mixed in worker threads", run=fused(mixed), workers=True)
    yield Form(name="bfloat16 in worker threads", run=fused(bfloat16), workers=True)


def _on_cuda(
    network: torch.nn.Module, card: ModelCard, device: torch.device, copied: Make, fused: Make
) -> Iterator[Form]:
    float32, float16 = (Arithmetic(device=device, dtype=dtype) for dtype in (torch.float32, torch.float16))
    plain = Arithmetic(device=device, layout=torch.contiguous_format)
    yield Form(name="TF32, default layout", run=copied(plain))
    yield Form(name="TF32, channels_last", run=copied(float32))
    yield Form(name="autocast float16, default layout", run=_autocast(network, card, plain))
    yield Form(name="autocast float16, channels_last", run=_autocast(network, card, float32))
    fold_batch_norm(network)
    yield Form(name="TF32, batch norm folded", run=copied(float32))
    yield Form(name="TF32, convolution + ReLU fused", run=fused(float32))
    yield Form(name="float16, batch norm folded", run=copied(float16))
    yield Form(name="float16, convolution + ReLU fused", run=fused(float16))
    yield Form(name="float16, fused, algorithms timed", run=fused(replace(float16, benchmark=True)))
    yield Form(name="bfloat16, fused", run=fused(replace(float16, dtype=torch.bfloat16)))
    yield Form(name="mixed, fused", run=fused(replace(float16, dtype=torch.bfloat16, first_blocks_dtype=torch.float32)))
    compiled = compile_network(network, float16)
    yield Form(name="float16, compiled, without joins", run=CompiledNetwork(compiled, card, float16))


def _autocast(network: torch.nn.Module, card: ModelCard, arithmetic: Arithmetic) -> Run:
    """The network as the users of other tools run it."""
    module = converted(network, arithmetic)

    @torch.inference_mode()
    def run(tiles: Tensor) -> Tensor:
        with arithmetic.cudnn_flags(), torch.autocast("cuda", torch.float16):
            outputs = module(tiles.contiguous(memory_format=arithmetic.layout))
        return activate(outputs.float(), card)

    return run


def table(rows: list[Measurement]) -> str:
    """Markdown."""
    lines = [
        "| base | tile | batch | form | Mpx/s | times | CPU s per Mpx | change |",
        "|---:|---:|---:|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.base} | {row.tile} | {row.batch} | {row.form} | {row.mpx_s:.3g} | {row.times:.1f} "
        f"| {row.core_s_per_mpx:.2f} | {row.change:.1e} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
