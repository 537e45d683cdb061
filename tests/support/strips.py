"""Strips for tests: made from one array, and put together into one."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.inference.tiling.strips import DecodedChunk, RawStrip


def raw_strip(
    pixels: NDArray[Any], valid: NDArray[np.bool_] | None = None, *, left: int = 0, cuts: tuple[int, ...] = ()
) -> RawStrip:
    """A strip of `(bands, H, W)` pixels, decoded in chunks that end at the columns `cuts`."""
    edges = (0, *cuts, pixels.shape[2])
    chunks = tuple(
        DecodedChunk(top=0, left=a, pixels=pixels[:, :, a:b], valid=None if valid is None else valid[:, a:b])
        for a, b in itertools.pairwise(edges)
    )
    return RawStrip(row=0, left=left, shape=(pixels.shape[1], pixels.shape[2]), chunks=chunks)


def assembled(strip: RawStrip) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """`(bands, H, W)` pixels and `(H, W)` validity of a whole strip."""
    first = strip.chunks[0].pixels
    pixels, valid = np.empty((len(first), *strip.shape), first.dtype), np.zeros(strip.shape, bool)
    times = np.zeros(strip.shape, int)
    for chunk in strip.chunks:
        height, width = chunk.pixels.shape[1:]
        place = slice(chunk.top, chunk.top + height), slice(chunk.left, chunk.left + width)
        pixels[:, *place] = chunk.pixels
        valid[place] = True if chunk.valid is None else chunk.valid
        times[place] += 1
    assert (times == 1).all(), "chunks must partition the strip"
    return pixels, valid
