"""Results of a scene called town, of a few bytes, as tests of folders and stores publish them."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.results import Results
from pipeline.results.report import OUTPUTS

KINDS = {"a": "probability", "b": "mask", "c": "polygons"}
"""Short names of the outputs in these tests."""
FILES = {name: OUTPUTS[kind] for name, kind in KINDS.items()}
A, B, C = FILES.values()


def publish_into(work: Path, text: str, names: str = "ab") -> None:
    """Files that hold `text` and a report whose content key it is."""
    for name in names:
        (work / FILES[name]).write_text(text)
    outputs = {KINDS[name]: FILES[name] for name in names}
    report = {"scene": "town", "location": "town.tif", "status": "done", "content_key": text, "outputs": outputs}
    (work / "report.json").write_text(json.dumps(report))


def publish(results: Results, text: str, names: str = "ab") -> None:
    """Publish them."""
    with results.scenes.publishing("town") as work:
        publish_into(work, text, names)
