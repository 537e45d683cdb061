"""The lists of mutants fit the code: a change of a line that a mutant changes, changes the mutant too."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.mutants import MIN_SCORE, ROOT, Mutant, Result, faults_of, read_mutants, score_of

MUTANT = Mutant(id="one", file="pipeline/a.py", old="x + 1", new="x - 1", tests=("tests/test_a.py",))


def test_every_mutant_of_the_lists_changes_one_place_and_names_tests_that_are_there() -> None:
    mutants = read_mutants()
    assert faults_of(mutants) == []
    assert len(mutants) > 500
    assert len({mutant.file for mutant in mutants}) > 120


def test_every_equivalent_mutant_says_why_it_is_one() -> None:
    mutants = read_mutants()
    equivalent = [mutant for mutant in mutants if mutant.equivalent]
    assert all(len(mutant.equivalent.split()) > 5 for mutant in equivalent)
    assert len(equivalent) < len(mutants) / 20


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({}, ""),
        ({"old": "x + 2"}, "contains 'x + 2' 0 times, not once"),
        ({"old": "x"}, "contains 'x' 2 times, not once"),
        ({"file": "pipeline/b.py"}, "0 times"),
        ({"new": "x + 1"}, "changes nothing"),
        ({"tests": ()}, "names no test"),
        ({"tests": ("tests/test_b.py",)}, "there is no tests/test_b.py"),
        ({"tests": ("tests/test_a.py::test_gone",)}, "there is no tests/test_a.py::test_gone"),
    ],
)
def test_an_entry_that_no_longer_fits_the_code_is_named(tmp_path: Path, change: Mapping[str, str], fault: str) -> None:
    small_tree(tmp_path)
    faults = faults_of([replace(MUTANT, **change)], tmp_path)  # type: ignore[arg-type]
    assert fault in "".join(faults)
    assert len(faults) == bool(fault)
    assert faults_of([MUTANT, MUTANT], tmp_path) == ["one: stands for two mutants"]


def test_a_score_leaves_equivalent_mutants_out() -> None:
    results = [Result(mutant=MUTANT, outcome=outcome) for outcome in ("killed", "killed", "survived", "equivalent")]
    assert score_of(results) == pytest.approx(2 / 3)
    assert score_of(results[3:]) == 1 >= MIN_SCORE


def test_mutants_are_killed_survive_or_run_into_the_time_limit_and_the_code_stays_as_it_is(tmp_path: Path) -> None:
    """In a small tree: one mutant that a test notices, one that none does, one that never ends, one that is not run."""
    small_tree(tmp_path / "tree")
    script = """
    import json, sys
    from dataclasses import replace
    from pathlib import Path
    import benchmarks.mutants as command
    command.LIBRARIES = ("numba", "pytest")
    one = command.Mutant(id="one", file="pipeline/a.py", old="x + 1", new="x - 1", tests=("tests/test_a.py",))
    mutants = [
        one,
        replace(one, id="two", new="1 + x"),
        replace(one, id="three", old="return", new="while True: pass\\n    return"),
        replace(one, id="four", equivalent="it is the same"),
        replace(one, id="five", tests=("tests/test_broken.py",)),
        replace(one, id="six", old="def", new="dfe"),
        replace(one, id="seven", tests=("tests/test_unreadable.py",)),
    ]
    results, unproven = command.run_mutants(Path(sys.argv[1]), mutants, timeout_s=5)
    print(json.dumps([[(result.mutant.id, result.outcome, result.by) for result in results], unproven]))
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "tree")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    results, unproven = json.loads(done.stdout.splitlines()[-1])
    assert results == [
        ["one", "killed", "tests/test_a.py::test_next"],
        ["two", "survived", ""],
        ["three", "killed", "timeout"],
        ["four", "equivalent", "it is the same"],
        ["five", "killed", "tests/test_broken.py::test_broken"],
        ["six", "killed", "tests/test_a.py"],
        ["seven", "killed", "tests/test_unreadable.py"],
    ]
    assert sorted(unproven) == ["tests/test_broken.py::test_broken", "tests/test_unreadable.py"]
    assert (tmp_path / "tree" / "pipeline" / "a.py").read_text() == "def after(x):\n    return x + 1\n"


def small_tree(folder: Path) -> None:
    files = {
        "pipeline/a.py": "def after(x):\n    return x + 1\n",
        "tests/test_a.py": "from pipeline.a import after\n\n\ndef test_next():\n    assert after(1) == 2\n",
        "tests/test_broken.py": "def test_broken():\n    assert False\n",
        "tests/test_unreadable.py": "import nowhere\n",
        "pyproject.toml": '[tool.pytest.ini_options]\npythonpath = ["."]\n',
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
