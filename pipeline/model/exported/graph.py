"""Graph parser of exported networks: from JSON to a list of steps, without evaluating anything.

Every name is matched against a pattern, every operator against `operators`, and every argument is a
number, a short text, a name or a list of them, or the graph is refused. Size expressions are
read by pattern, and inside the network sizes are plain numbers.
The schema is that of torch/_export/serde/schema.py, major version 8 (torch 2.6 to 2.13).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from pipeline.errors import ModelError
from pipeline.model.exported.archive import HOW_TO_EXPORT
from pipeline.model.exported.operators import ASSERTIONS, SIZE_ARITHMETIC, base_name
from pipeline.model.exported.shapes import Axis, check_expressions, read_axes, read_text

SCHEMA_MAJOR = 8
INLINED = "torch.ops.higher_order.wrap_with_set_grad_enabled"
"""`torch.no_grad()` inside a network: its part of the graph is run in place."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,999}")
_PLAIN = ("as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools", "as_strings")


@dataclass(frozen=True)
class Name:
    """Reference to the value of an earlier step, the input or a weight."""

    text: str


@dataclass(frozen=True)
class TorchEnum:
    """A type, layout or memory format of torch, by its number in the schema."""

    what: str
    number: int


@dataclass(frozen=True)
class NetworkDevice:
    """Placeholder for the device that the network runs on, whatever device it was exported on."""


Value = None | bool | int | float | str | Name | TorchEnum | NetworkDevice | list["Value"]
"""An argument of a step."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One call: `results = target(*arguments, **keywords)`."""

    target: str
    """Its full name, e.g. `torch.ops.aten.conv2d.default`, or `graph` for nested steps."""
    arguments: tuple[Value, ...] = ()
    """Positional arguments."""
    keywords: Mapping[str, Value]
    """Arguments by name."""
    results: tuple[str, ...]
    """Names of its results."""
    single: bool
    """True: it returns one value; False: a sequence of them."""
    nested: Steps | None = None
    """The steps to run in place, for `graph`."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A graph or a part of one."""

    inputs: tuple[str, ...]
    """Names of the inputs, in order."""
    steps: tuple[Step, ...]
    """Calls in the order they run."""
    outputs: tuple[Value, ...]
    """Results of the graph."""


@dataclass(frozen=True, kw_only=True)
class ExportedGraph:
    """An exported network without its weights."""

    steps: Steps
    """Its steps; `steps.inputs` are the weights' names and the input's."""
    tensors: Mapping[str, str]
    """Name of a step input -> key of its payload in the weights or constants."""
    tiles: str
    """Name of the one input."""
    axes: tuple[Axis, ...]
    """Sizes that the input takes: batch, bands, height, width."""
    torch_version: str
    """The torch that exported it."""

    @property
    def operators(self) -> int:
        """Calls in the graph, parts included."""
        return sum(1 for _ in _walk(self.steps))


def names_in(value: Value | Sequence[Value]) -> set[str]:
    """Every name in an argument, or in several."""
    if isinstance(value, Name):
        return {value.text}
    if isinstance(value, list | tuple):
        return {name for each in value for name in names_in(each)}
    return set()


def read_graph(content: Mapping[str, object]) -> ExportedGraph:
    """Read `models/model.json`."""
    try:
        version = content["schema_version"]["major"]  # type: ignore[index]
        if version != SCHEMA_MAJOR:
            raise ModelError(f"the graph has schema {version}, not {SCHEMA_MAJOR}: {HOW_TO_EXPORT}")
        module: Mapping[str, Mapping[str, object]] = content["graph_module"]  # type: ignore[assignment]
        # Expressions are checked first: nothing of the graph is used before.
        check_expressions(module)
        tensors, tiles = _read_inputs(module["signature"])
        steps = _read_steps(module["graph"])
        if set(steps.inputs) - {*tensors, tiles}:
            raise ModelError(f"the graph takes inputs that its signature does not name; {HOW_TO_EXPORT}")
        _check_output(module["signature"], steps)
        meta = module["graph"]["tensor_values"][tiles]  # type: ignore[index]
        return ExportedGraph(
            steps=steps,
            tensors=tensors,
            tiles=tiles,
            axes=read_axes(meta, content["range_constraints"]),  # type: ignore[arg-type]
            torch_version=read_text(content.get("torch_version", "")),
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RecursionError) as error:
        raise ModelError(f"the graph is not what torch.export writes ({error!r}); {HOW_TO_EXPORT}") from error


def _walk(steps: Steps) -> Iterator[Step]:
    for step in steps.steps:
        if step.nested is None:
            yield step
        else:
            yield from _walk(step.nested)


def _read_inputs(signature: Mapping[str, object]) -> tuple[dict[str, str], str]:
    """The payload key of every weight's name, and the name of the one input."""
    tensors: dict[str, str] = {}
    tiles: list[str] = []
    for spec in signature["input_specs"]:  # type: ignore[attr-defined]
        (kind, content), *rest = spec.items()
        if rest or kind not in ("parameter", "buffer", "tensor_constant", "user_input"):
            _refuse_input(kind)
        if kind == "user_input":
            tiles.append(_name(content["arg"]["as_tensor"]["name"]))
        else:
            tensors[_name(content["arg"]["name"])] = str(content[f"{kind}_name"])
    if len(tiles) != 1:
        raise ModelError(
            f"the network takes {len(tiles)} inputs where one is due, tiles (N, bands, H, W); "
            "export a module whose forward takes them alone"
        )
    return tensors, tiles[0]


def _refuse_input(kind: str) -> NoReturn:
    raise ModelError(
        f"the network has an input of the kind {kind!r}, and only tensors are taken: custom objects would need code; "
        "export a module whose forward takes tiles (N, bands, H, W) alone"
    )


def _check_output(signature: Mapping[str, object], steps: Steps) -> None:
    kinds = [kind for spec in signature["output_specs"] for kind in spec]  # type: ignore[attr-defined]
    if "user_input_mutation" in kinds:
        raise ModelError("the network overwrites its input; begin its forward with tiles = tiles.clone()")
    if any(kind != "user_output" for kind in kinds):
        raise ModelError(
            "the network changes its own weights or buffers when it runs, so it was exported in training mode; "
            "call network.eval() before torch.export.export"
        )
    if len(kinds) != 1 or len(steps.outputs) != 1 or not isinstance(steps.outputs[0], Name):
        raise ModelError(
            f"the network returns {len(kinds)} values where one tensor (N, classes, H, W) is due; "
            "export a module whose forward returns that one"
        )


def _read_steps(graph: Mapping[str, object]) -> Steps:
    return Steps(
        inputs=tuple(_name(_named(each)) for each in graph["inputs"]),  # type: ignore[attr-defined]
        steps=tuple(_read_node(node) for node in graph["nodes"] if node["target"] not in ASSERTIONS),  # type: ignore[attr-defined]
        outputs=tuple(_value(each) for each in graph["outputs"]),  # type: ignore[attr-defined]
    )


def _read_node(node: Mapping[str, object]) -> Step:
    target = read_text(node["target"])
    inputs: Sequence[Mapping[str, object]] = node["inputs"]  # type: ignore[assignment]
    results, single = _read_results(node["outputs"])  # type: ignore[arg-type]
    if target == INLINED:
        # A nested graph: its arguments follow the operator's flag and the graph.
        part = inputs[1]["arg"]["as_graph"]["graph"]  # type: ignore[index]
        values = tuple(_value(each["arg"]) for each in inputs[2:])  # type: ignore[arg-type]
        return Step(
            target="graph", arguments=values, keywords={}, results=results, single=False, nested=_read_steps(part)
        )
    values = tuple(_value(each["arg"]) for each in inputs)  # type: ignore[arg-type]
    if target in SIZE_ARITHMETIC:
        if not all(isinstance(value, Name | bool | int | float) for value in values):
            raise ModelError(f"{target} computes with sizes, which are numbers, not {values}; {HOW_TO_EXPORT}")
        return Step(target=target, arguments=values, keywords={}, results=results, single=True)
    # Everything else must be an operator of the allowed list.
    if base_name(target) is None:
        raise ModelError(
            f"the network uses {target}, which is not among the operators that are run "
            "(pipeline/model/exported/operators.py); write that part with operators of torch itself, or try "
            "torch.export.export(...).run_decompositions() before saving"
        )
    keywords = {_name(each["name"]): value for each, value in zip(inputs, values, strict=True)}
    _check_inference(target, keywords)
    return Step(target=target, keywords=keywords, results=results, single=single)


def _check_inference(target: str, keywords: Mapping[str, Value]) -> None:
    """Refuse what behaves as in training: it would draw random numbers or look at other tiles."""
    if keywords.get("training") is True or keywords.get("train") is True or keywords.get("use_input_stats") is True:
        if "instance_norm" in target:
            return
        raise ModelError(f"{target} was exported in training mode; call network.eval() before torch.export.export")
    if keywords.get("dropout_p"):
        raise ModelError(f"{target} drops activations at random; call network.eval() before torch.export.export")


def _read_results(outputs: Sequence[Mapping[str, object]]) -> tuple[tuple[str, ...], bool]:
    """Names of what a call returns, and whether it returns one value rather than a sequence."""
    if len(outputs) == 1 and "as_tensors" in outputs[0]:
        return tuple(_name(each["name"]) for each in outputs[0]["as_tensors"]), False  # type: ignore[attr-defined]
    return tuple(_name(_named(each)) for each in outputs), len(outputs) == 1


def _named(argument: Mapping[str, object]) -> object:
    """The name in `{"as_tensor": {"name": ...}}` or `{"as_sym_int": {"as_name": ...}}`."""
    ((kind, content),) = argument.items()
    if kind not in ("as_tensor", "as_sym_int", "as_sym_bool", "as_sym_float") or not isinstance(content, dict):
        _refuse_input(kind)
    return content["name" if kind == "as_tensor" else "as_name"]


def _value(argument: Mapping[str, object]) -> Value:
    """One argument of the schema's union type `Argument`; graphs, operators and custom objects are refused."""
    ((kind, content),) = argument.items()
    if kind == "as_none":
        return None
    if kind in _PLAIN:
        return _plain(content)
    if kind in ("as_tensor", "as_name", "as_sym_int", "as_sym_bool", "as_sym_float", "as_optional_tensor"):
        return _reference(content)
    if kind in ("as_tensors", "as_sym_ints", "as_sym_bools", "as_sym_floats", "as_optional_tensors"):
        return [_reference(each) for each in content]  # type: ignore[attr-defined]
    if kind == "as_device":
        return NetworkDevice()
    if kind in ("as_scalar_type", "as_memory_format", "as_layout") and isinstance(content, int):
        return TorchEnum(kind.removeprefix("as_"), content)
    raise ModelError(f"an operator has an argument of the kind {kind!r}, which is not allowed; {HOW_TO_EXPORT}")


def _reference(content: object) -> Value:
    """`{"name": ...}`, `{"as_name": ...}`, `{"as_int": 3}`, `{"as_tensor": {...}}` or `{"as_none": ...}`."""
    if not isinstance(content, dict) or len(content) != 1:
        raise ModelError(f"an operator has an argument that cannot be read: {str(content)[:100]}; {HOW_TO_EXPORT}")
    ((kind, inner),) = content.items()
    if kind in ("name", "as_name"):
        return Name(_name(inner))
    return _value(content)


def _plain(content: object) -> Value:
    if isinstance(content, list):
        return [_plain(each) for each in content]
    if isinstance(content, bool | int | float):
        return content
    text = read_text(content)
    return float(text) if text in ("Infinity", "-Infinity", "NaN") else text


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ModelError(f"the graph uses the name {str(value)[:100]!r}, which is no name; {HOW_TO_EXPORT}")
    return value
