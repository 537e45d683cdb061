"""The benchmarks run, at toy size, so that none rots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.trials.membranes import rand_error

ROOT = Path(__file__).parents[1]


def test_the_pipeline_benchmark_prints_a_row_for_every_side(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.pipeline", "--sides", "300", "--tile", "128"]
    command += ["--folder", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (row,) = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert "300" in done.stdout
    assert row["mosaic_mpx_s"] > 0
    assert row["peak_mib"] > 0


@pytest.mark.slow
def test_the_accuracy_benchmark_trains_and_scores_real_chips(shared_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.accuracy", "mangrove", "--json", str(tmp_path / "figures.json")]
    command += ["--set", "learning.epochs=1", "--set", "samples.windows_per_epoch=16", "--set", "leaves.overlays=0"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (table,) = json.loads((tmp_path / "figures.json").read_text())["mangrove"]
    assert [row["bands"] for row in table["rows"]] == ["red, green, blue, nir", "red, green, blue"]
    assert all(0 <= row["IoU"] <= 1 for row in table["rows"])
    assert "| red, green, blue |" in done.stdout


def test_every_trial_says_what_it_does() -> None:
    command = [sys.executable, "-m", "benchmarks.accuracy", "--list"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert all(len(line.split(maxsplit=1)) == 2 for line in done.stdout.splitlines())
    assert len(done.stdout.splitlines()) == 9


def test_the_rand_error_counts_pairs_of_pixels() -> None:
    truth = np.array([[1, 1, 0, 1, 1, 1]], bool)
    assert rand_error(truth, truth) == 0
    merged = np.ones_like(truth)
    assert rand_error(truth, merged) == pytest.approx(1 - 2 * (4 + 9) / ((4 + 9) + 25))
    split = np.array([[1, 1, 0, 1, 0, 1]], bool)  # three pixels of one cell become three parts of one pixel
    assert rand_error(truth, split) == pytest.approx(1 - 2 * (4 + 3) / ((4 + 9) + (4 + 3)))
