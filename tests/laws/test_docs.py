"""What the documents say, held against the code: settings, links, snippets, worked examples."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import MakeScene

from pipeline.config import SegmentSpec, load_settings
from pipeline.evaluation.records import EvaluateSpec
from pipeline.training.settings.spec import TrainSpec

ROOT = Path(__file__).parents[2]
SEGMENT_FILE = ROOT / "configs" / "segment.yaml"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
IDS = {"ids": lambda path: str(path.relative_to(ROOT)) if isinstance(path, Path) else None}

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
ROW = re.compile(r"^\| `([\w.]+)`(?: °)? \| `([^`]*)` \|", re.MULTILINE)
CONSTANT = re.compile(r"`(pipeline(?:\.\w+)+)\.([A-Z_]+)` \| ([\d,]+)")
PACKAGE_INDEX = re.compile(r"https?://\S*(?:pypi\.|/simple|/whl)")
MACHINE_PATH = re.compile(r"(?<![\w.$])/(?:work|home|root|tmp|Users|mnt)/\w")


def test_every_setting_is_documented_with_its_default() -> None:
    text = (ROOT / "docs" / "guide" / "configuration.md").read_text(encoding="utf-8")
    segmenting, training, evaluating = re.split(r"^## (?:Training|Evaluation)", text, flags=re.MULTILINE)
    assert documented(segmenting) == dict(defaults(SegmentSpec()))
    own = {key: value for key, value in defaults(TrainSpec()) if not key.startswith("reading.")}
    assert documented(training) == own
    own = {key: value for key, value in defaults(EvaluateSpec()) if not key.startswith("segment.")}
    assert documented(evaluating) == own


def test_the_annotated_settings_file_holds_every_default() -> None:
    values = yaml.safe_load(SEGMENT_FILE.read_text(encoding="utf-8"))
    assert dict(leaves(values, SegmentSpec())) == dict(defaults(SegmentSpec()))
    assert load_settings(SegmentSpec, SEGMENT_FILE) == SegmentSpec()


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), **IDS)
def test_settings_files_begin_with_the_command_that_runs_them(file: Path) -> None:
    header = file.read_text(encoding="utf-8").split("\n\n")[0]
    assert header.startswith("#")
    assert f"configs/{file.name}" in header


def test_every_comment_of_the_settings_file_is_next_to_a_key() -> None:
    body = SEGMENT_FILE.read_text(encoding="utf-8").split("\n\n", maxsplit=1)[1]
    bare = [line for line in body.splitlines() if re.match(r"\s*\w+:.*\S", line) and "#" not in line]
    assert bare == []


@pytest.mark.parametrize("document", DOCUMENTS, **IDS)
def test_links_between_documents_resolve(document: Path) -> None:
    text = without_code(document.read_text(encoding="utf-8"))
    broken = [link for link in LINK.findall(text) if "://" not in link and not resolves(document, link)]
    assert broken == []


@pytest.mark.parametrize("document", DOCUMENTS, **IDS)
def test_pictures_of_documents_exist(document: Path) -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)\s]+)\)", without_code(document.read_text(encoding="utf-8")))
    assert [picture for picture in pictures if not (document.parent / picture).is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS, **IDS)
def test_files_that_are_named_exist(document: Path) -> None:
    named = re.findall(
        r"`((?:pipeline|flows|docs|configs|tests|benchmarks)/[\w./]+\.\w+)(?::\w+)?`", document.read_text()
    )
    assert [name for name in named if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS, **IDS)
def test_python_in_documents_compiles_and_imports_what_exists(document: Path) -> None:
    for snippet in snippets(document, "python"):
        if ">>>" in snippet:
            continue
        for node in ast.walk(ast.parse(snippet)):
            if isinstance(node, ast.ImportFrom) and node.module:
                assert [alias.name for alias in node.names if alias.name not in names_of(node.module)] == []
            elif isinstance(node, ast.Import):
                assert [alias.name for alias in node.names if not find_spec(alias.name)] == []


@pytest.mark.parametrize("document", DOCUMENTS, **IDS)
def test_worked_examples_print_the_documented_output(document: Path) -> None:
    scope: dict[str, object] = {}
    for number, snippet in enumerate(s for s in snippets(document, "python") if ">>>" in s):
        example = doctest.DocTestParser().get_doctest(snippet, scope, f"{document.name}[{number}]", str(document), 0)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
        output: list[str] = []
        runner.run(example, out=output.append, clear_globs=False)
        scope = example.globs
        assert runner.failures == 0, "".join(output)


def test_the_readmes_function_predictor_runs_as_written(
    make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_scene(name="scene.tif", bands=3, height=40, width=50, colorinterp=["red", "green", "blue"])
    monkeypatch.chdir(tmp_path)
    (snippet,) = [each for each in snippets(ROOT / "README.md", "python") if "def bright" in each]
    scope: dict[str, Any] = {}
    exec(compile(snippet, "README.md", "exec"), scope)
    assert scope["report"].status == "done"
    assert np.sum([*scope["report"].area_m2.values()]) > 0


@pytest.mark.parametrize("document", DOCUMENTS, **IDS)
def test_constants_that_are_quoted_have_the_quoted_value(document: Path) -> None:
    for module, name, value in CONSTANT.findall(document.read_text(encoding="utf-8")):
        assert getattr(importlib.import_module(module), name) == int(value.replace(",", "")), f"{module}.{name}"


@pytest.mark.parametrize("path", [*DOCUMENTS, *sorted((ROOT / "configs").iterdir())], **IDS)
def test_no_document_names_a_path_of_some_machine(path: Path) -> None:
    assert MACHINE_PATH.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", [*DOCUMENTS, ROOT / "Dockerfile", ROOT / "Makefile"], **IDS)
def test_no_document_names_the_address_of_a_package_index(path: Path) -> None:
    assert PACKAGE_INDEX.findall(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("record", DECISIONS, **IDS)
def test_a_decision_has_context_decision_consequences_and_alternatives(record: Path) -> None:
    text = record.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences", "Alternatives"]
    assert text.startswith(f"# {record.name[:4]} ")


def test_decisions_are_numbered_without_gap_and_listed() -> None:
    assert [int(record.name[:4]) for record in DECISIONS] == [*range(1, len(DECISIONS) + 1)]
    index = (ROOT / "docs" / "decisions" / "index.md").read_text(encoding="utf-8")
    assert [record.name for record in DECISIONS if f"({record.name})" not in index] == []


def test_every_document_is_reached_from_the_index() -> None:
    docs = ROOT / "docs"
    index = docs / "index.md"
    shelves = [page for page in linked_from(index) if page.name == "index.md"]
    reached = {index, *linked_from(index), *(page for shelf in shelves for page in linked_from(shelf))}
    assert [page.relative_to(docs).as_posix() for page in docs.rglob("*.md") if page not in reached] == []


def test_documents_of_the_site_link_only_to_pages_of_the_site() -> None:
    docs = ROOT / "docs"
    pages = [page for page in DOCUMENTS if page.is_relative_to(docs)]
    assert [page.name for page in pages if not all(each.is_relative_to(docs) for each in linked_from(page))] == []


def test_every_theme_of_the_hostile_tests_has_a_row_on_the_security_page() -> None:
    page = (ROOT / "docs" / "explanation" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| .+ \| (\d+) \| (\d+) \| `(test_\w+\.py)` \|$", page, re.MULTILINE)
    assert {name for _, _, name in rows} >= {path.name for path in (ROOT / "tests" / "hostile").glob("test_*.py")}
    assert all(tried == held for tried, held, _ in rows)


def linked_from(document: Path) -> list[Path]:
    """Files that a document links to."""
    links = LINK.findall(without_code(document.read_text(encoding="utf-8")))
    return [
        (document.parent / link.partition("#")[0]).resolve() for link in links if link[0] != "#" and "://" not in link
    ]


def defaults(spec: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key and plain default of every setting, sections taken apart."""
    assert dataclasses.is_dataclass(spec)
    for each in dataclasses.fields(spec):
        value = getattr(spec, each.name)
        if dataclasses.is_dataclass(value):
            yield from defaults(value, f"{path}{each.name}.")
        else:
            yield f"{path}{each.name}", plain(value)


def leaves(values: Mapping[str, object], spec: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key and value of every setting in a file; `spec` says which mappings are sections."""
    for key, value in values.items():
        section = getattr(spec, key)
        if dataclasses.is_dataclass(section):
            assert isinstance(value, Mapping)
            yield from leaves(value, section, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def documented(text: str) -> dict[str, object]:
    """Key and default of every row of the tables; a key may have one row only."""
    rows = ROW.findall(text)
    assert len({key for key, _ in rows}) == len(rows)
    return {key: yaml.safe_load(value) for key, value in rows}


def plain(value: object) -> object:
    if isinstance(value, tuple):
        return [*value]
    return dict(value) if isinstance(value, Mapping) else value


def snippets(document: Path, language: str) -> list[str]:
    return [body for name, body in FENCE.findall(document.read_text(encoding="utf-8")) if name == language]


def names_of(module: str) -> set[str]:
    """What a module of ours offers, read from its source: heavy packages stay unimported."""
    spec = find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    stub = Path(spec.origin).with_suffix(".pyi")
    names: set[str] = set()
    if stub.is_file():
        nodes = ast.parse(stub.read_text(encoding="utf-8")).body
        names = {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names |= set(ast.literal_eval(node.value))
    return names


def without_code(text: str) -> str:
    return FENCE.sub("", text)


def resolves(document: Path, link: str) -> bool:
    name, _, heading = link.partition("#")
    target = document.parent / name if name else document
    if not target.exists():
        return False
    return not heading or heading in anchors(target.read_text(encoding="utf-8"))


def anchors(text: str) -> set[str]:
    """The anchors that Markdown viewers give to headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
