"""All speed benchmarks on a machine with an accelerator, one after another; the others continue when one fails.

    python -m benchmarks.device --out figures                     CUDA, 20,480 x 20,480 px; about 9 minutes
    python -m benchmarks.device --out figures --parts engine peers
    python -m benchmarks.device --out figures --device cpu --toy

Needs torch, numpy, rasterio, pyproj, dask, shapely, pydantic, PyYAML, safetensors and this repository, nothing else;
MONAI is measured if it is installed. Each part is a command, which is printed above its table and can be run by
itself. Tables go to the screen, figures to `OUT/<part>.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
PARTS: Mapping[str, Sequence[str]] = {
    "bounds": ("benchmarks.bounds",),
    "engine": ("benchmarks.engine",),
    "engine-compiled": ("benchmarks.engine", "--compiled", "--base", "64", "--tile", "512"),
    "stages": ("benchmarks.stages", "--base", "64", "--side", "20480"),
    "stages-compiled": ("benchmarks.stages", "--base", "64", "--side", "20480", "--compiled"),
    "precision": ("benchmarks.precision",),
    "peers": ("benchmarks.peers",),
}
"""Part -> module and its options."""


def main() -> int:
    """Run the parts; returns how many failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--device", default="cuda", help="a torch device")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="which parts")
    parser.add_argument("--toy", action="store_true", help="tiny scenes and networks")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts = describe(arguments.device)
    print(json.dumps(facts, indent=2))
    (arguments.out / "machine.json").write_text(json.dumps(facts, indent=2) + "\n")
    failed = [part for part in arguments.parts if not run(part, arguments)]
    print(f"\n{len(arguments.parts) - len(failed)} parts done; failed: {', '.join(failed) or 'none'}")
    return len(failed)


def describe(device: str) -> dict[str, object]:
    """Machine and versions of the measurement."""
    place = torch.device(device)
    return {
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else str(place),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if place.type == "cuda" else None,
    }


def run(part: str, arguments: argparse.Namespace) -> bool:
    """Run one part in a subprocess; True if it succeeded."""
    module, *options = PARTS[part]
    options += ["--device", arguments.device, "--json", str((arguments.out / f"{part}.json").absolute())]
    options += ["--toy"] if arguments.toy else []
    print(f"\n$ python -m {shlex.join([module, *options])}", flush=True)
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", module, *options], cwd=ROOT, check=False)
    print(f"({time.perf_counter() - start:.0f} s, exit code {done.returncode})", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
