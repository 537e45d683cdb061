"""Model metadata of a STAC Collection, in the fields of the extension `mlm` 1.4.

An Item may have these fields only if the model itself is one of its assets; a Collection may without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipeline.model import ModelCard

EXTENSION = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
TASKS = ("semantic-segmentation",)
UNKNOWN = "unknown"
"""The extension's value for an unknown architecture."""
DIGEST = 12
"""Hexadecimal digits of a model's SHA-256 in its name."""

Json = dict[str, object]
"""A STAC document, or a part of one."""


def model_fields(models: Mapping[str, ModelCard]) -> Json:
    """Fields of a Collection, from cards by SHA-256 or `function`: all for one model, the shared ones for several."""
    shared: Json = {"mlm:tasks": list(TASKS), "mlm:framework": "PyTorch", "mlm:accelerator": None}
    if len(models) > 1:
        return {**shared, "scenemill:models": sorted(models)}
    ((sha256, card),) = models.items()
    return {
        "mlm:name": f"scenemill-{sha256[:DIGEST]}",
        "mlm:architecture": architecture_of(card),
        **shared,
        "mlm:input": [_input(card)],
        "mlm:output": [_output(card)],
        "scenemill:models": [sha256],
    }


def architecture_of(card: ModelCard) -> str:
    """The name of the network in the card's training facts; `unknown` where other tools wrote none."""
    found: object = card.training
    for key in ("settings", "network", "name"):
        found = found.get(key) if isinstance(found, Mapping) else None
    return found if isinstance(found, str) else UNKNOWN


def class_record(value: int, name: str) -> Json:
    """A class of the extension `classification`, whose names have letters, digits, dashes and underscores only.

    >>> class_record(2, "old road")
    {'value': 2, 'name': 'old-road', 'description': 'old road'}
    """
    return {"value": value, "name": re.sub(r"[^0-9A-Za-z_-]", "-", name), "description": name}


def _input(card: ModelCard) -> Json:
    size = card.tile_size or -1
    return {
        "name": "scene",
        "bands": list(card.bands),
        "input": _structure(len(card.bands), size),
        "value_scaling": [_scaling(card, band) for band in range(len(card.bands))],
    }


def _scaling(card: ModelCard, band: int) -> Json:
    """`clip(raw * gain + bias)` of one band, as an expression on numpy arrays."""
    rule = card.normalization
    text = f"x * {rule.gain[band] if rule.gain else 1.0!r} + {rule.bias[band] if rule.bias else 0.0!r}"
    if rule.clip is not None:
        text = f"clip({text}, {rule.clip[0]!r}, {rule.clip[1]!r})"
    return {"type": "processing", "format": "numpy", "expression": text}


def _output(card: ModelCard) -> Json:
    classes = [class_record(value, name) for value, name in zip(card.mask_values, card.classes, strict=True)]
    return {
        "name": "probabilities",
        "tasks": list(TASKS),
        "result": _structure(len(card.classes), -1),
        "classification:classes": classes,
    }


def _structure(planes: int, size: int) -> Json:
    return {
        "shape": [-1, planes, size, size],
        "dim_order": ["batch", "channel", "height", "width"],
        "data_type": "float32",
    }
