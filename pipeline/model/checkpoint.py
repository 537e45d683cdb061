"""Checkpoints: weights and model card in one safetensors file, written atomically and verified when read.

The file's metadata holds the card, the architecture and a SHA-256 of everything else in the file, because
safetensors notices truncation but loads a flipped bit. No code in a checkpoint is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ModelError, TransientError
from pipeline.model.card import ModelCard, Normalization
from pipeline.model.tensor_checks import check_finite, check_shapes, count_bytes, shape_of
from pipeline.storage import atomic_write
from pipeline.text import read_json

if TYPE_CHECKING:
    from torch import nn

    from pipeline.model.networks.registry import Network

__all__ = [
    "Checkpoint",
    "CheckpointFacts",
    "ModelCard",
    "Normalization",
    "describe_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
]

MAX_HEADER_BYTES = 100_000_000
"""The bound of the safetensors format; a larger number means another format."""
MAX_BYTES = 8 * 2**30
"""Bytes of a checkpoint; the largest network of the registry takes a quarter of it."""
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of files of `torch.save`: a zip archive, or in old versions a bare pickle."""
HOW_TO_CONVERT = (
    "load its state in your own code with torch.load(path, weights_only=True), put it into a network of "
    "pipeline.model.networks.registry and write that with "
    "pipeline.model.checkpoint.save_checkpoint(path, network, card)"
)


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts:
    """Contents of a checkpoint's header; its weights are neither read nor verified."""

    card: ModelCard
    """Facts needed to use the network."""
    architecture: Mapping[str, object]
    """`name` of the network family and the fields of its spec."""
    sha256: str
    """Content hash stored in the file, 64 hex digits; loading verifies it."""
    parameters: int
    """Numbers stored, batch statistics included."""
    path: Path
    """The file."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A network ready for inference, with its card."""

    network: nn.Module
    """`(N, bands, H, W) -> (N, classes, H, W)` logits; float32, on the CPU, in evaluation mode."""
    card: ModelCard
    """Facts needed to use the network."""
    sha256: str
    """Content hash of weights, card and architecture, 64 hex digits: the model's identity."""
    path: Path
    """The file it came from."""


def save_checkpoint(path: str | Path, network: nn.Module, card: ModelCard) -> str:
    """Write network and card as one file, atomically.

    Args:
        path: the safetensors file to write or replace; its folder must exist.
        network: a network of `pipeline.model.networks.registry`, on any device.
        card: must agree with the network in bands, classes, stride, margin and receptive field.

    Returns:
        The content hash, equal to `load_checkpoint(path).sha256`.

    Raises:
        ModelError: when the network is not native, has weights that are not finite, or the card does not fit it.
        TransientError: the file cannot be written.
    """
    from safetensors.torch import save

    from pipeline.model.networks.registry import architecture_of, as_network

    path = Path(path)
    _check_card(card, as_network(network), path)
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    check_finite(tensors, path)
    facts = {"card": card.to_json(), "architecture": json.dumps(architecture_of(network), sort_keys=True)}
    # The digest covers card and architecture, and is itself stored next to them.
    header, data = _split(save(tensors), path)
    header["__metadata__"] = facts
    sha256 = facts["sha256"] = _digest(header, data)
    atomic_write(path, _join(header, data))
    return sha256


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint; the verified bytes are the ones that are loaded.

    Raises:
        ModelError: when the file is missing, of another kind, damaged, or does not describe a network of ours.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = Path(path)
    content = _read(path)
    header, data = _split(content, path)
    metadata = _metadata(header, path)
    if _digest(header, data) != metadata["sha256"]:
        raise ModelError(f"{path}: the content does not match its SHA-256, so it is damaged; copy or train it again")
    card = _card(metadata, path)
    # Shapes without memory: the stored tensors are assigned below, not copied.
    with torch.device("meta"):
        network = _build(metadata, path)
    _check_card(card, network, path)
    try:
        tensors = load(content)
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file, or its header is damaged: {error}") from error
    # Before they are assigned: `assign` takes tensors as they are.
    check_shapes(tensors, network, path)
    check_finite(tensors, path)
    network.load_state_dict(tensors, assign=True)
    return Checkpoint(network=network.float().eval(), card=card, sha256=metadata["sha256"], path=path)


def describe_checkpoint(path: str | Path) -> CheckpointFacts:
    """Card and architecture of a checkpoint from its header alone, without torch and without the weights.

    Raises:
        ModelError: when the file is missing, of another kind, or has no card.
    """
    path = Path(path)
    header, _ = _split(_read(path, header_only=True), path, whole=False)
    metadata = _metadata(header, path)
    _data_bytes(header, path)
    return CheckpointFacts(
        card=_card(metadata, path),
        architecture=_architecture(metadata, path),
        sha256=metadata["sha256"],
        parameters=sum(math.prod(shape_of(entry)) for entry in _entries(header).values()),
        path=path,
    )


def _read(path: Path, *, header_only: bool = False) -> bytes:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such checkpoint file")
    try:
        with path.open("rb") as file:
            if not header_only and path.stat().st_size <= MAX_BYTES:
                return file.read()
            start = file.read(8)
            content = start + file.read(min(int.from_bytes(start, "little"), MAX_HEADER_BYTES))
    except OSError as error:
        raise TransientError(f"{path}: cannot be read: {error}") from error
    if not header_only:
        raise ModelError(f"{path}: {path.stat().st_size} bytes, over {MAX_BYTES}, which no network of ours takes")
    return content


def _split(content: bytes, path: Path, *, whole: bool = True) -> tuple[dict[str, object], memoryview]:
    """Header and tensor bytes of a safetensors file: 8 bytes of header length, JSON header, tensors."""
    if content.startswith(PICKLE_STARTS):
        raise ModelError(
            f"{path}: a PyTorch pickle or archive, which could run code and is never loaded; {HOW_TO_CONVERT}"
        )

    # Bound the header's length before it is read.
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > MAX_HEADER_BYTES:
        raise ModelError(
            f"{path}: not a safetensors file; name a checkpoint of scenemill train, or an imported model (.pt2)"
        )
    if len(content) < 8 + length:
        raise ModelError(f"{path}: truncated inside its header; copy or train it again")
    try:
        header = read_json(content[8 : 8 + length])
    except ValueError as error:
        raise ModelError(f"{path}: not a safetensors file, or its header is damaged: {error}") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path}: not a safetensors file: its header is no JSON object")
    data = memoryview(content)[8 + length :]
    if whole and len(data) != _data_bytes(header, path):
        raise ModelError(
            f"{path}: holds {len(data)} bytes of weights where its header says {_data_bytes(header, path)}: "
            "truncated or overgrown; copy or train it again"
        )
    return header, data


def _join(header: Mapping[str, object], data: memoryview) -> bytes:
    """Inverse of `_split` with sorted keys, so that equal content gives equal files (safetensors shuffles them)."""
    text = json.dumps(header, sort_keys=True).encode()
    # The format aligns tensors to 8 bytes; JSON allows trailing spaces.
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, data))


def _entries(header: Mapping[str, object]) -> dict[str, object]:
    return {key: entry for key, entry in header.items() if key != "__metadata__"}


def _data_bytes(header: Mapping[str, object], path: Path) -> int:
    try:
        return count_bytes(_entries(header))
    except ValueError as error:
        raise ModelError(f"{path}: not a safetensors file, or its header is damaged: it has {error}") from error


def _metadata(header: Mapping[str, object], path: Path) -> dict[str, str]:
    metadata = header.get("__metadata__", {})
    missing = [
        key
        for key in ("card", "architecture", "sha256")
        if not isinstance(metadata, dict) or not isinstance(metadata.get(key), str)
    ]
    if missing:
        raise ModelError(
            f"{path}: a safetensors file without {', '.join(missing)} in its metadata, so it is no Scenemill "
            "checkpoint; put the weights into a network of pipeline.model.networks.registry and write that with "
            "save_checkpoint"
        )
    assert isinstance(metadata, dict)
    return metadata


def _digest(header: Mapping[str, object], data: memoryview) -> str:
    """SHA-256 over the header without its `sha256` entry, as canonical JSON, and the tensor bytes."""
    metadata = header["__metadata__"]
    assert isinstance(metadata, dict)
    facts = {key: value for key, value in metadata.items() if key != "sha256"}
    canonical = json.dumps({**header, "__metadata__": facts}, sort_keys=True)
    digest = hashlib.sha256(canonical.encode())
    digest.update(data)
    return digest.hexdigest()


def _card(metadata: Mapping[str, str], path: Path) -> ModelCard:
    try:
        return ModelCard.from_json(metadata["card"])
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _build(metadata: Mapping[str, str], path: Path) -> Network:
    from pipeline.model.networks.registry import network_from

    try:
        return network_from(_architecture(metadata, path))
    except ModelError as error:
        raise ModelError(f"{path}: the architecture in it describes no network of ours: {error}") from error


def _architecture(metadata: Mapping[str, str], path: Path) -> Mapping[str, object]:
    try:
        facts = read_json(metadata["architecture"])
    except ValueError as error:
        raise ModelError(f"{path}: the architecture in it describes no network of ours: {error}") from error
    return facts if isinstance(facts, dict) else {}


def _check_card(card: ModelCard, network: Network, path: Path) -> None:
    spec = network.spec
    pairs = {"bands": (len(card.bands), spec.bands), "classes": (len(card.classes), spec.classes)}
    pairs |= {key: (getattr(card, key), getattr(spec, key)) for key in ("stride", "size_offset", "margin")}
    pairs["receptive_field"] = (card.receptive_field or 0, spec.receptive_field or 0)
    if card.aligned_halo is not None:
        pairs["aligned_halo"] = (card.aligned_halo, spec.aligned_halo or 0)
    pairs["outputs"] = (card.outputs == "logits", True)
    wrong = [f"{key} {said} instead of {true}" for key, (said, true) in pairs.items() if said != true]
    if wrong:
        raise ModelError(f"{path}: the card does not fit the network: {'; '.join(wrong)}")
