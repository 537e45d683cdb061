"""Connected components: their table, and union-find across blocks.

A component is a set of 4-connected pixels of one value. All loops over pixels are compiled by numba and
run without the GIL.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Function = TypeVar("Function", bound=Callable[..., object])

NO_COMPONENT = -2
"""In a border line: a pixel that belongs to no component."""


def compiled(function: Function) -> Function:
    """Compile with numba, without the GIL; keep the machine code where a cache can be written."""
    try:
        return cast(Function, numba.njit(nogil=True, cache=True)(function))
    except RuntimeError:  # numba found no writable place, e.g. a read-only installation without a home
        return cast(Function, numba.njit(nogil=True)(function))


@dataclass(frozen=True, kw_only=True)
class Components:
    """A table of components, one row each."""

    value: NDArray[np.uint8]
    """Class value."""
    count: NDArray[np.int64]
    """Pixels."""
    total: NDArray[np.int64]
    """Sum of the pixels' levels."""
    peak: NDArray[np.int64]
    """Greatest level of a pixel."""
    first: NDArray[np.int64]
    """The first pixel, row by row, as one number: `(row << 32) + col`."""

    def __len__(self) -> int:
        return len(self.value)

    def select(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Components:
        """The rows of an index or a boolean mask."""
        return Components(
            value=self.value[rows],
            count=self.count[rows],
            total=self.total[rows],
            peak=self.peak[rows],
            first=self.first[rows],
        )

    def merged(self, number: NDArray[np.int64], n: int) -> Components:
        """A table of `n` rows: row `k` sums up the rows `i` with `number[i] == k`, at least one."""
        value = np.zeros(n, np.uint8)
        count, total, peak = (np.zeros(n, np.int64) for _ in range(3))
        first = np.full(n, np.iinfo(np.int64).max)
        value[number] = self.value
        np.add.at(count, number, self.count)
        np.add.at(total, number, self.total)
        np.maximum.at(peak, number, self.peak)
        np.minimum.at(first, number, self.first)
        return Components(value=value, count=count, total=total, peak=peak, first=first)

    @classmethod
    def concatenate(cls, tables: Sequence[Components]) -> Components:
        """The rows of all tables, one table after the other; at least one table."""
        return cls(
            value=np.concatenate([t.value for t in tables]),
            count=np.concatenate([t.count for t in tables]),
            total=np.concatenate([t.total for t in tables]),
            peak=np.concatenate([t.peak for t in tables]),
            first=np.concatenate([t.first for t in tables]),
        )


def union_find(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Union-find: the smallest member of the set of each of `n` elements; each pair is in one set.

    >>> union_find(5, np.array([[1, 3], [3, 4]])).tolist()
    [0, 1, 2, 1, 1]
    """
    parent = np.arange(n, dtype=np.int64)
    _unite_pairs(parent, np.ascontiguousarray(pairs, dtype=np.int64))
    return parent


def unique_rows(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """`(n, 2)` pairs of numbers from -2 to 2^31, sorted, each once."""
    keys = np.unique(((pairs[:, 0] + 2) << 32) | (pairs[:, 1] + 2))
    return np.stack([(keys >> 32) - 2, (keys & 0xFFFFFFFF) - 2], axis=1)


@compiled
def _root(parent: NDArray[np.signedinteger], i: int) -> int:
    while parent[i] != i:
        parent[i] = parent[parent[i]]
        i = parent[i]
    return i


@compiled
def _merge(parent: NDArray[np.signedinteger], i: int, j: int) -> int:
    i, j = _root(parent, i), _root(parent, j)
    if i > j:
        i, j = j, i
    parent[j] = i
    return i


@compiled
def _unite_pairs(parent: NDArray[np.int64], pairs: NDArray[np.int64]) -> None:
    for k in range(len(pairs)):
        _merge(parent, pairs[k, 0], pairs[k, 1])
    for i in range(len(parent)):
        parent[i] = parent[parent[i]]
