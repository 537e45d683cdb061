"""Throughput from file to mosaic, against the bare network on tiles that are already on the device.

    python -m benchmarks.engine                       the classic U-Net, base 16 and 64; 6 minutes on 2 cores
    python -m benchmarks.engine --device cuda         20,480 x 20,480 px
    python -m benchmarks.engine --base 16 --tile 512 --side 8192 --json engine.json

*Model alone* is the prepared network in the precision, batch size and workers that the scene is run with, over and over
on the same tiles, with no input or output. *File to mosaic* describes and plans the scene, checks the precision, reads,
cuts, runs, blends, quantises and encodes it, and makes COGs with overviews. Both count tile pixels, so pixels under
overlaps count as often as they are computed. They alternate in one process; each takes the best of its runs.
The scene has 4 bands of uint16 in ZSTD. Compilation for CUDA is excluded from both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.subjects import model_input, write_classic_unet, write_scene
from benchmarks.whole_path import PathTimes, Shape, batch_shape, file_to_mosaic
from pipeline.concurrency import usable_cpus
from pipeline.inference import TilingSpec
from pipeline.inference.cpu_workers import BATCHES_PER_WORKER, map_in_workers, resolve_cpu_workers
from pipeline.model import load_predictor
from pipeline.model.predictor import BatchShape, LoadedPredictor, Runnable

SIDES = {16: 8_192, 64: 2_944}
"""Base channels -> scene side on a CPU, px."""
CUDA_SIDE = 20_480
MANY = 10**7
"""Batches that repay compiling any network."""


@dataclass(frozen=True, kw_only=True)
class Alone:
    """One run of the bare network."""

    mpx_s: float
    """Tile pixels per second, millions."""
    core_s_per_mpx: float
    """CPU seconds of all threads for a million of them."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One network and tile size."""

    base: int
    """Channels of the network's first level."""
    tile: int
    """Side of a tile, px."""
    precision: str
    """Number format of the network."""
    scene_mpx: float
    """Pixels of the scene, millions."""
    alone_mpx_s: float
    """Tile pixels per second of the bare network, millions."""
    path_mpx_s: float
    """Tile pixels per second from file to mosaic, millions."""
    infer_mpx_s: float
    """The same without the COGs: until the last row is written."""
    core_share: float
    """CPU time of the bare network as a share of that from file to mosaic, all threads, for equal tile pixels."""
    scene_mpx_s: float
    """Scene pixels per second from file to mosaic, millions."""
    prepare_s: float
    """Describe, plan, check the precision."""
    infer_s: float
    """First pixel read to last row written."""
    cog_s: float
    """Last row written to finished COGs."""

    @property
    def share(self) -> float:
        """File to mosaic as a share of model alone."""
        return self.path_mpx_s / self.alone_mpx_s


def main() -> None:
    """Compare for every network and tile size, and print the table."""
    arguments = _parser().parse_args()
    if arguments.toy:
        arguments.base, arguments.tile, arguments.side, arguments.repeats = [8], [64], 256, 1
    rows = []
    for base in arguments.base:
        for tile in arguments.tile:
            rows.append(compare(base, tile, arguments))
            print(f"base {base}, tile {tile}: {rows[-1].share:.0%}", flush=True)
    print(table(rows))
    if arguments.json:
        figures = [{**asdict(row), "share": row.share} for row in rows]
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=int, nargs="+", default=sorted(SIDES), help="channels of the first level")
    parser.add_argument("--tile", type=int, nargs="+", default=[512, 1024], help="sides of tiles, px")
    parser.add_argument("--side", type=int, help="scene side, px")
    parser.add_argument("--device", default="cpu", help="a torch device")
    parser.add_argument("--precision", default="auto", help="as inference.precision; trained networks often take mixed")
    parser.add_argument(
        "--compiled", action="store_true", help="compile on CUDA, though so short a run does not repay it"
    )
    parser.add_argument("--repeats", type=int, default=2, help="alternating runs of which the best counts")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="where scenes and results go for the time being")
    parser.add_argument("--toy", action="store_true", help="a tiny scene and network")
    return parser


def compare(base: int, tile: int, arguments: argparse.Namespace) -> Comparison:
    """Alternate between the whole path and the bare network."""
    device = torch.device(arguments.device)
    side = arguments.side or (CUDA_SIDE if device.type == "cuda" else SIDES.get(base, min(SIDES.values())))
    tiling = TilingSpec(tile_size=tile)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place = Path(folder)
        write_classic_unet(place / "model.safetensors", base)
        write_scene(place / "warm.tif", tile)
        write_scene(place / "scene.tif", side)
        predictor = load_predictor(place / "model.safetensors", arguments.device, precision=arguments.precision)
        warm = run_path(place, "warm", predictor, tiling)
        shape = batch_shape(place / "scene.tif", predictor, tiling)
        ready = predictor.runnable(
            BatchShape(precision=warm.precision, batches=MANY if arguments.compiled else 1, shape=shape)
        )
        run_batches(ready, shape, 2)
        paths, alone = list[PathTimes](), list[Alone]()
        for _ in range(arguments.repeats):
            paths.append(run_path(place, "scene", predictor, tiling))
            alone.append(model_alone(ready, shape, paths[-1].tile_mpx))
    return summarise(base, tile, alone, paths)


def run_path(place: Path, scene: str, predictor: LoadedPredictor, tiling: TilingSpec) -> PathTimes:
    """File to mosaic, into a temporary folder."""
    with tempfile.TemporaryDirectory(dir=place) as out:
        return file_to_mosaic(place / f"{scene}.tif", predictor, Path(out), tiling=tiling)


def model_alone(ready: Runnable, shape: Shape, tile_mpx: float) -> Alone:
    """The bare network over about this number of tile pixels, in millions."""
    batch_mpx = shape[0] * shape[2] * shape[3] / 1e6
    batches = max(1, round(tile_mpx / batch_mpx))
    workers = resolve_cpu_workers(usable_cpus(), plain=False)
    batches = -(-batches // workers) * workers
    core_s = time.process_time()
    seconds = run_batches(ready, shape, batches)
    mpx = batches * batch_mpx
    return Alone(mpx_s=mpx / seconds, core_s_per_mpx=(time.process_time() - core_s) / mpx)


def run_batches(ready: Runnable, shape: Shape, count: int) -> float:
    """Seconds for these batches: in the engine's workers on a CPU, sequentially on other devices."""
    tiles = model_input(shape[0], shape[2]).to(ready.device, ready.dtype).contiguous(memory_format=ready.layout)
    workers = resolve_cpu_workers(usable_cpus(), plain=False)
    start = time.perf_counter()
    if ready.device.type == "cpu":
        deque(
            map_in_workers(lambda _: ready(tiles), range(count), workers=workers, ahead=BATCHES_PER_WORKER * workers),
            maxlen=0,
        )
    else:
        torch.cuda.synchronize(ready.device)
        start = time.perf_counter()
        for _ in range(count):
            ready(tiles)
        torch.cuda.synchronize(ready.device)
    return time.perf_counter() - start


def summarise(base: int, tile: int, alone: list[Alone], paths: list[PathTimes]) -> Comparison:
    """A row of the table: the best of the runs of each."""
    times = min(paths, key=lambda path: path.seconds)
    core_s_per_mpx = min(path.core_s / path.tile_mpx for path in paths)
    return Comparison(
        base=base,
        tile=tile,
        precision=times.precision,
        scene_mpx=times.scene_mpx,
        alone_mpx_s=max(run.mpx_s for run in alone),
        path_mpx_s=times.tile_mpx / times.seconds,
        infer_mpx_s=times.tile_mpx / times.infer_s,
        core_share=min(run.core_s_per_mpx for run in alone) / core_s_per_mpx,
        scene_mpx_s=times.scene_mpx / times.seconds,
        prepare_s=times.prepare_s,
        infer_s=times.infer_s,
        cog_s=times.cog_s,
    )


def table(rows: list[Comparison]) -> str:
    """Markdown."""
    lines = [
        "| base | tile | precision | model alone, Mpx/s | file to mosaic, Mpx/s | of it | infer stage | CPU time "
        "| scene, Mpx/s | prepare, s | infer, s | COG, s |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.base} | {row.tile} | {row.precision} | {row.alone_mpx_s:.3g} | {row.path_mpx_s:.3g} "
        f"| **{row.share:.0%}** | {row.infer_mpx_s / row.alone_mpx_s:.0%} | {row.core_share:.0%} "
        f"| {row.scene_mpx_s:.3g} | {row.prepare_s:.2f} | {row.infer_s:.2f} | {row.cog_s:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
