"""Accuracy and speed of training: each claim of docs/explanation/accuracy.md, reproduced by name.

    python -m benchmarks.accuracy --list              the trials, with what each needs
    python -m benchmarks.accuracy forest membranes    these two; tables on the terminal
    python -m benchmarks.accuracy --out out --json figures.json      everything; keeps checkpoints and run folders

Scored scenes take no part in training, nor in choosing epoch, threshold or temperature. Trials on real
data need the folder `../shared/data` next to the repository and are skipped with a message if it is absent.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.trials import averages, buildings, forest, losses, mangrove, membranes, rare, throughput, towns
from benchmarks.trials.records import Options, Table

TRIALS: dict[str, Callable[[Path, Options], Sequence[Table]]] = {
    "forest": forest.run,
    "membranes": membranes.run,
    "mangrove": mangrove.run,
    "buildings": buildings.run,
    "left-out": buildings.run_left_out,
    "towns": towns.run,
    "losses": losses.run,
    "rare": rare.run,
    "averages": averages.run,
    "throughput": throughput.run,
}


def main() -> None:
    """Run the trials asked for, print their tables, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=f"of {', '.join(TRIALS)}; all by default")
    parser.add_argument("--list", action="store_true", help="say what each trial does, and stop")
    parser.add_argument("--out", type=Path, help="keep checkpoints, run folders and results in this folder")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="training settings, for a look")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.trials) - TRIALS.keys())
    if unknown:
        parser.error(f"no trial is called {', '.join(unknown)}; there are {', '.join(TRIALS)}")
    if arguments.list:
        for name, trial in TRIALS.items():
            print(f"{name:12} {(trial.__doc__ or '').splitlines()[0]}")
        return
    print(f"{machine()}, {time.strftime('%d %B %Y')}\n")
    options = Options(overrides=tuple(arguments.set))
    figures: dict[str, object] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as temporary:
        for name in arguments.trials or TRIALS:
            start = time.perf_counter()
            tables = TRIALS[name]((arguments.out or Path(temporary)) / name, options)
            for table in tables:
                print(table.markdown())
            print(f"({name}: {(time.perf_counter() - start) / 60:.1f} minutes)\n", flush=True)
            figures[name] = [table.record() for table in tables]
            if arguments.json:
                arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


def machine() -> str:
    """What the figures were measured on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    return f"{device}, torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
