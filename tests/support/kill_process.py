"""A process that runs the command again and again in forked children, and kills them when and where it is told.

    python kill_process.py     reads requests, writes answers: one line of JSON each

Everything is imported once, before the first child; a child does what the command does, in a process of its own.
"""

from __future__ import annotations

import ctypes
import json
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Self

ROOT = Path(__file__).parents[2]
NOT_IMPORTED = (
    "pipeline.training",
    "pipeline.evaluation",
    "pipeline.distribute.nanny",
    "pipeline.model.predictor.onnx",
)
"""Modules that no run in one process needs; dask's nanny starts threads, which a fork would lose."""
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "sqlite3.connect")
"""What Python tells of changes to a disk; besides, files that are opened for writing, and what is flushed."""
EVENTS = ("disk", "call")


@dataclass(frozen=True, kw_only=True)
class Kill:
    """When a child dies."""

    event: Literal["disk", "call"]
    """`disk`: just before it changes the disk; `call`: as one of our functions is called, or calls into a library."""
    count: int
    """At so many such events, from 1."""
    later_us: int = 0
    """So many microseconds after that, wherever it then is: inside a library too."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a child."""

    code: int
    """Its exit code; below 0: the signal that killed it."""
    events: dict[str, int]
    """How many there were of each kind, unless it was killed."""
    output: str
    """What it wrote to the error stream."""


class Killer:
    """Starts children of one process that has imported everything."""

    def __init__(self) -> None:
        threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **threads, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
            text=True,
            cwd=ROOT,
        )

    def run(
        self,
        *command: object,
        kill: Kill | None = None,
        count: bool = False,
        file_bytes: int = 0,
        limits: dict[str, int] | None = None,
        ordinary: bool = False,
    ) -> Outcome:
        """Run the command in a child.

        Args:
            command: its arguments.
            kill: when the child dies.
            count: count events to the end.
            file_bytes: no file may grow beyond this, as on a full disk; 0: any may.
            limits: further limits by the names of `resource`, e.g. `RLIMIT_NOFILE`.
            ordinary: without the rights of root, which permissions do not hold back.
        """
        limits = {**({"RLIMIT_FSIZE": file_bytes} if file_bytes else {}), **(limits or {})}
        return self.runs([command], kill=kill, count=count, limits=limits, ordinary=ordinary)[0]

    def runs(
        self,
        commands: list[tuple[object, ...]],
        *,
        kill: Kill | None = None,
        count: bool = False,
        limits: dict[str, int] | None = None,
        ordinary: bool = False,
    ) -> list[Outcome]:
        """Run several commands at once, a child each."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "commands": [[str(part) for part in command] for command in commands],
            "kill": None if kill is None else asdict(kill),
            "count": count,
            "limits": limits or {},
            "ordinary": ordinary,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return [Outcome(**each) for each in json.loads(self._process.stdout.readline())]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def killer() -> Iterator[Killer]:
    """A killer, gone afterwards."""
    with Killer() as found:
        yield found


# In that process


def serve() -> None:
    """Answer requests until there are no more."""
    _import_all()
    for line in sys.stdin:
        request = json.loads(line)
        children = [_start(command, request) for command in request["commands"]]
        print(json.dumps([_outcome(*child) for child in children]), flush=True)


def _import_all() -> None:
    import pyogrio  # noqa: F401
    import torch
    from numba.core.registry import cpu_target

    import pipeline

    # Every module of a run, also those that a face or a function imports late: a child then writes no bytecode.
    for module in pkgutil.walk_packages(pipeline.__path__, "pipeline."):
        if not module.name.startswith(NOT_IMPORTED):
            import_module(module.name)

    cpu_target.typing_context.refresh()  # what numba imports with the first compiled function: half of a child's time
    cpu_target.target_context.refresh()
    torch.set_num_threads(1)


def _start(command: list[str], request: dict[str, Any]) -> tuple[int, int]:
    """A child's id, and where what it says can be read."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    os.close(read)
    os.dup2(write, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _child(command, request)
    return 0, 0


def _outcome(child: int, read: int) -> dict[str, Any]:
    with os.fdopen(read, encoding="utf-8", errors="replace") as stream:
        output = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    output, _, counted = output.partition("\0")
    return {"code": code, "events": json.loads(counted or "{}"), "output": output}


def _child(command: list[str], request: dict[str, Any]) -> None:
    """Run the command as a process does, and never return."""
    from pipeline.cli import main

    code, counter = 70, None
    try:
        for name, value in request["limits"].items():
            limit = getattr(resource, name)
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
        if request["ordinary"]:
            _drop_rights()
        if request["kill"] or request["count"]:
            counter = _Counter(Kill(**request["kill"]) if request["kill"] else None)
            counter.start()
        main(command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 71
    finally:
        sys.setprofile(None)
        sys.stderr.write("\0" + json.dumps(counter.seen if counter else {}))
        sys.stderr.flush()
        os._exit(code)


def _drop_rights() -> None:
    """Give up all capabilities: root then obeys permissions like any user, and keeps its number and its files."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    if libc.capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


class _Counter:
    """Counts what happens, and ends the process at the chosen moment."""

    def __init__(self, kill: Kill | None) -> None:
        self._kill, self.seen = kill, dict.fromkeys(EVENTS, 0)
        self._fsync = os.fsync
        self._ours = str(ROOT / "pipeline")

    def start(self) -> None:
        """Begin; what costs time is watched only where it is asked for."""
        if self._kill is None or self._kill.event == "disk":
            sys.addaudithook(self._audit)
            os.fsync = self._flush
        if self._kill is None or self._kill.event == "call":
            threading.setprofile(self._profile)
            sys.setprofile(self._profile)

    def _audit(self, event: str, given: tuple[Any, ...]) -> None:
        if event in CHANGES or (event == "open" and isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)):
            self._happens("disk")

    def _flush(self, handle: int) -> None:
        self._happens("disk")
        self._fsync(handle)

    def _profile(self, frame: FrameType, event: str, _: object) -> None:
        if event in ("call", "c_call") and frame.f_code.co_filename.startswith(self._ours):
            self._happens("call")

    def _happens(self, event: str) -> None:
        self.seen[event] += 1
        if self._kill is None or event != self._kill.event or self.seen[event] != self._kill.count:
            return
        if self._kill.later_us:
            signal.setitimer(signal.ITIMER_REAL, self._kill.later_us / 1e6)  # nobody handles SIGALRM: it kills
        else:
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    serve()
