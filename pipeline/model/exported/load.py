"""Import of exported networks: a `torch.export` archive and a model card in one verified file.

`import_model` reads the archive with our own reader (`archive`, `graph`), which executes nothing and takes only the
operators in `operators`, runs the network on trial tiles (`conformance`), and writes an archive that
`torch.export.load` still reads, without pickles, source lines and generated code, with the card and a SHA-256 inside.
`load_exported` reads only such files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pipeline.errors import ModelError, SettingsError
from pipeline.model.card import ModelCard
from pipeline.model.exported.archive import CARD, FORMAT, GRAPH, SAMPLE, WEIGHTS, Archive, digest_of, write_archive
from pipeline.model.exported.graph import read_graph
from pipeline.model.exported.shapes import Axis
from pipeline.storage import atomic_path
from pipeline.text import read_yaml_file

if TYPE_CHECKING:
    from pipeline.model.exported.module import ExportedNetwork

__all__ = ["ExportedFacts", "ExportedModel", "describe_exported", "import_model", "load_exported"]

SUFFIX = ".pt2"
"""File suffix of imported networks."""
_LEAF = '{"type": null, "context": null, "children_spec": []}'
_ARGUMENTS = f'{{"type": "builtins.tuple", "context": "null", "children_spec": [{_LEAF}]}}'
_KEYWORDS = '{"type": "builtins.dict", "context": "[]", "children_spec": []}'
_ONE_INPUT = f'[1, {{"type": "builtins.tuple", "context": "null", "children_spec": [{_ARGUMENTS}, {_KEYWORDS}]}}]'
_ONE_OUTPUT = f"[1, {_LEAF}]"
"""How torch's exporter describes a call of one tensor, and a result of one."""


@dataclass(frozen=True, kw_only=True)
class ExportedFacts:
    """Contents of an imported file; its weights are neither read nor verified."""

    card: ModelCard
    """Facts needed to use the network."""
    sha256: str
    """Content hash stored in the file, 64 hex digits; loading verifies it."""
    parameters: int
    """Numbers stored, batch statistics included."""
    operators: int
    """Calls in its graph."""
    sizes: str
    """Batch, height and width that the export takes, for a person to read."""
    torch_version: str
    """The torch that exported it."""
    path: Path
    """The file."""


@dataclass(frozen=True, kw_only=True)
class ExportedModel:
    """An imported network ready for inference, with its card."""

    network: ExportedNetwork
    """`(N, bands, H, W) -> (N, classes, h, w)` as the card says; float32, on the CPU."""
    card: ModelCard
    """Facts needed to use the network."""
    sha256: str
    """Content hash of graph, weights and card, 64 hex digits: the model's identity."""
    path: Path
    """The file it came from."""


def import_model(network: str | Path, card: str | Path, out: str | Path) -> ExportedFacts:
    """Write an exported network and its card as one file, atomically.

    Args:
        network: a file of `torch.export.save`: one module, tiles `(N, bands, H, W)` float32 in, one tensor
            `(N, classes, h, w)` out, exported in evaluation mode.
        card: a JSON or YAML file with the keys of `ModelCard`. Without `receptive_field`, it is unbounded; the
            `tile_size` of an export with fixed sizes is filled in.
        out: the `.pt2` file to write or replace; its folder must exist.

    Raises:
        SettingsError: a path is wrong.
        ModelError: the archive holds something other than plain data and known operators, or the network does
            not match its card.
        TransientError: the file cannot be written.
    """
    from pipeline.model.exported.conformance import check_network
    from pipeline.model.exported.module import ExportedNetwork, read_tensors

    source, target = Path(network), Path(out)
    if target.suffix != SUFFIX or not target.absolute().parent.is_dir():
        raise SettingsError(f"--out {target} must end in {SUFFIX} and lie in a folder that exists")
    archive, found = Archive(source), read_card(Path(card))
    with _errors_name(source):
        content = archive.read_json(GRAPH)
        graph = read_graph(content)
        found = resolve_card(found, graph.axes)
        check_network(ExportedNetwork(graph, read_tensors(archive)), found)

    # Write a new archive: weights as they are, a graph without paths of the exporting machine, the card.
    members = {name: archive.read(name) for name in archive.names if name not in (CARD, GRAPH)}
    members[GRAPH] = bytearray(json.dumps(_stripped(content), sort_keys=True).encode())
    text = found.to_json()
    sha256 = digest_of(text, sorted(members.items()))
    label = json.dumps({"card": text, "sha256": sha256}).encode()
    with atomic_path(target) as partial, partial.open("wb") as file:
        write_archive(file, members | FORMAT | {SAMPLE: b"", ".data/version": b"6\n", CARD: label})
    return describe_exported(target)


def load_exported(path: str | Path) -> ExportedModel:
    """Read and verify an imported network; the verified bytes are the ones that are loaded."""
    from pipeline.model.exported.module import ExportedNetwork, read_tensors

    path = Path(path)
    archive = Archive(path)
    text, sha256 = _label(archive)
    if archive.digest(text) != sha256:
        raise ModelError(f"{path}: the content does not match its SHA-256, so it is damaged; copy or import it again")
    with _errors_name(path):
        card, graph = ModelCard.from_json(text), read_graph(archive.read_json(GRAPH))
        if resolve_card(card, graph.axes) != card:
            raise ModelError("the card does not fit the network; import it again")
        network = ExportedNetwork(graph, read_tensors(archive))
    return ExportedModel(network=network.eval(), card=card, sha256=sha256, path=path)


def describe_exported(path: str | Path) -> ExportedFacts:
    """Card and graph of an imported network, without torch and without the weights.

    Raises:
        ModelError: the file is missing, of another kind, or has no card.
    """
    path = Path(path)
    archive = Archive(path)
    text, sha256 = _label(archive)
    with _errors_name(path):
        card, graph = ModelCard.from_json(text), read_graph(archive.read_json(GRAPH))
    batch, _, height, width = graph.axes
    return ExportedFacts(
        card=card,
        sha256=sha256,
        parameters=_parameters(archive),
        operators=graph.operators,
        sizes=f"batch {batch}, height {height}, width {width}",
        torch_version=graph.torch_version,
        path=path,
    )


def read_card(path: Path) -> ModelCard:
    """A card from a JSON or YAML file; one that names no receptive field has an unbounded one."""
    try:
        content = read_yaml_file(path)
    except OSError as error:
        raise SettingsError(f"--card {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(f"{path}: no JSON or YAML: {error}") from error
    with _errors_name(path):
        if not isinstance(content, dict):
            raise ModelError(f"a model card is a map of keys and values, not {type(content).__name__}")
        return ModelCard.from_json(json.dumps({"receptive_field": None, **content}))


def resolve_card(card: ModelCard, axes: tuple[Axis, ...]) -> ModelCard:
    """The card completed from the export; equal to `card` if it is complete."""
    _, bands, height, width = axes
    if card.aligned_halo is not None:
        raise ModelError("aligned_halo is known of our own networks only; leave it out of the card")
    if not bands.takes(len(card.bands)):
        raise ModelError(
            f"the network takes {bands} bands, and the card names {len(card.bands)}: {', '.join(card.bands)}"
        )
    fixed = {axis.fixed for axis in (height, width) if axis.fixed is not None}
    if len(fixed) > 1:
        raise ModelError(f"the network takes tiles of {height} x {width} px only; export it with square tiles")
    if fixed and card.tile_size not in (None, *fixed):
        raise ModelError(f"the card's tile_size is {card.tile_size}, and the export takes {min(fixed)} px only")
    if fixed:
        return replace(card, tile_size=min(fixed))
    if card.tile_size is None:
        _check_free_sizes(card, height, width)
    elif not (height.takes(card.tile_size) and width.takes(card.tile_size)):
        raise ModelError(
            f"the card's tile_size is {card.tile_size}, and the export takes heights {height}, widths {width}"
        )
    return card


def _check_free_sizes(card: ModelCard, height: Axis, width: Axis) -> None:
    """Small scenes get tiles that are small, and not square: every size of the card's rule must be taken."""
    if height.symbol == width.symbol:
        raise ModelError(
            "the export takes square tiles only; give height and width a torch.export.Dim of their own, "
            "or name a tile_size in the card"
        )
    for word, axis in (("height", height), ("width", width)):
        if card.stride % axis.factor or (card.size_offset - axis.term) % axis.factor:
            raise ModelError(
                f"the export takes a {word} {axis}, and the card allows {card.size_offset} modulo {card.stride}; in "
                f"the card, set stride: {math.lcm(card.stride, axis.factor)} and size_offset: {axis.term % axis.factor}"
            )


def _label(archive: Archive) -> tuple[str, str]:
    """The card's JSON and the SHA-256 stored in an imported file."""
    if CARD not in archive.names:
        raise ModelError(
            f"{archive.path}: an exported network without a model card; join them with "
            f"scenemill import-model {archive.path.name} --card card.yaml --out model.pt2"
        )
    label = archive.read_json(CARD)
    text, sha256 = label.get("card"), label.get("sha256")
    if not isinstance(text, str) or not isinstance(sha256, str):
        raise ModelError(f"{archive.path}: {CARD} has no card and sha256; import the network again")
    return text, sha256


def _parameters(archive: Archive) -> int:
    """Numbers in the archive's weights."""
    try:
        payloads = cast("dict[str, dict[str, dict[str, list[dict[str, int]]]]]", archive.read_json(WEIGHTS)["config"])
        return sum(math.prod(size["as_int"] for size in each["tensor_meta"]["sizes"]) for each in payloads.values())
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{archive.path}: {WEIGHTS} cannot be read: {error!r}") from error


def _stripped(content: Mapping[str, object]) -> dict[str, object]:
    """The graph's JSON without source lines, paths of the exporting machine and guard code."""
    plain = cast("dict[str, object]", _without_metadata(dict(content)))
    module = cast("dict[str, object]", plain["graph_module"])
    call = {"inputs": [], "outputs": [], "in_spec": _ONE_INPUT, "out_spec": _ONE_OUTPUT}
    module["module_call_graph"] = [{"fqn": "", "signature": call}]
    return plain | {"guards_code": [], "verifiers": ["TRAINING"]}


def _without_metadata(value: object) -> object:
    if isinstance(value, dict):
        return {key: {} if key == "metadata" else _without_metadata(inner) for key, inner in value.items()}
    return [_without_metadata(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Begin the messages of errors with the path of the file."""
    try:
        yield
    except ModelError as error:
        raise error if str(error).startswith(str(path)) else ModelError(f"{path}: {error}") from error
