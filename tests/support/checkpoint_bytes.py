"""Checkpoints built byte by byte: a header and data of any content, with the SHA-256 that fits them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Header = dict[str, Any]


def split_checkpoint(path: Path) -> tuple[Header, bytes]:
    """Header and tensor bytes of a checkpoint."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join_checkpoint(header: bytes, data: bytes = b"") -> bytes:
    """A safetensors file of a header's bytes, whatever they are."""
    return len(header).to_bytes(8, "little") + header + data


def signed(header: Header, data: bytes) -> bytes:
    """A checkpoint whose SHA-256 fits its header and data, so that readers look at the rest."""
    from pipeline.model.checkpoint import _digest

    header = {**header, "__metadata__": {**header["__metadata__"]}}
    header["__metadata__"]["sha256"] = _digest(header, memoryview(data))
    return join_checkpoint(json.dumps(header).encode(), data)


def changed(path: Path, change: Callable[[Header], object]) -> bytes:
    """A checkpoint with another header, and a SHA-256 that fits; `change` works in place."""
    header, data = split_checkpoint(path)
    change(header)
    return signed(header, data)


def with_card(path: Path, **facts: object) -> bytes:
    """A checkpoint with other facts in its card, as no card of ours could hold them."""

    def change(header: Header) -> None:
        metadata = header["__metadata__"]
        metadata["card"] = json.dumps(json.loads(metadata["card"]) | facts)

    return changed(path, change)
