"""Run identity: settings, files and versions that decide the result; equal ones give equal bytes on one CPU type."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

import pipeline
from pipeline.model.predictor import resolve_device
from pipeline.scene import identity_facts
from pipeline.storage import sha256_of_json
from pipeline.training.data.samples import LabelledData
from pipeline.training.optimizer import resolve_autocast_dtype
from pipeline.training.settings.spec import TrainSpec

TRAINING_FORMAT = 1
"""Increased whenever the same settings and data give other weights, or the format of the saved state changes."""
IRRELEVANT_KEYS: dict[str, tuple[str, ...]] = {
    "learning": ("max_minutes", "save_minutes", "device", "precision"),
    "samples": ("threads", "cache_mb"),
    "reading": ("threads",),
    "split": ("validation", "test"),
}
"""Keys, by section, that do not change the weights, or whose effect is covered by another entry of the identity."""
IGNORED_SUFFIXES = (".safetensors", ".gpkg-wal", ".gpkg-shm", ".gpkg-journal")
"""Files in a folder of labels that are ignored: our own checkpoints, and SQLite's temporary files."""
Identity = Mapping[str, Any]
"""Nested JSON object."""


def run_identity(spec: TrainSpec, data: LabelledData, labels: Sequence[str | Path]) -> Identity:
    """Relevant settings, scenes and label files (by name, size and time), device, precision and versions."""
    device = resolve_device(spec.learning.device, key="learning.device")
    identity = {
        "format": TRAINING_FORMAT,
        "settings": relevant_settings(spec),
        "scenes": _scenes(data),
        "labels": {f"{n} {name}": facts for n, place in enumerate(labels) for name, facts in _files(Path(place))},
        "labelled_area": dict(_files(Path(area))) if (area := spec.labelled_area) else {},
        "device": device.type,
        "precision": str(resolve_autocast_dtype(spec.learning.precision, device)),
        "versions": versions(),
    }
    plain: Identity = json.loads(json.dumps(identity))
    return plain


def versions() -> dict[str, str]:
    """Versions of this package and of torch."""
    return {"scenemill": pipeline.__version__, "torch": str(torch.__version__)}


def relevant_settings(spec: TrainSpec) -> dict[str, Any]:
    """All settings but those without effect on the weights, and paths, which the identity of their files replaces."""
    plain = asdict(spec)
    for section, keys in IRRELEVANT_KEYS.items():
        for key in keys:
            plain[section].pop(key, None)
    for key in ("labelled_area", "artifacts"):
        plain.pop(key, None)
    return plain


def describe_difference(previous: Identity, current: Identity, *, max_items: int = 3) -> str:
    """The keys that differ between two identities, with both values.

    >>> describe_difference({"settings": {"seed": 0}}, {"settings": {"seed": 1}})
    'settings.seed was 0, is 1'
    """
    before, after = dict(_flatten(previous)), dict(_flatten(current))
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    differences = [f"{key} was {_short(before.get(key))}, is {_short(after.get(key))}" for key in keys[:max_items]]
    more = [f"and {len(keys) - max_items} more"] if len(keys) > max_items else []
    return "; ".join(differences + more)


def _short(value: object) -> str:
    """A value for a message; hashes are cut to their first digits."""
    return "absent" if value is None else re.sub(r"\b([0-9a-f]{8})[0-9a-f]{24,}\b", r"\1", str(value))


def _scenes(data: LabelledData) -> dict[str, str]:
    """SHA-256 of the identity of each scene, and the part that the settings assign it to."""
    part = dict.fromkeys(data.validation, " validation") | dict.fromkeys(data.test, " test")
    scenes = [source.scene for source in data.sources]
    return {scene.id: sha256_of_json(identity_facts(scene)) + part.get(scene.id, "") for scene in scenes}


def _files(path: Path) -> Iterator[tuple[str, str]]:
    """Name, and size and modification time, of a file or of each file in a folder."""
    inside = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in inside:
        if file.is_file() and not file.name.startswith(".") and file.suffix not in IGNORED_SUFFIXES:
            facts = file.stat()
            yield file.name, f"{facts.st_size} bytes of {facts.st_mtime_ns}"


def _flatten(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flatten(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
