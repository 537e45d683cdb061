"""What a run wrote, to be held against what another one did."""

from __future__ import annotations

from pathlib import Path


def contents(folder: str | Path) -> dict[str, bytes]:
    """Bytes of every file of a scene's results but the report, which holds times."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "report.json"}
