"""Comparison with MONAI's sliding window and a plain loop: the same weights, scene, tile and overlap, in one run.

    python -m benchmarks.peers --install             makes .peers/ with MONAI and the torch of constraints.txt, once
    python -m benchmarks.peers                       5 minutes on 2 cores; without .peers/, the plain loop alone
    python -m benchmarks.peers --base 16 --side 8192 --device cuda --json peers.json

File to file: each reads the same GeoTIFF (4 bands of uint16, ZSTD) and writes a raster of probabilities as uint8 and a
mask; ours are COGs with overviews. Loading the network and its first tile are not counted. The peers run as their users
run them (`benchmarks/peer_methods.py`), each in a subprocess. MONAI holds the whole scene in memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import rasterio
from numpy.typing import NDArray

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".peers"
PACKAGES = ("torch", "numpy", "rasterio", "safetensors", "lazy-loader", "monai")
SIDES = {16: 4_096, 64: 2_752}
"""Base channels -> scene side on a CPU, px; 20,480 on CUDA."""
CUDA_SIDE = 20_480
BATCHES = {"cpu": (1, 4), "cuda": (4, 8, 16)}
"""Batch sizes among which MONAI's is chosen."""
Contestant = Literal["ours", "loop", "monai"]
NAMES: dict[str, str] = {"ours": "Scenemill", "loop": "read, predict, accumulate", "monai": "MONAI sliding window"}


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One contestant on one scene."""

    base: int
    """Channels of the network's first level."""
    contestant: str
    """`ours`, `loop` or `monai`."""
    seconds: float
    """File to files."""
    scene_mpx_s: float
    """Pixels of the scene per second, millions."""
    batch: int | None
    """MONAI's batch size."""
    difference: float
    """Mean absolute difference of a probability from ours."""
    other_class: float
    """Share of pixels whose class is not ours."""


def main() -> None:
    """Measure every contestant and print the table."""
    arguments = _parser().parse_args()
    if arguments.install:
        install()
        return
    if arguments.run:
        print(json.dumps(run_here(arguments.run, json.loads(sys.stdin.read()))))
        return
    if arguments.toy:
        arguments.base, arguments.side, arguments.tile, arguments.overlap = [8], 160, 64, 16
    rows = [row for base in arguments.base for row in measure(base, arguments)]
    print(table(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--install", action="store_true", help="install the peers into .peers/ and stop")
    parser.add_argument("--base", type=int, nargs="+", default=sorted(SIDES), help="channels of the first level")
    parser.add_argument("--side", type=int, help="scene side, px")
    parser.add_argument("--tile", type=int, default=512)
    parser.add_argument("--overlap", type=int, default=64)
    parser.add_argument("--device", default="cpu", help="a torch device")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--folder", type=Path, help="where scenes and results go for the time being")
    parser.add_argument("--toy", action="store_true", help="a tiny scene and network, without MONAI")
    parser.add_argument("--run", choices=get_args(Contestant), help=argparse.SUPPRESS)
    return parser


def install() -> None:
    """A separate environment: the peers have dependencies that Scenemill must not have."""
    subprocess.run([sys.executable, "-m", "venv", PEERS], check=True)
    pip = [PEERS / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt", *PACKAGES], check=True)


def measure(base: int, arguments: argparse.Namespace) -> list[Measurement]:
    """Every contestant with the network of a size; ours first."""
    from benchmarks.subjects import write_classic_unet, write_scene

    device = arguments.device
    side = arguments.side or (CUDA_SIDE if device.startswith("cuda") else SIDES.get(base, min(SIDES.values())))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        place = Path(folder)
        write_scene(place / "scene.tif", side)
        write_classic_unet(place / "model.safetensors", base)
        task = {"scene": place / "scene.tif", "model": place / "model.safetensors", "device": device}
        task |= {"tile": arguments.tile, "overlap": arguments.overlap}
        rows, ours = [], None
        for contestant in contestants(toy=arguments.toy):
            out = place / contestant
            out.mkdir()
            print(f"base {base}, {side} px, {contestant} ...", file=sys.stderr)
            done = run_apart(contestant, {**task, "out": out})
            found = read_outputs(out)
            ours = ours or found
            rows.append(compare(base, contestant, side, done, found, ours))
    return rows


def contestants(*, toy: bool) -> list[str]:
    """Names of the contestants: MONAI only where it is installed."""
    if toy or monai_python() is None:
        print("MONAI is skipped; python -m benchmarks.peers --install installs it", file=sys.stderr)
        return ["ours", "loop"]
    return ["ours", "loop", "monai"]


def monai_python() -> Path | None:
    """The interpreter that has MONAI: that of `.peers/`, else this one, else none."""
    if (PEERS / "bin" / "python").exists():
        return PEERS / "bin" / "python"
    return Path(sys.executable) if find_spec("monai") else None


def run_apart(contestant: str, task: dict[str, Any]) -> dict[str, Any]:
    """Run one contestant in a subprocess and return its measurements."""
    python = monai_python() if contestant == "monai" else None
    command = [python or sys.executable, "-m", "benchmarks.peers", "--run", contestant]
    text = json.dumps(task, default=str)
    done = subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def run_here(contestant: str, given: dict[str, Any]) -> dict[str, Any]:
    """One contestant in this process."""
    if contestant == "ours":
        return run_ours(given)
    from benchmarks.peer_methods import Task, run_loop, run_monai

    paths = {key: Path(given[key]) for key in ("scene", "model", "out")}
    task = Task(**{**given, **paths})
    if contestant == "loop":
        return run_loop(task)
    return run_monai(task, BATCHES["cuda" if task.device.startswith("cuda") else "cpu"])


def run_ours(given: dict[str, Any]) -> dict[str, Any]:
    """The whole path, after a first scene of one tile."""
    from benchmarks.subjects import write_scene
    from benchmarks.whole_path import file_to_mosaic
    from pipeline.inference import TilingSpec
    from pipeline.model import load_predictor

    predictor = load_predictor(given["model"], given["device"])
    tiling = TilingSpec(tile_size=given["tile"], overlap=given["overlap"])
    out = Path(given["out"])
    warm = out / "warm"
    warm.mkdir()
    write_scene(warm / "scene.tif", given["tile"])
    file_to_mosaic(warm / "scene.tif", predictor, warm, tiling=tiling)
    return {"seconds": file_to_mosaic(Path(given["scene"]), predictor, out, tiling=tiling).seconds}


def read_outputs(out: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Levels 0..254 and mask of a contestant, each `(height, width)`."""
    found = []
    for name in ("probability", "mask"):
        with rasterio.open(out / f"{name}.tif") as dataset:
            found.append(dataset.read(1))
    return found[0], found[1]


def compare(
    base: int,
    contestant: str,
    side: int,
    done: dict[str, Any],
    found: tuple[NDArray[np.uint8], NDArray[np.uint8]],
    ours: tuple[NDArray[np.uint8], NDArray[np.uint8]],
) -> Measurement:
    """A row of the table."""
    change = np.abs(found[0].astype(np.int16) - ours[0].astype(np.int16))
    return Measurement(
        base=base,
        contestant=contestant,
        seconds=done["seconds"],
        scene_mpx_s=side * side / done["seconds"] / 1e6,
        batch=done.get("batch"),
        difference=float(change.mean() / 254),
        other_class=float((found[1] != ours[1]).mean()),
    )


def table(rows: list[Measurement]) -> str:
    """Markdown, with how many times as fast as each peer we are."""
    lines = ["| base | how | seconds | scene Mpx/s | ours / it | mean difference | other class |"]
    lines.append("|---:|---|---:|---:|---:|---:|---:|")
    ours = {row.base: row.seconds for row in rows if row.contestant == "ours"}
    for row in rows:
        name = NAMES[row.contestant] + (f", batch {row.batch}" if row.batch else "")
        ratio = "" if row.contestant == "ours" else f"{row.seconds / ours[row.base]:.1f}"
        lines.append(
            f"| {row.base} | {name} | {row.seconds:.2f} | {row.scene_mpx_s:.3f} | {ratio} | {row.difference:.4f} "
            f"| {row.other_class:.2%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
