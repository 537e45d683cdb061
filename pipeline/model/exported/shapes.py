"""Input sizes of an exported network, read from the exporter's size expressions by pattern."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.errors import ModelError
from pipeline.model.exported.archive import HOW_TO_EXPORT

FLOAT32 = 7
"""float32 in the schema's numbering of types."""
MAX_TEXT_LENGTH = 200
"""Characters of a text in a graph: an operator, an option or a size."""

_SYMBOL = r"Symbol\('(?P<symbol>[a-z]{1,5}\d{1,9})'(?:, [a-z]+=(?:True|False))*\)"
_SIZES = tuple(
    re.compile(pattern)
    for pattern in (
        _SYMBOL,
        rf"Mul\(Integer\((?P<factor>\d{{1,9}})\), {_SYMBOL}\)",
        rf"Add\({_SYMBOL}, Integer\((?P<term>-?\d{{1,9}})\)\)",
        rf"Add\(Mul\(Integer\((?P<factor>\d{{1,9}})\), {_SYMBOL}\), Integer\((?P<term>-?\d{{1,9}})\)\)",
    )
)
"""Size expressions as sympy's srepr writes them: `n`, `k n`, `n + c` and `k n + c`."""
_FUNCTIONS = (
    "Add|Mul|Pow|Max|Min|Integer|Rational|Float|Equality|Unequality|StrictLessThan|StrictGreaterThan|LessThan|"
    "GreaterThan|And|Or|Not|Piecewise|ExprCondPair|FloorDiv|ModularIndexing|Where|PythonMod|Mod|CleanDiv|CeilToInt|"
    "FloorToInt|CeilDiv|LShift|RShift|PowByNatural|FloatPow|FloatTrueDiv|IntTrueDiv|TruncToFloat|TruncToInt|"
    "RoundToInt|RoundDecimal|ToFloat|Identity|IsNonOverlappingAndDenseIndicator"
)
_TOKEN = re.compile(
    rf"Symbol\('[a-z]{{1,5}}\d{{1,9}}'(?:, [a-z]+=(?:True|False))*\)|\b(?:{_FUNCTIONS})(?=\()|\b(?:true|false)\b"
    r"|(?<![\w.])-?\d{1,18}(?![\w.])"
)
"""A variable, a known function before its parenthesis, or a whole number."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The sizes that an exported network takes along one axis of its input: `low <= size <= high`, `size = k n + c`."""

    fixed: int | None = None
    """The only size; None = any that follows the rules below."""
    symbol: str = ""
    """The exporter's name of the variable; two axes of one name must be equal."""
    factor: int = 1
    """`k`: sizes are `term` modulo this."""
    term: int = 0
    """`c`: see `factor`."""
    low: int = 0
    """Smallest size."""
    high: int | None = None
    """Largest size; None = unbounded."""

    def takes(self, size: int) -> bool:
        """Whether the network takes this size."""
        if self.fixed is not None:
            return size == self.fixed
        return size >= self.low and (size - self.term) % self.factor == 0 and (self.high is None or size <= self.high)

    def __str__(self) -> str:
        if self.fixed is not None:
            return str(self.fixed)
        words = [f"{self.term % self.factor} modulo {self.factor}"] if self.factor > 1 else ["any"]
        words += [f"from {self.low}"] * (self.low > 2) + [f"to {self.high}"] * (self.high is not None)
        return " ".join(words)


def check_expressions(value: object) -> None:
    """Refuse every size expression of a graph that is more than a formula of variables and whole numbers.

    Ours never evaluates them, but torch does, and an imported file is one that torch can load.
    """
    if isinstance(value, dict):
        expression = value.get("expr_str", "0")
        if not isinstance(expression, str) or not set(_TOKEN.sub("", expression)) <= set("(), "):
            raise ModelError(f"the graph holds the size expression {str(expression)[:100]!r}, which is no formula")
        for inner in value.values():
            check_expressions(inner)
    elif isinstance(value, list):
        for inner in value:
            check_expressions(inner)


def read_axes(meta: Mapping[str, object], ranges: Mapping[str, Mapping[str, object]]) -> tuple[Axis, ...]:
    """The four axes of the input: batch, bands, height, width.

    Args:
        meta: the schema's `TensorMeta` of the input.
        ranges: its `range_constraints`: smallest and largest value of every variable.
    """
    sizes: Sequence[Mapping[str, object]] = meta["sizes"]  # type: ignore[assignment]
    if len(sizes) != 4 or meta["dtype"] != FLOAT32:
        raise ModelError(
            f"the network takes an input of {len(sizes)} axes and type {meta['dtype']} where tiles (N, bands, H, W) in "
            "float32 are due; export a module that takes them"
        )
    return tuple(_read_axis(size, ranges) for size in sizes)


def _read_axis(size: Mapping[str, object], ranges: Mapping[str, Mapping[str, object]]) -> Axis:
    if "as_int" in size:
        return Axis(fixed=_whole(size["as_int"]))
    expression = read_text(size["as_expr"]["expr_str"])  # type: ignore[index]
    found = next((match for pattern in _SIZES if (match := pattern.fullmatch(expression))), None)
    if found is None:
        raise ModelError(
            f"the network takes sizes {expression!r}, and only n, k n and k n + c can be read; "
            "export it with torch.export.Dim or fixed sizes"
        )
    # The size is factor * symbol + term; the bounds are those of the symbol.
    parts = {"factor": "1", "term": "0"} | found.groupdict()
    factor, term = int(parts["factor"]), int(parts["term"])
    bounds = ranges.get(parts["symbol"], {})
    low, high = _whole(bounds.get("min_val") or 0), bounds.get("max_val")
    return Axis(
        symbol=parts["symbol"],
        factor=max(1, factor),
        term=term,
        low=factor * low + term,
        high=None if high is None else factor * _whole(high) + term,
    )


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a whole number")
    return value


def read_text(value: object) -> str:
    """A short text."""
    if not isinstance(value, str) or len(value) > MAX_TEXT_LENGTH:
        raise ModelError(f"the graph holds {str(value)[:100]!r} where a short text is due; {HOW_TO_EXPORT}")
    return value
