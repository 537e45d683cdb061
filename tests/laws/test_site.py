"""The site of `make docs`: builds without a warning, links resolve, nothing comes from the internet."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMMAND = re.compile(r"^docs:.*\n\t\$\(BIN\)/(zensical .*)$", re.MULTILINE)
LINK = re.compile(r'<(?:a|link|img|script)\b[^>]*?\s(?:href|src)="([^"]+)"')
TARGET = re.compile(r'\s(?:id|name)="([^"]+)"')
API = sorted(page for page in (DOCS / "reference" / "api").glob("*.md") if page.stem != "index")
MODULES = {"config", "errors"}
"""API pages of modules; all others are of packages with a stub."""


def pages_of(nav: object) -> list[str]:
    """Paths of all pages below an entry of `nav`."""
    if isinstance(nav, str):
        return [nav]
    entries = list(nav.values()) if isinstance(nav, dict) else nav
    assert isinstance(entries, list)
    return [page for entry in entries for page in pages_of(entry)]


def exported(page: Path) -> list[str]:
    """Names that the package of an API page exports."""
    package = ROOT / "pipeline" if page.stem == "pipeline" else ROOT / "pipeline" / page.stem
    nodes = ast.parse((package / "__init__.pyi").read_text(encoding="utf-8")).body
    return [alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names]


def build(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the command of `make docs` in a copy of the checkout."""
    shutil.copytree(DOCS, root / "docs")
    shutil.copytree(ROOT / "pipeline", root / "pipeline", ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copy(ROOT / "mkdocs.yml", root)
    found = COMMAND.search((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert found is not None
    program, *options = found[1].split()
    command = [str(Path(sys.executable).with_name(program)), *options]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkout")
    done = build(root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    return root / "build" / "site"


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    nav = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    assert sorted(nav) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_pictures_are_small() -> None:
    pictures = [*(DOCS / "images").iterdir()]
    assert pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > 150_000] == []


@pytest.mark.slow
def test_links_and_anchors_of_the_built_pages_resolve(site: Path) -> None:
    texts = {page: page.read_text(encoding="utf-8") for page in site.rglob("*.html") if page.name != "404.html"}
    anchors = {page: {*TARGET.findall(text)} for page, text in texts.items()}
    broken = []
    for page, text in texts.items():
        for link in LINK.findall(text):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            known = target.is_file() and (not parts.fragment or unquote(parts.fragment) in anchors.get(target, ()))
            if not known:
                broken.append(f"{page.relative_to(site)}: {link}")
    assert len(texts) > 50
    assert broken == []


@pytest.mark.slow
def test_no_page_loads_anything_from_the_internet(site: Path) -> None:
    loads = re.compile(r'<(?:script|img|iframe)\b[^>]*\ssrc="(?:https?:)?//|<link\b[^>]*\shref="(?:https?:)?//|@import')
    assert [page.name for page in site.rglob("*.html") if loads.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", API, ids=lambda page: page.stem)
def test_an_api_page_lists_what_the_package_exports(site: Path, page: Path) -> None:
    text = (site / "reference" / "api" / f"{page.stem}.html").read_text(encoding="utf-8")
    path = "pipeline" if page.stem == "pipeline" else f"pipeline.{page.stem}"
    listed = set(re.findall(rf'id="{path}\.(\w+)"', text))
    if page.stem in MODULES:
        assert listed
    else:
        assert listed == set(exported(page))


@pytest.mark.slow
def test_a_broken_link_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "docs"
    shutil.copytree(DOCS, folder)
    (folder / "index.md").write_text("[nowhere](guide/nowhere.md)\n", encoding="utf-8")
    monkeypatch.setattr(sys.modules[__name__], "DOCS", folder)
    root = tmp_path / "checkout"
    root.mkdir()
    assert build(root).returncode != 0
