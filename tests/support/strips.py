"""Strips for tests: made from one array, and put together into one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.inference.tiling.strips import Piece, RawStrip


def raw_strip(
    pixels: NDArray[Any], valid: NDArray[np.bool_] | None = None, *, left: int = 0, cuts: tuple[int, ...] = ()
) -> RawStrip:
    """A strip of `(bands, H, W)` pixels, decoded in pieces that end at the columns `cuts`."""
    edges = (0, *cuts, pixels.shape[2])
    pieces = tuple(
        Piece(top=0, left=a, pixels=pixels[:, :, a:b], valid=None if valid is None else valid[:, a:b])
        for a, b in itertools.pairwise(edges)
    )
    return RawStrip(row=0, left=left, shape=(pixels.shape[1], pixels.shape[2]), pieces=pieces)


def assembled(strip: RawStrip) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """`(bands, H, W)` pixels and `(H, W)` validity of a whole strip."""
    first = strip.pieces[0].pixels
    pixels, valid = np.empty((len(first), *strip.shape), first.dtype), np.zeros(strip.shape, bool)
    times = np.zeros(strip.shape, int)
    for piece in strip.pieces:
        height, width = piece.pixels.shape[1:]
        place = slice(piece.top, piece.top + height), slice(piece.left, piece.left + width)
        pixels[:, *place] = piece.pixels
        valid[place] = True if piece.valid is None else piece.valid
        times[place] += 1
    assert (times == 1).all(), "pieces must partition the strip"
    return pixels, valid
