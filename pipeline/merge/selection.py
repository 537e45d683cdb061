"""Selection of polygons as a graph problem: which duplicates to drop, and which polygons to join.

A directed edge means that one polygon replaces another. A polygon is dropped when a kept one replaces it, and kept
when all that could replace it are dropped. The result depends on the edges alone: not on the order in which scenes
were compared, nor on unconnected polygons.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Pairs = NDArray[np.int64]

FID_BITS = 40
"""Bits of a polygon's id that hold its feature id; the index of its scene is above them."""
UNDECIDED, KEPT, DROPPED = 0, 1, 2


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The polygons to drop and to join; all others are kept unchanged."""

    dropped: Ids
    """Ids of polygons that others replace, in ascending order."""
    unmatched: Ids
    """Ids of polygons dropped since a preferred scene does not show them, in ascending order."""
    merged: tuple[Ids, ...]
    """Ids of polygons to join, each group in ascending order; the groups by their first id."""


def polygon_ids(index: Ids | int, fid: Ids) -> Ids:
    """Ids of polygons, of scene index and feature id; a smaller id is preferred."""
    return (np.asarray(index, np.int64) << FID_BITS) | fid


def select_polygons(replacements: Pairs, merges: Pairs, unmatched: Ids) -> Selection:
    """Select polygons by their ids; a smaller id is preferred.

    Of `(n, 2)` ids, the first of `replacements` replaces the second; those of `merges` continue in each other.

    >>> rows = np.array([(1, 2), (2, 3)])
    >>> select_polygons(rows, np.empty((0, 2), int), np.empty(0, int)).dropped
    array([2])
    """
    unmatched = np.unique(unmatched)
    # An unmatched polygon is dropped in any case, so it replaces none.
    rows = replacements[~np.isin(replacements, unmatched).any(axis=1)]
    ids, indices = np.unique(rows, return_inverse=True)
    state = _resolve(indices.reshape(-1, 2), len(ids))
    dropped = ids[state == DROPPED]
    merges_left = merges[~np.isin(merges, np.concatenate([unmatched, dropped])).any(axis=1)]
    return Selection(dropped=dropped, unmatched=unmatched, merged=tuple(_groups(merges_left)))


def _resolve(edges: Pairs, count: int) -> NDArray[np.int8]:
    """`KEPT` or `DROPPED` for each node: no edge joins two kept ones; a cycle is broken at its most preferred node."""
    state = np.zeros(count, np.int8)
    while len(edges):
        winners, losers = edges.T
        challenged = np.zeros(count, bool)
        challenged[losers] = True

        # All edges left are between undecided nodes: a node that none of them challenges is kept.
        staying = (state == UNDECIDED) & ~challenged

        # If all winners are challenged, there is a cycle: keep its preferred nodes, drop their challengers.
        if not staying[winners].any():
            staying = _most_preferred(edges, count)
            state[winners[staying[losers]]] = DROPPED
        state[staying] = KEPT
        state[losers[staying[winners]]] = DROPPED
        edges = edges[(state[edges] == UNDECIDED).all(axis=1)]
    state[state == UNDECIDED] = KEPT
    return state


def _most_preferred(edges: Pairs, count: int) -> NDArray[np.bool_]:
    """Nodes that are preferred to all their neighbours."""
    # The smallest neighbour of each node; `count` stands for none.
    best = np.full(count, count)
    np.minimum.at(best, edges[:, 0], edges[:, 1])
    np.minimum.at(best, edges[:, 1], edges[:, 0])
    return np.asarray((best < count) & (np.arange(count) < best))


def _groups(pairs: Pairs) -> Iterable[Ids]:
    """Connected components of pairs, as groups of ids."""
    ids, indices = np.unique(pairs, return_inverse=True)
    label = _connected(indices.reshape(-1, 2), len(ids))
    order = np.argsort(label, kind="stable")
    starts = np.flatnonzero(np.diff(label[order], prepend=-1))
    return [ids[group] for group in np.split(order, starts[1:])] if len(ids) else []


def _connected(edges: Pairs, count: int) -> NDArray[np.int64]:
    """Connected components: the smallest node that each node is connected with."""
    label = np.arange(count)

    # Each round takes the smallest label over every edge, then shortens chains by pointer jumping.
    while len(edges):
        previous = label.copy()
        low = label[edges].min(axis=1)
        for end in (0, 1):
            np.minimum.at(label, label[edges[:, end]], low)
            np.minimum.at(label, edges[:, end], low)
        label = label[label]
        if np.array_equal(label, previous):
            break
    return label
