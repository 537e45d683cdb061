"""How to share the threads of a CPU: workers against one network on all threads, and how many threads decode.

    python -m benchmarks.trials.worker_threads                    5 minutes on 2 cores
    python -m benchmarks.trials.worker_threads --base 16 --side 4096 --repeats 5

*Bare* runs the network on tiles in memory. *Disturbed* runs it next to a thread that takes a CPU for half
of the time, as decoding and compressing do. *Path* is file to mosaic by the number of decoding threads. All ways
alternate in one process; each takes the best of its runs. Millions of tile pixels per second.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.subjects import model_input, write_classic_unet, write_scene
from benchmarks.whole_path import file_to_mosaic
from pipeline.concurrency import usable_cpus
from pipeline.inference import TilingSpec, disable_malloc_trim
from pipeline.inference.cpu_workers import map_in_workers
from pipeline.model import InferenceSpec, load_predictor
from pipeline.model.predictor import BatchShape, Runnable

TILE = 512


def main() -> None:
    """Measure every way and print the best of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", type=int, nargs="+", default=[16, 64], help="channels of the network's first level")
    parser.add_argument("--tiles", type=int, default=40, help="tiles of a bare run of base 16")
    parser.add_argument("--side", type=int, default=4096, help="scene side of base 16, px")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    disable_malloc_trim()
    cpus = usable_cpus()
    with tempfile.TemporaryDirectory() as folder:
        for base in arguments.base:
            place, effort = Path(folder), (16 / base) ** 2
            write_classic_unet(place / "model.safetensors", base)
            write_scene(place / "scene.tif", max(TILE, int(arguments.side * effort**0.5)))
            best: dict[str, float] = {}
            for _ in range(arguments.repeats):
                for way, speed in _ways(place, cpus, max(cpus, int(arguments.tiles * effort))):
                    best[way] = max(speed, best.get(way, 0.0))
            for way, speed in best.items():
                print(f"base {base:3}  {way:44} {speed:7.3f} Mpx/s", flush=True)


def _ways(place: Path, cpus: int, tiles: int) -> Iterator[tuple[str, float]]:
    predictor = load_predictor(place / "model.safetensors", "cpu")
    precision = predictor.check_precision(model_input(1, TILE)).precision
    ready = predictor.runnable(BatchShape(precision=precision))
    for name, surroundings in (("bare", nullcontext), ("disturbed", _disturbance)):
        for workers in sorted({1, cpus}):
            with surroundings():
                yield f"{name}: {workers} x {cpus // workers} threads, {precision}", _bare(ready, workers, cpus, tiles)
    for threads in sorted({1, 2, cpus}):
        with tempfile.TemporaryDirectory(dir=place) as out:
            times = file_to_mosaic(
                place / "scene.tif",
                predictor,
                Path(out),
                tiling=TilingSpec(tile_size=TILE),
                inference=InferenceSpec(device="cpu"),
                decoding_threads=threads,
            )
        yield f"path: {threads} decoding threads", times.tile_mpx / times.seconds


def _bare(ready: Runnable, workers: int, threads: int, tiles: int) -> float:
    batch = model_input(1, TILE).to(ready.dtype).contiguous(memory_format=ready.layout)

    def run(_: int) -> Tensor:
        return ready(batch)

    start = time.perf_counter()
    deque(map_in_workers(run, range(tiles), workers=workers, threads=threads // workers, ahead=2 * workers), maxlen=0)
    return tiles * TILE**2 / 1e6 / (time.perf_counter() - start)


@contextmanager
def _disturbance() -> Iterator[None]:
    """A thread that compresses for about half of the time."""
    over, noise = threading.Event(), torch.randint(0, 256, (2**20,), dtype=torch.uint8).numpy().tobytes()

    def compress() -> None:
        spent_s = 0.0
        while not over.wait(spent_s):
            start = time.perf_counter()
            zlib.compress(noise, 1)
            spent_s = time.perf_counter() - start

    thread = threading.Thread(target=compress)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    main()
