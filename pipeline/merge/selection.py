"""Which polygons stay: one of those that are the same thing, and those that go on in each other together.

Polygons are places in an order; an edge says that one stands for another. A polygon is left out when one that stays
stands for it, and stays when all that could stand for it are left out. The result depends on nothing but the edges:
not on the order in which scenes were compared, nor on anything far away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Pairs = NDArray[np.int64]

FID_BITS = 40
"""An id of a polygon is the place of its scene, and in so many bits its number in the file."""
UNDECIDED, STAYS, LEFT_OUT = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What becomes of the polygons that meet others; all the rest stay as they are."""

    left_out: Ids
    """Ids of those that others stand for, in ascending order."""
    lone: Ids
    """Ids of those that are left out since a preferred scene shows nothing like them, in ascending order."""
    joined: tuple[Ids, ...]
    """Ids of those that become one, each group in ascending order; the groups by their first id."""


def polygon_ids(place: Ids | int, fid: Ids) -> Ids:
    """Ids of polygons: the place of their scene, and their number in its file; in this order they are preferred."""
    return (np.asarray(place, np.int64) << FID_BITS) | fid


def choose(stands_for: Pairs, joins: Pairs, lone: Ids) -> Choice:
    """Decide about polygons by their ids; a smaller id is a more preferred one.

    Args:
        stands_for: `(n, 2)` ids: the first stands for the second.
        joins: `(n, 2)` ids of polygons that go on in each other.
        lone: ids of polygons that are left out whatever the others do.

    >>> rows = np.array([(1, 2), (2, 3)])
    >>> choose(rows, np.empty((0, 2), int), np.empty(0, int)).left_out
    array([2])
    """
    lone = np.unique(lone)
    rows = stands_for[~np.isin(stands_for, lone).any(axis=1)]
    ids, places = np.unique(rows, return_inverse=True)
    state = _settle(places.reshape(-1, 2), len(ids))
    left_out = ids[state == LEFT_OUT]
    open_ends = joins[~np.isin(joins, np.concatenate([lone, left_out])).any(axis=1)]
    return Choice(left_out=left_out, lone=lone, joined=tuple(_groups(open_ends)))


def _settle(edges: Pairs, count: int) -> NDArray[np.int8]:
    """The state of each place, `STAYS` or `LEFT_OUT`; no two that stay have an edge between them.

    Edges that lead round in a circle are broken at the most preferred place of it.
    """
    state = np.zeros(count, np.int8)
    while len(edges):
        winners, losers = edges.T
        challenged = np.zeros(count, bool)
        challenged[losers] = True
        staying = (state == UNDECIDED) & ~challenged
        if not staying[winners].any():
            staying = _most_preferred(edges, count)
            state[winners[staying[losers]]] = LEFT_OUT
        state[staying] = STAYS
        state[losers[staying[winners]]] = LEFT_OUT
        edges = edges[(state[edges] == UNDECIDED).all(axis=1)]
    state[state == UNDECIDED] = STAYS
    return state


def _most_preferred(edges: Pairs, count: int) -> NDArray[np.bool_]:
    """Places that are more preferred than all that they have edges with."""
    best = np.full(count, count)
    np.minimum.at(best, edges[:, 0], edges[:, 1])
    np.minimum.at(best, edges[:, 1], edges[:, 0])
    return np.asarray((best < count) & (np.arange(count) < best))


def _groups(pairs: Pairs) -> Iterable[Ids]:
    """Ids that pairs connect, together."""
    ids, places = np.unique(pairs, return_inverse=True)
    label = _connected(places.reshape(-1, 2), len(ids))
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    return [ids[group] for group in np.split(order, starts[1:])] if len(ids) else []


def _connected(edges: Pairs, count: int) -> NDArray[np.int64]:
    """The smallest place that each place is connected with."""
    label = np.arange(count)
    while len(edges):
        former = label.copy()
        low = label[edges].min(axis=1)
        for end in (0, 1):
            np.minimum.at(label, label[edges[:, end]], low)
            np.minimum.at(label, edges[:, end], low)
        label = label[label]
        if np.array_equal(label, former):
            break
    return label
