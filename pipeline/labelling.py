"""Components of a block of class values: numbered, measured, and united across blocks.

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

BAD = -2
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

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Components:
        """The rows of an index or a selection."""
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
    def stack(cls, tables: Sequence[Components]) -> Components:
        """The rows of all tables, one table after the other; at least one table."""
        return cls(
            value=np.concatenate([t.value for t in tables]),
            count=np.concatenate([t.count for t in tables]),
            total=np.concatenate([t.total for t in tables]),
            peak=np.concatenate([t.peak for t in tables]),
            first=np.concatenate([t.first for t in tables]),
        )


@dataclass(frozen=True, kw_only=True)
class Labels:
    """A block's pixels with the number of their component."""

    padded: NDArray[np.int32]
    """`(height + 2, width + 2)`: 1 + the component's row in `table`, 0 = no component; a border of zeros."""
    table: Components
    """The components, in the order of their first pixel."""

    @property
    def inside(self) -> NDArray[np.int32]:
        """`(height, width)`: the block without the border of zeros."""
        return self.padded[1:-1, 1:-1]

    def line(self, side: str) -> NDArray[np.int64]:
        """Rows of `table` along one side of the block (`top`, `bottom`, `left`, `right`); `BAD` = none."""
        inside = self.inside
        ends = {"top": inside[0], "bottom": inside[-1], "left": inside[:, 0], "right": inside[:, -1]}
        line = ends[side].astype(np.int64) - 1
        return np.where(line < 0, BAD, line)


def label(
    mask: NDArray[np.uint8], level: NDArray[np.uint16], *, origin: tuple[int, int] = (0, 0), with_none: bool = False
) -> Labels:
    """Number the 4-connected components of equal value, and measure them.

    Args:
        mask: `(height, width)` class values; 0 = none, 255 = nodata.
        level: `(height, width)` levels that are summed per component.
        origin: `(row, col)` of the block in the scene, added to the first pixels.
        with_none: True to make components of the pixels of value 0, too.
    """
    height, width = mask.shape
    padded = np.zeros((height + 2, width + 2), np.int32)
    parent = np.empty(height * width + 1, np.int32)
    used = _label_pass(np.ascontiguousarray(mask), with_none, padded, parent)
    n = _renumber(parent, used)
    count, total, peak = (np.zeros(n, np.int64) for _ in range(3))
    first = np.empty(n, np.int64)
    _measure_pass(padded, parent, np.ascontiguousarray(level), count, total, peak, first)
    value = mask[first >> 32, first & 0xFFFFFFFF]
    first += (origin[0] << 32) + origin[1]
    table = Components(value=value, count=count, total=total, peak=peak, first=first)
    return Labels(padded=padded, table=table)


def corner_pairs(labels: Labels) -> NDArray[np.int64]:
    """`(pairs, 2)` components of equal value, not 0, that meet in a corner; without repetition."""
    inside, value = labels.inside, np.concatenate((np.zeros(1, np.uint8), labels.table.value))
    pairs = [np.empty((0, 2), np.int64)]
    for a, b in ((inside[:-1, :-1], inside[1:, 1:]), (inside[:-1, 1:], inside[1:, :-1])):
        meet = (a != b) & (a > 0) & (b > 0)
        found = np.stack([a[meet], b[meet]], axis=1).astype(np.int64)
        found = found[(value[found[:, 0]] == value[found[:, 1]]) & (value[found[:, 0]] != 0)]
        pairs.append(found - 1)
    return unique_rows(np.concatenate(pairs))


def unite(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Union-find: the least member of each one's set, when the members of each pair are in one set.

    >>> unite(5, np.array([[1, 3], [3, 4]])).tolist()
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


@compiled
def _label_pass(mask: NDArray[np.uint8], with_none: bool, labels: NDArray[np.int32], parent: NDArray[np.int32]) -> int:
    """Provisional labels from the pixels above and to the left; returns how many were used."""
    used = 0
    for r in range(mask.shape[0]):
        for c in range(mask.shape[1]):
            v = mask[r, c]
            if v == 255 or (v == 0 and not with_none):
                continue
            up = labels[r, c + 1] if r > 0 and mask[r - 1, c] == v else 0
            left = labels[r + 1, c] if c > 0 and mask[r, c - 1] == v else 0
            if up == 0 and left == 0:
                used += 1
                parent[used] = used
                labels[r + 1, c + 1] = used
            elif up == 0:
                labels[r + 1, c + 1] = left
            else:
                if left != 0 and left != up:
                    _merge(parent, up, left)
                labels[r + 1, c + 1] = up
    return used


@compiled
def _renumber(parent: NDArray[np.int32], used: int) -> int:
    """Replace the union-find forest by final labels 1..n; a parent is never above its child."""
    parent[0] = 0
    n = 0
    for i in range(1, used + 1):
        if parent[i] == i:
            n += 1
            parent[i] = -n
        else:
            parent[i] = parent[parent[i]]
    for i in range(1, used + 1):
        parent[i] = -parent[i]
    return n


@compiled
def _measure_pass(
    labels: NDArray[np.int32],
    final: NDArray[np.int32],
    level: NDArray[np.uint16],
    count: NDArray[np.int64],
    total: NDArray[np.int64],
    peak: NDArray[np.int64],
    first: NDArray[np.int64],
) -> None:
    """Write final labels and fill the table's columns."""
    for r in range(level.shape[0]):
        for c in range(level.shape[1]):
            k = final[labels[r + 1, c + 1]]
            labels[r + 1, c + 1] = k
            if k == 0:
                continue
            p = np.int64(level[r, c])
            if count[k - 1] == 0:
                first[k - 1] = (r << 32) + c
            count[k - 1] += 1
            total[k - 1] += p
            peak[k - 1] = max(peak[k - 1], p)
