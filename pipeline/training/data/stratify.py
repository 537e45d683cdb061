"""Stratified split of units (scenes or blocks) into parts with about equal class shares.

Iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011, ECML PKDD, algorithm 1): the rarest class first,
each of its units to the part with the largest deficit. Quotas are whole numbers instead of fractions, so that a
class with few units still reaches as many parts as possible.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray


def stratified_split(presence: NDArray[np.bool_], held_shares: Sequence[float], rng: Generator) -> NDArray[np.intp]:
    """The part of each unit: 0 = training; part `k + 1` gets about `held_shares[k]` of the units.

    `presence` is `(units, classes)`, True = the unit holds an object of the class; `rng` breaks ties. Every part with
    a share (0 to 1) gets a unit with an object when there are enough such units.
    """
    kinds = np.column_stack([presence, ~presence.any(axis=1)])
    counts = kinds.sum(axis=0)
    deficit = np.array([_quota(count, held_shares) for count in counts[:-1]] + [_even(counts[-1], held_shares)])
    capacity = np.array(_even(len(kinds), held_shares))
    part = np.full(len(kinds), -1)
    while (part < 0).any():
        left = kinds[part < 0].sum(axis=0)
        rarest = int(np.argmin(np.where(left > 0, left, len(kinds) + 1)))
        for unit in rng.permutation(np.flatnonzero((part < 0) & kinds[:, rarest])):
            chosen = max(range(len(capacity)), key=lambda k: (deficit[rarest, k], capacity[k], -k))
            part[unit] = chosen
            deficit[kinds[unit], chosen] -= 1
            capacity[chosen] -= 1
    return _give_each_an_object(part, np.asarray(presence.any(axis=1)), [1.0, *held_shares], rng)


def _even(count: int, held_shares: Sequence[float]) -> list[int]:
    held = [round(share * count) for share in held_shares]
    return [count - sum(held), *held]


def _quota(count: int, held_shares: Sequence[float]) -> list[int]:
    """Units of a class for each part: at least one each when there are enough, otherwise training first."""
    held = [max(1, round(share * count)) if share else 0 for share in held_shares]
    left = max(0, count - 1)
    for k, quota in enumerate(held):
        held[k] = min(quota, left)
        left -= held[k]
    return [count - sum(held), *held]


def _give_each_an_object(
    part: NDArray[np.intp], holds: NDArray[np.bool_], shares: Sequence[float], rng: Generator
) -> NDArray[np.intp]:
    """Move a unit with an object from the part that has most of them to each part without one."""
    for lacking, share in enumerate(shares):
        with_object = np.bincount(part[holds], minlength=len(shares))
        if share and not with_object[lacking] and with_object.max(initial=0) > 1:
            part[rng.choice(np.flatnonzero(holds & (part == with_object.argmax())))] = lacking
    return part
