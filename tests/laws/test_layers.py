"""Structure of the code, read from its imports: who may import whom, what a face shows, how large modules may be."""

from __future__ import annotations

import ast
import functools
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

ORDER = (
    "text",
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
"""The packages and files below `pipeline`, and the flows: each imports itself and those before it."""

STRANGERS = {
    "mosaic": {"scene"},
    "polygons": {"inference", "scene"},
    "catalog": {"inference", "mosaic", "polygons"},
    "merge": {"inference", "scene", "distribute", "catalog"},
    "training": {"polygons", "results", "distribute", "merge"},
}
"""Pairs that do not know each other although the order would allow it."""

THIRD_PARTY: dict[str, tuple[str, ...]] = {
    "prefect": (),
    "dask": ("inference.tiling", "distribute", "catalog"),
    "distributed": ("distribute",),
    "cryptography": ("distribute",),
    "pydantic": ("config", "results.report"),
    "torch": ("model", "inference", "training", "distribute"),
    "safetensors": ("model", "training"),
    "geopandas": ("grid.area", "polygons", "catalog", "training", "evaluation"),
    "fiona": (),
    "osgeo": (),
    "pyogrio": ("storage.formats.drivers",),
    "numba": ("polygons", "mosaic.classify"),
    "matplotlib": ("training",),
    "jinja2": ("evaluation",),
    "onnx": ("model",),
    "cyclopts": ("cli",),
    "boto3": ("storage",),
    "botocore": ("storage",),
    "s3transfer": ("storage",),
    "PIL": ("results", "inference", "training", "evaluation"),
}
"""Third-party packages that only these packages or modules of `pipeline` may import, lazily or not."""

OPENS_FILES = "pipeline.storage.formats.drivers"
"""The module that may call the functions of `OPENERS`, since it removes GDAL's other drivers before it does."""

OPENERS = {
    "rasterio": {"open", "band", "shutil", "vrt", "warp", "_env"},
    "geopandas": {"read_file", "list_layers"},
}
"""Names of a package by which files are opened, or the drivers of GDAL are changed."""
OPENING_NAMES = {"MemoryFile", "FilePath", "WarpedVRT", "to_file"}
"""Classes and methods that open a file with GDAL, of any module or object."""


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name of a source file."""

    module: str
    """Dotted name of the importing module."""
    source: str
    """The module named by the statement: `pipeline.grid` in `from pipeline.grid import RasterGrid`."""
    target: str
    """The module that defines the name: `pipeline.grid.raster_grid`, looked up in the stub of the face."""
    where: str
    """File and line, for the message."""
    lazy: bool
    """True inside a function: it runs when called, not on import."""
    typing: bool
    """True under `if TYPE_CHECKING:`: it never runs."""

    def __str__(self) -> str:
        return f"{self.where}: {self.module} imports {self.target}"


@dataclass(frozen=True, kw_only=True)
class Code:
    """The source files below a folder that holds `pipeline/` and `flows/`."""

    root: Path

    def parsed(self, folder: str) -> Iterator[tuple[Path, ast.Module]]:
        for path in sorted((self.root / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"), filename=str(path))

    def module_of(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @functools.cached_property
    def modules(self) -> set[str]:
        return {self.module_of(path) for folder in ("pipeline", "flows") for path in (self.root / folder).rglob("*.py")}

    @functools.cached_property
    def faces(self) -> dict[str, dict[str, str]]:
        """Package -> exported name -> the module that defines it."""
        return {
            self.module_of(stub): {
                name: f"{self.module_of(stub)}.{node.module}"
                for node in ast.parse(stub.read_text(encoding="utf-8")).body
                if isinstance(node, ast.ImportFrom)
                for name in (alias.name for alias in node.names)
            }
            for stub in (self.root / "pipeline").rglob("__init__.pyi")
        }

    @functools.cached_property
    def imports(self) -> list[Import]:
        """Every import of `pipeline` and `flows`."""
        return [
            found
            for folder in ("pipeline", "flows")
            for path, tree in self.parsed(folder)
            for found in self._imports(path, tree)
        ]

    def _imports(self, path: Path, tree: ast.Module) -> Iterator[Import]:
        nodes = list(ast.walk(tree))
        functions = [each for each in nodes if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
        guards = [each for each in nodes if isinstance(each, ast.If) and ast.unparse(each.test) == "TYPE_CHECKING"]
        lazy, typing = ({id(node) for each in group for node in ast.walk(each)} for group in (functions, guards))
        for node in nodes:
            for source, target in self._targets(node):
                yield Import(
                    module=self.module_of(path), source=source, target=target, lazy=id(node) in lazy,
                    typing=id(node) in typing, where=f"{path.relative_to(self.root)}:{getattr(node, 'lineno', 0)}",
                )  # fmt: skip

    def _targets(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.name) for alias in node.names)
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                if submodule in self.modules:
                    yield submodule, submodule
                else:
                    yield node.module, self.faces.get(node.module, {}).get(alias.name, node.module)


CODE = Code(root=ROOT)


def package_of(module: str) -> str:
    """First name below `pipeline`: a package, or a file beside the packages; `flows` for its own; "" for `pipeline`."""
    first, *rest = module.split(".")
    return (rest[0] if rest else "") if first == "pipeline" else first


def is_ours(module: str) -> bool:
    return module.startswith(("pipeline.", "flows."))


def upward_imports(code: Code) -> list[str]:
    rank_of = {package: rank for rank, package in enumerate(ORDER)}
    return [
        str(each)
        for each in code.imports
        if package_of(each.module) and is_ours(each.target)
        if rank_of.get(package_of(each.target), 0) > rank_of.get(package_of(each.module), len(ORDER))
    ]


def circles(code: Code) -> list[str]:
    """Modules that import each other, over any number of steps, lazily or for types only."""
    targets: dict[str, set[str]] = {module: set() for module in code.modules}
    for each in code.imports:
        if each.target in targets and each.target != each.module:
            targets[each.module].add(each.target)
    while leaves := [module for module, reached in targets.items() if not reached & targets.keys()]:
        for leaf in leaves:
            del targets[leaf]
    while tops := targets.keys() - set().union(*targets.values()):
        for top in tops:
            del targets[top]
    return sorted(targets)


def imports_past_a_face(code: Code) -> list[str]:
    """Imports from another package's inner module; a package imports from its own modules, others from its face."""
    return [
        str(each)
        for each in code.imports
        if each.source.startswith("pipeline.") and package_of(each.source) != package_of(each.module)
        if each.source.count(".") > 1 and each.source not in code.faces
    ]


def strangers_met(code: Code) -> list[str]:
    return [
        str(each)
        for each in code.imports
        if package_of(each.target) in STRANGERS.get(package_of(each.module), ()) and is_ours(each.target)
    ]


def names_equal_to_modules(code: Code) -> list[str]:
    return [
        f"{face}.{name}"
        for face, names in code.faces.items()
        for name in names
        if f"{face}.{name}" in code.modules
    ]  # fmt: skip


RULES = (upward_imports, circles, imports_past_a_face, strangers_met, names_equal_to_modules)
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)


@each_rule
def test_the_code_keeps(rule) -> None:
    assert rule(CODE) == []


PLANTED = {
    "upward_imports": ("pipeline/grid/crs.py", "from pipeline.mosaic import MosaicReader"),
    "circles": ("pipeline/grid/raster_grid.py", "def later():\n    from pipeline.grid.area import Area"),
    "imports_past_a_face": ("pipeline/segment.py", "from pipeline.grid.crs import parse_crs"),
    "strangers_met": ("pipeline/polygons/holes.py", "from pipeline.scene import Scene"),
    "names_equal_to_modules": ("pipeline/grid/__init__.pyi", "from .crs import area as area"),
}
"""Rule -> a file, and a line that breaks the rule there."""


@each_rule
def test_a_planted_import_breaks(rule, tmp_path: Path) -> None:
    for folder in ("pipeline", "flows"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "data"))
    path, line = PLANTED[rule.__name__]
    with (tmp_path / path).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    assert rule(Code(root=tmp_path)) != []


def test_every_package_has_a_place_in_the_order():
    packages = {package_of(module) for module in CODE.modules} - {""}
    assert sorted(packages ^ set(ORDER)) == []


def test_every_package_has_a_docstring_and_defines_nothing():
    """A face has a docstring and at most 30 lines; its names are in the stub beside it."""
    for path in sorted((ROOT / "pipeline").rglob("__init__.py")):
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        assert ast.get_docstring(tree), path
        assert len(text.splitlines()) <= 30, path
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)], path


def test_folders_and_modules_stay_small():
    entries = [each for each in (ROOT / "pipeline").iterdir() if each.name[0] not in "._" and each.name != "py.typed"]
    assert len(entries) <= 22
    folders = {path.parent for path in (ROOT / "pipeline").rglob("*.py")}
    counts = {str(each.relative_to(ROOT)): len(list(each.glob("[!_]*.py"))) for each in folders}
    assert {folder: count for folder, count in counts.items() if count > 13} == {}
    lines = {module: len((ROOT / module).read_text(encoding="utf-8").splitlines()) for module in relative_paths()}
    assert {module: count for module, count in lines.items() if count > 300} == {}


FORMS = {
    "pipeline/segment.py": {"segment_scene"},
    "pipeline/cli/segment.py": {"segment"},
    "pipeline/cli/training.py": {"evaluate"},
    "flows/segment.py": {"segment_catalog"},
    "flows/evaluate.py": {"evaluate_scenes"},
    "flows/command_line.py": {"run"},
}
"""Functions whose parameters are the form that a user fills in: commands, flows, and the library's own entry."""


def test_functions_take_few_parameters():
    long = [
        f"{path}:{node.lineno} {node.name}: {count}"
        for path in relative_paths()
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and (count := parameters_of(node)) > 6
        if node.name not in FORMS.get(str(path), ())
    ]
    assert long == []


def parameters_of(function: ast.FunctionDef) -> int:
    given = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return sum(each.arg not in ("self", "cls") for each in given)


def relative_paths() -> Iterable[Path]:
    return [path.relative_to(ROOT) for folder in ("pipeline", "flows") for path in (ROOT / folder).rglob("*.py")]


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_a_third_party_package_is_imported_only_where_it_belongs(name: str):
    allowed = tuple(f"pipeline.{place}" for place in THIRD_PARTY[name])
    strangers = [
        str(each)
        for each in CODE.imports
        if each.target.split(".")[0] == name and not each.typing and each.module.startswith("pipeline")
        if not f"{each.module}.".startswith(tuple(f"{place}." for place in allowed))
    ]
    assert strangers == []


def test_the_library_does_not_know_the_flows_but_for_the_command_line():
    strangers = [
        str(each)
        for each in CODE.imports
        if each.target.split(".")[0] == "flows" and each.module.startswith("pipeline.")
        if not (each.lazy and package_of(each.module) == "cli")
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
        "text",
        "training",
    }
    reached = {
        str(each): package_of(each.target)
        for each in CODE.imports
        if each.module.startswith("flows") and each.target.startswith("pipeline.")
    }
    assert [place for place, package in reached.items() if package not in allowed] == []
    assert sorted(allowed - set(reached.values())) == [], "no flow needs these any more"


CLASSES = {"DatasetReader", "DatasetWriter", "SourceReader"}
"""Classes that open a file when they are called; elsewhere they are types."""


def opened_files(code: Code) -> list[str]:
    """Places outside `OPENS_FILES` that open a raster or vector file with GDAL."""
    return [
        f"{path.relative_to(code.root)}:{node.lineno}: {ast.unparse(node)}"
        for folder in ("pipeline", "flows")
        for path, tree in code.parsed(folder)
        if code.module_of(path) != OPENS_FILES
        for node in ast.walk(tree)
        if _opens_file(node)
    ]


def _opens_file(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name in OPENERS and alias.asname for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        package, *inner = (node.module or "").split(".")
        names = {*inner, *(alias.name for alias in node.names)}
        return package in OPENERS and bool(names & (OPENERS[package] | OPENING_NAMES))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return node.func.id in CLASSES
    if not isinstance(node, ast.Attribute):
        return False
    owner = node.value
    return node.attr in OPENING_NAMES or (isinstance(owner, ast.Name) and node.attr in OPENERS.get(owner.id, ()))


def test_files_are_opened_with_gdal_in_one_module_only():
    assert opened_files(CODE) == []


@pytest.mark.parametrize(
    "line",
    [
        "import rasterio\ndataset = rasterio.open('a.tif')",
        "import rasterio as rio",
        "import rasterio\nfile = rasterio.io.MemoryFile()",
        "from rasterio import open",
        "from rasterio.io import MemoryFile",
        "dataset = DatasetReader('a.tif')",
        "from rasterio.shutil import copy",
        "import geopandas\nframe = geopandas.read_file('a.csv')",
        "from geopandas import read_file",
        "frame.to_file('a.csv')",
    ],
)
def test_a_planted_opener_is_found(line: str, tmp_path: Path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "segment.py").write_text(line, encoding="utf-8")
    assert opened_files(Code(root=tmp_path)) != []


def test_nothing_executes_a_pickle():
    strangers = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}"
        for folder in ("pipeline", "flows")
        for path, tree in CODE.parsed(folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "pickle.load", "pickle.loads")
    ]
    assert strangers == []


def test_only_the_command_line_prints():
    printing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("pipeline", "flows")
        for path, tree in CODE.parsed(folder)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if folder == "flows" or package_of(CODE.module_of(path)) != "cli"
    ]
    assert printing == []


def test_no_module_is_a_box_of_odds_and_ends():
    banned = {"utils", "util", "common", "helpers", "core", "base", "manager", "misc"}
    assert [path for path in relative_paths() if path.stem in banned] == []


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
