"""The benchmarks run, at toy size, so that none rots."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_pipeline_benchmark_prints_a_row_for_every_side(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.pipeline", "--sides", "300", "--tile", "128"]
    command += ["--folder", str(tmp_path), "--json", str(tmp_path / "figures.json")]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    (row,) = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert "300" in done.stdout
    assert row["mosaic_mpx_s"] > 0
    assert row["peak_mib"] > 0
