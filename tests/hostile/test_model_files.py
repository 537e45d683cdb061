"""A model file of an attacker loads or is refused as a model, with its name and the reason, by every reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoint_bytes import Header, changed, join_checkpoint, signed, split_checkpoint, with_card
from support.exported_archive import (
    GRAPH,
    WEIGHTS,
    Members,
    argument,
    edited,
    node,
    pack,
    small_members,
    tensor_meta,
    with_label,
    write_card,
)
from support.models import write_checkpoint

from pipeline.errors import ModelError
from pipeline.model import ModelCard, describe_checkpoint, import_model, load_checkpoint, load_predictor
from pipeline.model.exported import describe_exported
from pipeline.model.exported.load import load_exported
from pipeline.model.predictor.compiled import BatchShape

DEEP = 100_000


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("good") / "model.safetensors")


def first_weight(header: Header) -> dict[str, Any]:
    """The entry of the first tensor of the file."""
    entries = [entry for key, entry in header.items() if key != "__metadata__"]
    return min(entries, key=lambda entry: entry["data_offsets"])


def set_of_first(key: str, value: object) -> Callable[[Path], bytes]:
    return lambda path: changed(path, lambda header: first_weight(header).update({key: value}))


def set_architecture(text: str) -> Callable[[Path], bytes]:
    return lambda path: changed(path, lambda header: header["__metadata__"].update(architecture=text))


def set_metadata(**facts: object) -> Callable[[Path], bytes]:
    return lambda path: changed(path, lambda header: header["__metadata__"].update(facts))


def utf16_header(path: Path) -> bytes:
    header, data = split_checkpoint(path)
    return join_checkpoint(json.dumps(header).encode("utf-16"), data)


def nested_header(path: Path) -> bytes:
    return join_checkpoint(b'{"a":' * DEEP + b"1" + b"}" * DEEP)


def overgrown(path: Path) -> bytes:
    """Bytes behind the last tensor, covered by the SHA-256."""
    header, data = split_checkpoint(path)
    return signed(header, data + b"\0" * 8)


def with_gap(path: Path) -> bytes:
    """Bytes between two tensors that belong to none: room for a file of another kind."""
    header, data = split_checkpoint(path)
    for key, entry in header.items():
        if key != "__metadata__" and entry["data_offsets"][0]:
            entry["data_offsets"] = [offset + 8 for offset in entry["data_offsets"]]
    end = first_weight(header)["data_offsets"][1]
    return signed(header, data[:end] + b"\0" * 8 + data[end:])


def twice_in_header(path: Path) -> bytes:
    """A key that two readers could read differently."""
    header, data = split_checkpoint(path)
    text = json.dumps(header)
    return join_checkpoint(b'{"__metadata__": {}, ' + text[1:].encode(), data)


FILES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "huge shape": (set_of_first("shape", [10**30, 3, 3, 3]), "header is damaged: it has a tensor at bytes 0"),
    "shape of no numbers": (set_of_first("shape", ["8", 3, 3, 3]), "without a shape of up to 8 whole numbers"),
    "shape of many axes": (set_of_first("shape", [1] * 10_000), "without a shape of up to 8 whole numbers"),
    "no shape": (lambda path: changed(path, lambda h: first_weight(h).pop("shape")), "without a shape"),
    "overlap": (set_of_first("data_offsets", [4, 868]), "header is damaged: it has a tensor at bytes"),
    "negative offsets": (set_of_first("data_offsets", [-864, 0]), "data_offsets that are not two whole numbers"),
    "one offset": (set_of_first("data_offsets", [0]), "data_offsets that are not two whole numbers"),
    "offset that is no number": (set_of_first("data_offsets", [0, "1"]), "data_offsets that are not two whole"),
    "infinite offset": (set_of_first("data_offsets", [0, float("inf")]), "header is damaged: Infinity"),
    "offset past 64 bits": (set_of_first("data_offsets", [0, 2**80]), "header is damaged: it has a tensor at bytes"),
    "F8": (set_of_first("dtype", "F8_E4M3"), "another type than F64, F32"),
    "C64": (set_of_first("dtype", "C64"), "another type than F64, F32"),
    "BOOL": (set_of_first("dtype", "BOOL"), "another type than F64, F32"),
    "a type that is no text": (set_of_first("dtype", ["F32"]), "another type than F64, F32"),
    "entry that is a number": (
        lambda path: changed(path, lambda header: header.update({"head.bias": 5})), "without a shape",
    ),
    "utf-16 header": (utf16_header, "not a safetensors file, or its header is damaged: 'utf-8' codec"),
    "nested header": (nested_header, "nested over 100 deep"),
    "header that is there twice": (twice_in_header, "the key '__metadata__' is there twice"),
    "header of a list": (lambda path: join_checkpoint(b"[1, 2]"), "its header is no JSON object"),
    "bytes after the weights": (overgrown, "truncated or overgrown; copy or train it again"),
    "bytes between the weights": (with_gap, "header is damaged: it has a tensor at bytes"),
    "nested card": (set_metadata(card='{"training":' * DEEP + "1" + "}" * DEEP), "nested over 100 deep"),
    "card of a long number": (set_metadata(card='{"stride": ' + "9" * 5000 + "}"), "a whole number of 5000 digits"),
    "card with NaN": (set_metadata(card='{"threshold": NaN}'), "NaN, which is no number of JSON"),
    "card that is no text": (set_metadata(card=5), "without card in its metadata"),
    "another text that is none": (set_metadata(note=[1]), "not a safetensors file, or its header is damaged"),
    "nested architecture": (set_architecture("[" * DEEP + "]" * DEEP), "describes no network of ours: .* nested"),
    "architecture 5": (set_architecture("5"), "describes no network of ours: the network None is not one of"),
    "architecture null": (set_architecture("null"), "describes no network of ours: the network None is not one of"),
    "architecture that is no text": (set_metadata(architecture=5), "without architecture in its metadata"),
    "architecture with a list": (set_architecture('{"name": ["unet"]}'), "describes no network of ours"),
    "architecture of lists": (
        set_architecture('{"name": "unet", "bands": [3], "classes": {"a": 1}, "dropout": "x"}'),
        "describes no network of ours",
    ),
    "gain 10**400": (lambda path: with_card(path, normalization={"gain": [10**400] * 3}), "a whole number of 401 digi"),
    "gain past float32": (
        lambda path: with_card(path, normalization={"gain": [1e39] * 3}), r"gain must be a finite number, not 1e\+39",
    ),
    "stride past any tile": (lambda path: with_card(path, stride=10**9), "stride must be at most 4096 px"),
    "whole numbers as weights": (
        lambda path: changed(path, lambda header: [
            entry.update(dtype="F64") for entry in header.values() if entry.get("dtype") == "I64"
        ]), r"tensors do not fit the architecture: .*num_batches_tracked is \(\), not \(\) of whole numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_a_hostile_checkpoint_is_refused_as_a_model_with_the_reason(case: str, good: Path, tmp_path: Path) -> None:
    build, reason = FILES[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(build(good))
    with pytest.raises(ModelError, match=rf"^.*model\.safetensors: .*{reason}") as refused:
        load_checkpoint(path)
    assert len(str(refused.value)) < 1000
    with pytest.raises(ModelError):
        load_predictor(path)
    with suppress(ModelError):
        describe_checkpoint(path)  # reads the header only, so it may find nothing wrong


def test_the_command_names_the_file_and_ends_with_2(good: Path, tmp_path: Path, call) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(set_architecture("null")(good))
    code, _, errors = call("segment", tmp_path / "scene.tif", "--model", path, "--out", tmp_path / "out")
    assert (code, "unexpected" in errors) == (2, False)


def test_a_file_larger_than_any_network_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write(join_checkpoint(b'{"__metadata__": {}}'))
        file.truncate(9 * 2**30)  # sparse: no disk is used
    with pytest.raises(ModelError, match=f"{9 * 2**30} bytes, over {8 * 2**30}, which no network of ours takes"):
        load_checkpoint(path)


def huge_node(target: str, *inputs: dict[str, Any]) -> Members:
    """A graph that makes a tensor of any size before the convolution."""

    def change(content: dict[str, Any]) -> None:
        content["graph_module"]["graph"]["nodes"].insert(0, node(target, "huge", *inputs))

    return edited(GRAPH, change)


def huge_input(content: dict[str, Any]) -> None:
    sizes = content["graph_module"]["graph"]["tensor_values"]["x"]["sizes"]
    sizes[2:] = [{"as_int": 99_999_999_999}] * 2


def set_tensor(key: str, sizes: list[int], strides: list[int]) -> Members:
    def change(content: dict[str, Any]) -> None:
        content["config"][key]["tensor_meta"] = tensor_meta(sizes, strides)

    return edited(WEIGHTS, change)


def encrypted() -> bytes:
    """The flag of encryption on every member."""
    content = bytearray(pack(small_members()))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(mark)
        while at >= 0:
            content[at + offset] |= 1
            at = content.find(mark, at + 4)
    return bytes(content)


ARCHIVES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a fixed size of 99999999999 px": (
        lambda: pack(edited(GRAPH, huge_input)), "tile_size must be at most 16384 px, not 99999999999",
    ),
    "a weight repeated 99999999999 times": (
        lambda: pack(set_tensor("conv.weight", [99_999_999_999, 1, 1, 1], [0, 1, 1, 1])), "conv.weight cannot be read",
    ),
    "zeros of 99999999999": (
        lambda: pack(huge_node("torch.ops.aten.zeros.default", argument("size", as_ints=[99_999_999_999] * 2))),
        "the network fails on tiles",
    ),
    "an operator called without its arguments": (
        lambda: pack(huge_node("torch.ops.aten.relu.default")), "the network fails on tiles",
    ),
    "a graph nested very deep": (
        lambda: pack(small_members() | {GRAPH: b'{"graph_module":' * DEEP + b"1" + b"}" * DEEP}), "nested over 100",
    ),
    "a graph that is no JSON object": (lambda: pack(small_members() | {GRAPH: b"[]"}), "must be a JSON object"),
    "a graph in utf-16": (
        lambda: pack(small_members() | {GRAPH: small_members()[GRAPH].decode().encode("utf-16")}), "is not JSON",
    ),
    "a key that is there twice": (
        lambda: pack(small_members() | {WEIGHTS: b'{"config": {}, "config": {}}'}), "there twice",
    ),
    "members marked as encrypted": (encrypted, "encrypted"),
}  # fmt: skip


@pytest.mark.parametrize("case", ARCHIVES)
def test_a_hostile_archive_is_refused_as_a_model_with_the_reason(case: str, tmp_path: Path) -> None:
    build, reason = ARCHIVES[case]
    source = tmp_path / "network.pt2"
    source.write_bytes(build())
    with pytest.raises(ModelError, match=rf"^.*network\.pt2: .*{reason}") as refused:
        import_model(source, write_card(tmp_path), tmp_path / "model.pt2")
    assert len(str(refused.value)) < 1000
    assert not (tmp_path / "model.pt2").exists()


def test_the_archive_written_by_hand_is_a_network(tmp_path: Path) -> None:
    """The other cases are refused for their own reason."""
    source = tmp_path / "network.pt2"
    source.write_bytes(pack(small_members()))
    import_model(source, write_card(tmp_path, receptive_field=1), tmp_path / "model.pt2")
    predictor = load_predictor(tmp_path / "model.pt2", "cpu")
    assert predictor.card.classes == ("roof",)


def test_an_imported_file_with_a_hostile_card_and_a_fitting_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    for card in ("[" * DEEP, '{"bands": ["a\\ud800"], "classes": ["roof"]}', '{"stride": ' + "9" * 5000 + "}", "5"):
        path.write_bytes(pack(with_label(small_members(), card)))
        for read in (load_exported, describe_exported, load_predictor):
            with pytest.raises(ModelError, match=r"^.*model\.pt2: "):
                read(path)


def test_a_network_that_asks_for_too_much_memory_ends_as_a_model_error(tmp_path: Path) -> None:
    """A file that was never imported, with a hash that fits: the model is at fault, not a scene."""
    huge = huge_node("torch.ops.aten.zeros.default", argument("size", as_ints=[99_999_999_999] * 2))
    path = tmp_path / "model.pt2"
    path.write_bytes(pack(with_label(huge, ModelCard(bands=("red",), classes=("roof",)).to_json())))
    with pytest.raises(ModelError, match=r"fails on tiles .*Storage size calculation overflowed"):
        load_predictor(path, "cpu").runnable(BatchShape(precision="float32"))(torch.zeros(1, 1, 64, 64))
