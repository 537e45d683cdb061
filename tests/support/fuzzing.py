"""Fuzzing of every reader of files that others write: it succeeds or raises an error of ours, whatever the bytes.

PYTHONPATH=.:tests python -m support.fuzzing --minutes 60                 all targets, in turn
PYTHONPATH=.:tests python -m support.fuzzing tiff stac --minutes 10       some of them
PYTHONPATH=.:tests python -m support.fuzzing --replay fuzz-findings/FILE  one finding again, with its traceback

Each target runs in a process of its own with 8 GiB of memory, so that a crash or a hang is a finding too. Findings are
files in `fuzz-findings/`, named after the target and the seed; each deserves a case of its own in tests/hostile/.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from pathlib import Path
from random import Random

from pipeline.errors import ScenemillError
from support.fuzz_targets import TARGETS

FINDINGS = Path("fuzz-findings")
MEMORY_BYTES = 8 * 2**30
HANG_S = 120
"""Seconds of one input after which its process is ended; generous, since machines are busy."""
SHARE_S = 20
"""Seconds that a target runs before the next one has its turn."""


class UnexpectedError(AssertionError):
    """A reader did what no file may make it do."""


def try_input(target: str, content: bytes, folder: Path) -> bool:
    """Read one input in an empty folder; whether it was accepted.

    Raises:
        UnexpectedError: an exception that is none of ours, or a file outside the folder.
    """
    inside, path = folder / "inside", folder / "inside" / TARGETS[target].name
    inside.mkdir()
    path.write_bytes(content)
    try:
        TARGETS[target].read(path)
        accepted = True
    except ScenemillError as error:
        accepted = False
        if not str(error).isprintable() or len(str(error)) > 5000:
            raise UnexpectedError(f"{target}: a message of {len(str(error))} characters: {str(error)[:300]}") from error
    except Exception as error:
        raise UnexpectedError(f"{target}: {type(error).__name__}: {str(error)[:300]}") from error
    finally:
        shutil.rmtree(inside)
    if [*folder.iterdir()]:
        raise UnexpectedError(f"{target}: wrote outside its folder: {[*folder.iterdir()]}")
    return accepted


def fuzz(target: str, *, seconds: float, seed: int) -> None:
    """Run one target in this process until the time is up, an input is a finding, or it never returns."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    faulthandler.enable()
    end, executions, accepted = time.monotonic() + seconds, 0, 0
    known: set[str] = set()
    current = FINDINGS / f"{target}-{seed}.running"
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        with suppress(UnexpectedError):  # imports take seconds, and are not counted
            try_input(target, TARGETS[target].make(Random(0)), Path(name))
        while time.monotonic() < end:
            content = TARGETS[target].make(Random(f"{target} {seed} {executions}"))
            current.write_bytes(content)
            faulthandler.dump_traceback_later(HANG_S, exit=True)
            try:
                accepted += try_input(target, content, Path(name))
            except UnexpectedError as error:
                if (place := _place(error)) not in known:
                    known.add(place)
                    traceback.print_exc()
                    os.replace(current, FINDINGS / f"{target}-{seed}-{executions}")
                for rest in Path(name).iterdir():
                    shutil.rmtree(rest)
            faulthandler.cancel_dump_traceback_later()
            executions += 1
    current.unlink(missing_ok=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{target} {executions} {accepted} {peak:.2f}", flush=True)


def _place(error: UnexpectedError) -> str:
    """Kind of the error, and the line of ours that it came from: one finding for each is enough."""
    cause = error.__cause__ or error
    frames = [frame for frame in traceback.extract_tb(cause.__traceback__) if "/pipeline/" in frame.filename]
    return f"{type(cause).__name__} {frames[-1].filename}:{frames[-1].lineno}" if frames else str(error)[:60]


def run_all(targets: list[str], minutes: float, seed: int) -> int:
    """Run the targets in turn, each in a process of its own; prints the executions of each. The number of findings."""
    FINDINGS.mkdir(exist_ok=True)
    before, end = {*FINDINGS.iterdir()}, time.monotonic() + 60 * minutes
    total = {target: [0, 0, 0.0, 0] for target in targets}
    while time.monotonic() < end:
        for target in targets:
            share = min(SHARE_S, end - time.monotonic())
            if share <= 0:
                break
            seed += 1
            command = [sys.executable, "-m", "support.fuzzing", target, "--child", str(share), "--seed", str(seed)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            counts = done.stdout.split()[-4:]
            if done.returncode or len(counts) != 4:
                running = FINDINGS / f"{target}-{seed}.running"
                if running.exists():
                    running.rename(FINDINGS / f"{target}-{seed}-crash")
                total[target][3] += 1
                print(f"{target} seed {seed}: the process ended with {done.returncode}", file=sys.stderr)
                continue
            total[target][0] += int(counts[1])
            total[target][1] += int(counts[2])
            total[target][2] = max(total[target][2], float(counts[3]))
    for target, (executions, accepted, peak, crashes) in total.items():
        print(f"{target:12} {executions:9,} executions, {accepted:8,} accepted, {peak:.1f} GiB, {crashes} crashes")
    found = {*FINDINGS.iterdir()} - before
    print(f"{len(found)} findings in {FINDINGS}/")
    return len(found)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Fuzz the readers of files that others write.")
    parser.add_argument("targets", nargs="*", help=f"of: {', '.join(TARGETS)}; default: all")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--replay", type=Path)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.replay:
        with tempfile.TemporaryDirectory() as folder:
            print(try_input(arguments.replay.name.partition("-")[0], arguments.replay.read_bytes(), Path(folder)))
    elif arguments.child is not None:
        fuzz(arguments.targets[0], seconds=arguments.child, seed=arguments.seed)
    else:
        sys.exit(1 if run_all(arguments.targets or [*TARGETS], arguments.minutes, arguments.seed) else 0)


if __name__ == "__main__":
    main()
