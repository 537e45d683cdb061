"""The import table of the design, read from the code: who may import whom, and who may open files."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ORDER = (
    "errors",
    "concurrency",
    "storage",
    "grid",
    "model",
    "scene",
    "mosaic",
    "inference",
    "polygons",
    "catalog",
    "results",
    "distribute",
    "merge",
    "training",
    "config",
    "stages",
    "segment",
    "run",
    "evaluation",
    "flows",
    "cli",
)
"""The packages from the ground up: a module imports its own package and those before it."""

PIPELINE_ONLY_IN: dict[str, tuple[str, ...]] = {
    "prefect": (),
    "dask": ("inference", "distribute", "catalog"),
    "distributed": ("distribute",),
    "pydantic": ("config",),
    "torch": ("model", "inference", "training", "distribute"),
    "safetensors": ("model", "training"),
    "geopandas": ("grid", "polygons", "catalog", "training", "evaluation"),
    "pyogrio": ("grid", "polygons", "catalog", "merge", "training", "evaluation"),
    "numba": ("polygons", "mosaic"),
    "matplotlib": ("training",),
    "jinja2": ("evaluation",),
    "onnx": ("model",),
    "cyclopts": ("cli",),
    "boto3": ("storage",),
    "botocore": ("storage",),
    "s3transfer": ("storage",),
    "PIL": ("results", "inference", "training", "evaluation"),
}
"""Third-party packages that only these rooms of `pipeline/` may import, lazily or not."""

OPENS_RASTERS = ("scene", "mosaic", "training")
"""Rooms that may call `rasterio.open` and its like; `town` writes the scene that it invents."""

OPENERS = {"open", "MemoryFile", "WarpedVRT", "copy", "band"}


@dataclass(frozen=True, kw_only=True)
class Import:
    """One import statement of a source file."""

    room: str
    """First name below `pipeline`, e.g. `training` for pipeline/training/losses/loss.py; "" for the package itself."""
    target: str
    """The dotted name that is imported, with the imported name where it may be a module."""
    where: str
    """File and line, for the message."""
    lazy: bool
    """True inside a function: it runs when called, not on import."""
    typing: bool
    """True under `if TYPE_CHECKING:`: it never runs."""


def parsed(folder: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@functools.cache
def imports_of(folder: str) -> list[Import]:
    return [found for path, tree in parsed(folder) for found in _imports(path, tree)]


def room_of(path: Path) -> str:
    """First name below `pipeline`: a package, or a module beside the packages; `flows` for its own."""
    parts = path.relative_to(ROOT).parts
    name = parts[1].removesuffix(".py") if parts[0] == "pipeline" else parts[0]
    return "" if name == "__init__" else name


def _imports(path: Path, tree: ast.Module) -> Iterator[Import]:
    functions = [each for each in ast.walk(tree) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
    guards = [each for each in ast.walk(tree) if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING"]
    lazy, typing = ({id(node) for each in group for node in ast.walk(each)} for group in (functions, guards))
    for node in ast.walk(tree):
        where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for name in _names(node):
            yield Import(room=room_of(path), target=name, where=where, lazy=id(node) in lazy, typing=id(node) in typing)


def _names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return []


def test_every_package_has_a_place_in_the_order():
    rooms = {room_of(path) for path, _ in parsed("pipeline")} - {""}
    assert sorted(rooms ^ (set(ORDER) - {"flows"})) == []


def test_imports_point_to_the_ground():
    rank_of = {room: rank for rank, room in enumerate(ORDER)}
    upward = [
        f"{each.where}: {each.room} imports {each.target}"
        for folder in ("pipeline", "flows")
        for each in imports_of(folder)
        if each.room and each.target.startswith(("pipeline.", "flows."))
        if rank_of.get(room_of_name(each.target), 0) > rank_of.get(each.room, len(ORDER))
    ]
    assert upward == []


def room_of_name(target: str) -> str:
    """The package that a dotted name lies in."""
    first, second, *_ = target.split(".")
    return second if first == "pipeline" else first


@pytest.mark.parametrize("package", PIPELINE_ONLY_IN)
def test_a_package_is_imported_only_in_its_rooms(package: str):
    strangers = [
        f"{each.where}: {each.room} imports {each.target}"
        for each in imports_of("pipeline")
        if each.target.split(".")[0] == package and not each.typing and each.room not in PIPELINE_ONLY_IN[package]
    ]
    assert strangers == []


def test_the_library_does_not_know_the_flows_but_for_the_command_line():
    strangers = [
        f"{each.where}: {each.room} imports {each.target}"
        for each in imports_of("pipeline")
        if each.target.split(".")[0] == "flows" and not (each.lazy and each.room in ("cli", "demo"))
    ]
    assert strangers == []


def test_flows_reach_the_steps_only_through_the_library():
    allowed = {
        "catalog",
        "config",
        "distribute",
        "errors",
        "evaluation",
        "merge",
        "model",
        "results",
        "run",
        "storage",
        "training",
    }
    reached = {
        f"{each.where}: {each.target}": each.target.split(".")[1]
        for each in imports_of("flows")
        if each.target.startswith("pipeline.")
    }
    assert [place for place, room in reached.items() if room not in allowed] == []
    assert sorted(allowed - set(reached.values())) == [], "no flow needs these any more"


def test_rasters_are_opened_only_where_files_are_opened():
    strangers = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in parsed("pipeline")
        for node in ast.walk(tree)
        if _opens_raster(node) and room_of(path) not in OPENS_RASTERS
    ]
    assert strangers == []


def _opens_raster(node: ast.AST) -> bool:
    if isinstance(node, ast.ImportFrom):
        return node.module in ("rasterio", "rasterio.io") and bool(OPENERS & {alias.name for alias in node.names})
    if not isinstance(node, ast.Attribute) or node.attr not in OPENERS:
        return False
    owner = node.value
    return isinstance(owner, ast.Name) and owner.id == "rasterio"


def test_nothing_executes_a_pickle():
    strangers = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for folder in ("pipeline", "flows")
        for path, tree in parsed(folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "pickle.load", "pickle.loads")
    ]
    assert strangers == []


def test_only_the_command_line_prints():
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("pipeline", "flows")
        for path, tree in parsed(folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if folder == "flows" or room_of(path) not in ("cli", "demo")
    ]
    assert printing == []


def test_no_module_is_a_box_of_odds_and_ends():
    banned = {"utils", "util", "common", "helpers", "core", "base", "manager", "misc"}
    assert [path.name for folder in ("pipeline", "flows") for path, _ in parsed(folder) if path.stem in banned] == []


def loaded_after(statement: str) -> set[str]:
    """Names of all modules in a fresh interpreter after `statement`."""
    script = f"{statement}\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_importing_the_library_is_light():
    assert loaded_after("import pipeline") & {"torch", "numpy", "rasterio", "prefect", "dask", "geopandas"} == set()


def test_a_model_card_needs_no_torch():
    assert "torch" not in loaded_after("from pipeline import ModelCard")


def test_help_is_light():
    help_text = "import pipeline.cli.app\ntry: pipeline.cli.main(['--help'])\nexcept SystemExit: pass"
    heavy = {"torch", "prefect", "geopandas", "dask", "distributed", "numba"}
    assert loaded_after(help_text) & heavy == set()
