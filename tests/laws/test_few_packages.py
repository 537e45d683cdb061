"""File to mosaic runs where only a few of our packages are installed, such as a bare GPU machine."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Set
from pathlib import Path

import pytest
from conftest import MakeScene

from pipeline.model.card import ModelCard
from pipeline.model.checkpoint import save_checkpoint
from pipeline.model.networks.unet import UNet, UNetSpec

ROOT = Path(__file__).parents[2]

ENOUGH = {
    *("torch", "numpy", "rasterio", "affine", "pyproj", "dask", "shapely", "pydantic", "pyyaml", "safetensors"),
    "lazy-loader",
}
"""All that file to mosaic needs of what pyproject.toml lists; affine comes with rasterio,
and pyproj refuses scenes that lead off the Earth."""
FOR_PEERS = {"torch", "numpy", "rasterio", "affine", "safetensors", "lazy-loader"}
"""What the environment of the peers has, besides MONAI."""
IMPORTED_AS = {"pyyaml": "yaml", "pillow": "PIL", "lazy-loader": "lazy_loader"}

ABSENCE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"{{name}} is not installed here", name=name)

sys.meta_path.insert(0, Absent())
"""


def test_a_scene_becomes_a_mosaic_with_few_packages(make_scene: MakeScene, tmp_path: Path) -> None:
    scene = make_scene(bands=3, height=90, width=100, descriptions=("red", "green", "blue"))
    write_model(tmp_path / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    script = (
        "from pathlib import Path\n"
        "import pipeline.segment\n"
        "from benchmarks.whole_path import file_to_mosaic\n"
        "from pipeline import load_predictor\n"
        "from pipeline.inference.tiling.tiles import TilingSpec\n"
        "scene, model, out = map(Path, sys.argv[1:])\n"
        "file_to_mosaic(scene, load_predictor(model, 'cpu'), out, tiling=TilingSpec(tile_size=64))"
    )
    done = run_there(script, scene, tmp_path / "model.safetensors", out)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.glob("*.tif")} == {"probability.tif", "mask.tif"}


EACH_APART = """
import os
import torch
from importlib import import_module

for name in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        import_module(f"benchmarks.{name}")
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"benchmarks.{name}")
"""
"""Imports rooms of ours, each in a process of its own; what they share, and may, is imported once."""


def test_benchmarks_for_a_gpu_machine_import_with_few_packages() -> None:
    done = run_there(EACH_APART, "device", "bounds", "engine", "stages", "precision", "peers")
    assert done.returncode == 0, done.stderr


def test_peer_methods_import_in_the_environment_of_the_peers() -> None:
    done = run_there(
        f"import pipeline.model.networks.registry\n{EACH_APART}", "peers", "peer_methods", enough=FOR_PEERS
    )
    assert done.returncode == 0, done.stderr


def test_a_module_that_needs_another_package_is_named() -> None:
    done = run_there(EACH_APART, "device", "polygons")
    assert done.returncode != 0
    assert done.stderr.endswith("benchmarks.polygons\n")


@pytest.mark.parametrize("package", ["pyogrio", "numba", "distributed", "geopandas", "PIL"])
def test_there_the_other_packages_are_absent(package: str) -> None:
    done = run_there(f"import {package}")
    assert f"{package} is not installed here" in done.stderr


def run_there(script: str, *arguments: object, enough: Set[str] = ENOUGH) -> subprocess.CompletedProcess[str]:
    """Run Python as if the packages that are not enough were not installed."""
    script = ABSENCE.format(absent=sorted(others(enough))) + script
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def others(enough: Set[str]) -> set[str]:
    """Import names of all other packages that pyproject.toml lists."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {match.group() for line in required if (match := re.match(r"[\w-]+", line))} - enough
    return {IMPORTED_AS.get(name, name) for name in names}


def write_model(path: Path) -> None:
    network = UNet(UNetSpec(bands=3, classes=1, base_channels=8, depth=2))
    card = ModelCard(
        bands=("red", "green", "blue"),
        classes=("roof",),
        outputs="logits",
        stride=network.spec.stride,
        receptive_field=network.spec.receptive_field,
    )
    save_checkpoint(path, network, card)
