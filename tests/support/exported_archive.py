"""Archives of torch.export written by hand: a network of one convolution, and changes that no exporter would make."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

Members = dict[str, bytes]
"""Name of a member, without the folder it lies in -> its bytes."""
Content = dict[str, Any]

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CARD: dict[str, Any] = {"bands": ["red"], "classes": ["roof"], "outputs": "logits"}


def symbol(name: str) -> Content:
    return {"as_expr": {"expr_str": f"Symbol('{name}', positive=True, integer=True)", "hint": {"as_int": 64}}}


def tensor_meta(sizes: list[Any], strides: list[int] | None = None) -> Content:
    return {
        "dtype": 7, "sizes": [size if isinstance(size, dict) else {"as_int": size} for size in sizes],
        "requires_grad": False, "device": {"type": "cpu", "index": None}, "layout": 7,
        "strides": [{"as_int": stride} for stride in strides or [1] * len(sizes)], "storage_offset": {"as_int": 0},
    }  # fmt: skip


def argument(name: str, **value: object) -> Content:
    return {"name": name, "arg": value, "kind": 1}


def node(target: str, result: str, *inputs: Content) -> Content:
    return {"target": target, "inputs": [*inputs], "outputs": [{"as_tensor": {"name": result}}], "metadata": {}}


def small_members() -> Members:
    """`(N, 1, H, W) -> (N, 1, H, W)`: a 1x1 convolution with weight 2 and bias -1, any batch, height and width."""
    tiles = tensor_meta([symbol("s0"), 1, symbol("s1"), symbol("s2")])
    convolution = node(
        "torch.ops.aten.conv2d.default", "conv2d", argument("input", as_tensor={"name": "x"}),
        argument("weight", as_tensor={"name": "p_weight"}), argument("bias", as_tensor={"name": "p_bias"}),
    )  # fmt: skip
    graph = {
        "inputs": [{"as_tensor": {"name": name}} for name in ("p_weight", "p_bias", "x")],
        "outputs": [{"as_tensor": {"name": "conv2d"}}],
        "nodes": [convolution],
        "tensor_values": {"x": tiles},
    }
    weights = [
        {"parameter": {"arg": {"name": f"p_{name}"}, "parameter_name": f"conv.{name}"}} for name in ("weight", "bias")
    ]
    signature = {
        "input_specs": [*weights, {"user_input": {"arg": {"as_tensor": {"name": "x"}}}}],
        "output_specs": [{"user_output": {"arg": {"as_tensor": {"name": "conv2d"}}}}],
    }
    content = {
        "graph_module": {"graph": graph, "signature": signature, "module_call_graph": []},
        "range_constraints": {name: {"min_val": 0, "max_val": None} for name in ("s0", "s1", "s2")},
        "schema_version": {"major": 8, "minor": 2},
        "torch_version": "2.13.0",
    }
    config = {
        "conv.weight": {"path_name": "weight_0", "use_pickle": False, "tensor_meta": tensor_meta([1, 1, 1, 1])},
        "conv.bias": {"path_name": "weight_1", "use_pickle": False, "tensor_meta": tensor_meta([1])},
    }
    return {
        "archive_format": b"pt2",
        "archive_version": b"0",
        "byteorder": b"little",
        ".data/version": b"6\n",
        GRAPH: json.dumps(content).encode(),
        WEIGHTS: json.dumps({"config": config}).encode(),
        "data/constants/model_constants_config.json": b'{"config": {}}',
        "data/weights/weight_0": struct.pack("<f", 2),
        "data/weights/weight_1": struct.pack("<f", -1),
        "data/sample_inputs/model.pt": b"",
    }


def edited(member: str, change: Callable[[Content], object]) -> Members:
    """The members of the small archive with one JSON document changed in place."""
    members = small_members()
    content = json.loads(members[member])
    change(content)
    return members | {member: json.dumps(content).encode()}


def pack(members: Members) -> bytes:
    """The archive of these members."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), content)
    return file.getvalue()


def with_label(members: Members, card: str) -> Members:
    """The members as of an imported network: with a card's JSON, and the SHA-256 that fits."""
    from pipeline.model.exported.archive import CARD as LABEL
    from pipeline.model.exported.archive import READ, digest_of

    read = sorted((name, content) for name, content in members.items() if READ.fullmatch(name) and name != LABEL)
    return members | {LABEL: json.dumps({"card": card, "sha256": digest_of(card, read)}).encode()}


def write_card(folder: Path, **changes: object) -> Path:
    path = folder / "card.json"
    path.write_text(json.dumps(CARD | changes))
    return path
