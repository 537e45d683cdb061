"""Mutation score: which small changes of the code do the tests notice?

    python -m benchmarks.mutants                          all lists of tests/mutants; hours on one core
    python -m benchmarks.mutants pipeline/grid journal-1  the mutants of these paths, and these ids
    python -m benchmarks.mutants --check                  does every entry still fit the code? a second

Each mutant changes one place of a copy of the code; its tests then run until one fails. Mutants run one after the
other, each in a process forked from one that has imported the libraries, and none of our modules. A test counts only if
it passes without the mutant. The exit code is 1 below a score of 95 %, and 2 if a list is out of date.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).parents[1]
LISTS = ROOT / "tests" / "mutants"
TREE = ("pipeline", "flows", "tests", "benchmarks", "configs", "docs", "pyproject.toml", "README.md")
"""What tests need of the repository."""
MIN_SCORE = 0.95
TIMEOUT_S = 300.0
"""Endless loops end here; a mutant that does not end is noticed by whoever waits for it."""
ERROR = 70
"""Exit code of a forked process that did not even reach the tests."""
LIBRARIES = (
    *(
        "numpy",
        "torch",
        "rasterio",
        "shapely",
        "geopandas",
        "pyogrio",
        "pyarrow",
        "numba",
        "scipy",
        "PIL",
        "matplotlib",
    ),
    *("boto3", "requests", "pystac", "pystac_client", "distributed", "psutil", "pytest"),
)
"""Imported once, before the first fork."""

Outcome = Literal["killed", "survived", "equivalent"]


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of the code, and the tests that should notice it."""

    id: str
    file: str
    """Path in the repository."""
    old: str
    """Text that occurs once in the file."""
    new: str
    """Its replacement."""
    tests: tuple[str, ...]
    """Files or node ids; a module of the library stands for its doctests. Slow tests run where they are named."""
    equivalent: str = ""
    """Why no result can differ; such a mutant is not run."""

    def matches(self, selectors: Sequence[str]) -> bool:
        """Whether a selector is this id, or a path above the file."""
        return not selectors or any(each == self.id or self.file.startswith(each) for each in selectors)

    def faults(self, root: Path) -> Iterator[str]:
        """What of the entry no longer fits the code."""
        path = root / self.file
        count = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else 0
        if count != 1:
            yield f"{self.id}: {self.file} contains {self.old!r} {count} times, not once"
        if self.old == self.new:
            yield f"{self.id}: changes nothing"
        if not self.tests:
            yield f"{self.id}: names no test"
        for test in self.tests:
            file, _, name = test.partition("::")
            if not (root / file).is_file() or f"def {name}(" not in f"{(root / file).read_text(encoding='utf-8')}def (":
                yield f"{self.id}: there is no {test}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of a mutant."""

    mutant: Mutant
    outcome: Outcome
    by: str = ""
    """The test that failed, or how else it was noticed."""
    seconds: float = 0.0


def read_mutants(folder: Path = LISTS) -> tuple[Mutant, ...]:
    """All mutants of the lists in a folder.

    A list is a TOML file with a table for each file of the code: `tests`, and `mutants` with `id`, `old`, `new` and
    sometimes `tests` of their own or the reason why they are `equivalent`.
    """
    return tuple(
        Mutant(**{"file": file, **entry, "tests": tuple(entry.get("tests", table["tests"]))})
        for path in sorted(folder.glob("*.toml"))
        for file, table in tomllib.loads(path.read_text(encoding="utf-8")).items()
        for entry in table["mutants"]
    )


def faults_of(mutants: Iterable[Mutant], root: Path = ROOT) -> list[str]:
    """Why a list is out of date; empty if it is not."""
    mutants = [*mutants]
    ids = [mutant.id for mutant in mutants]
    twice = [f"{each}: stands for two mutants" for each in sorted({each for each in ids if ids.count(each) > 1})]
    return twice + [fault for mutant in mutants for fault in mutant.faults(root)]


def main() -> None:
    """Run mutants, print what became of each, and the score of each module."""
    arguments = _parser().parse_args()
    mutants = read_mutants()
    chosen = [mutant for mutant in mutants if mutant.matches(arguments.selectors)]
    faults = faults_of(chosen)
    if faults:
        print("\n".join(faults), file=sys.stderr)
        print(f"{len(faults)} entries of {LISTS.relative_to(ROOT)} no longer fit the code", file=sys.stderr)
        raise SystemExit(2)
    if arguments.check or not chosen:
        print(f"{len(chosen)} of {len(mutants)} mutants are chosen, and fit the code")
        raise SystemExit(0 if chosen else 2)
    with copied_tree() as tree:
        results, unproven = run_mutants(tree, chosen, timeout_s=arguments.timeout)
    print_scores(results)
    for test in unproven:
        print(f"fails without any mutant: {test}", file=sys.stderr)
    raise SystemExit(2 if unproven else int(score_of(results) < MIN_SCORE))


def score_of(results: Iterable[Result]) -> float:
    """Share of the mutants that were noticed, without equivalent ones; 1 without any."""
    counted = [result.outcome == "killed" for result in results if result.outcome != "equivalent"]
    return sum(counted) / len(counted) if counted else 1.0


def print_scores(results: Sequence[Result]) -> None:
    """Print a table with a row for each module, and the mutants that survived."""
    modules: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        modules[result.mutant.file].append(result)
    print(f"\n| module | mutants | killed | equivalent | survived | score |\n|---|---|---|---|---|---|{_date()}")
    for name, rows in [*sorted(modules.items()), ("all", results)]:
        counts = [sum(row.outcome == each for row in rows) for each in ("killed", "equivalent", "survived")]
        print(f"| {name} | {len(rows)} | {counts[0]} | {counts[1]} | {counts[2]} | {100 * score_of(rows):.0f} % |")
    for result in results:
        if result.outcome == "survived":
            print(f"survived: {result.mutant.id}: {result.mutant.old!r} -> {result.mutant.new!r}")


@contextmanager
def copied_tree() -> Iterator[Path]:
    """Yield a temporary copy of the repository, with a link to the shared data beside it."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        for name in TREE:
            source, target = ROOT / name, tree / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, target)
        shared = ROOT.parent / "shared"
        if shared.is_dir():
            (Path(folder) / "shared").symlink_to(shared.resolve())
        yield tree


def run_mutants(tree: Path, mutants: Iterable[Mutant], *, timeout_s: float) -> tuple[list[Result], list[str]]:
    """Run mutants in a copy of the repository; also names the tests that fail without them."""
    for name in LIBRARIES:
        importlib.import_module(name)
    results = []
    for mutant in mutants:
        result = _run_mutant(tree, mutant, timeout_s)
        print(f"{result.outcome:10} {result.seconds:5.1f} s  {mutant.id:28} {result.by}", flush=True)
        results.append(result)
    killers = sorted({result.by for result in results if ".py" in result.by})
    _, failed = _run_tests(tree, killers, timeout_s=timeout_s * max(1, len(killers)), stop_at_first=False)
    return results, failed


def _run_mutant(tree: Path, mutant: Mutant, timeout_s: float) -> Result:
    if mutant.equivalent:
        return Result(mutant=mutant, outcome="equivalent", by=mutant.equivalent)
    started, path = time.monotonic(), tree / mutant.file
    text, stat = path.read_text(encoding="utf-8"), path.stat()
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    try:
        # A compiled function is cached by its own file alone, also if one that it calls has changed.
        code, failed = _run_tests(tree, mutant.tests, timeout_s=timeout_s, fresh_kernels="@compiled" in text)
    finally:
        path.write_text(text, encoding="utf-8")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    by = failed[0] if failed else {0: "", None: "timeout"}.get(code, f"signal {-(code or 0)}")
    outcome: Outcome = "survived" if code == 0 else "killed"
    return Result(mutant=mutant, outcome=outcome, by=by, seconds=time.monotonic() - started)


@dataclass(eq=False)
class _Recorder:
    """A plugin of pytest that keeps the node ids of what failed."""

    failed: list[str] = field(default_factory=list)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and report.nodeid not in self.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.failed.append(report.nodeid)


def _run_tests(
    tree: Path, tests: Sequence[str], *, timeout_s: float, stop_at_first: bool = True, fresh_kernels: bool = False
) -> tuple[int | None, list[str]]:
    """Run tests in a forked process; its exit code, None if it did not end in time, and the tests that failed."""
    if not tests:
        return 0, []
    with tempfile.TemporaryDirectory(prefix="run-", dir=tree.parent) as name:
        folder = Path(name)
        child = os.fork()
        if child == 0:
            code = ERROR
            try:
                os.setsid()
                kernels = folder if fresh_kernels else tree.parent / "kernels"
                code = _test_in_child(tree, tests, folder, kernels, stop_at_first=stop_at_first)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)  # nothing of the parent is unwound here
        code = _wait_for(child, timeout_s)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # also servers that a test left behind
        failed = folder / "failed"
        names = failed.read_text(encoding="utf-8").splitlines() if failed.is_file() else []
        if code is not None and code > 0 and not names:
            output = (folder / "output").read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"pytest ended with {code} although no test failed, for {', '.join(tests)}:\n{output}")
        return code, names


def _wait_for(child: int, timeout_s: float) -> int | None:
    """The exit code of a child; None if it had to be killed."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _test_in_child(tree: Path, tests: Sequence[str], folder: Path, kernels: Path, *, stop_at_first: bool) -> int:
    import numba
    import pytest

    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    os.chdir(tree)
    sys.dont_write_bytecode = True
    sys.path[:] = [str(tree), *(each for each in sys.path if Path(each or ".").resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        del sys.modules[name]
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "NUMBA_CACHE_DIR": str(kernels)}
    numba.config.CACHE_DIR = str(kernels)
    recorder = _Recorder()
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'temporary'}"]
    options += ["-x"] if stop_at_first else ["--continue-on-collection-errors"]
    options += ["-m", ""] if any("::" in test for test in tests) else []
    code = int(pytest.main([*options, *tests], plugins=[recorder]))
    (folder / "failed").write_text("\n".join(recorder.failed), encoding="utf-8")
    return code


def _date() -> str:
    return time.strftime("  <!-- %Y-%m-%d -->")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("selectors", nargs="*", help="ids, or paths of the repository; all without any")
    parser.add_argument("--check", action="store_true", help="only compare the lists with the code")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds for the tests of one mutant")
    return parser


if __name__ == "__main__":
    main()
