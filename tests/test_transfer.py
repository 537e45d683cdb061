"""Strips reach the device and rows come back, unchanged; on CUDA through buffers that are used again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strips import assembled, raw_strip

from pipeline.batches import RawStrip
from pipeline.transfer import CudaTransfer, DirectTransfer, LoadedStrip, Transfer

CPU = torch.device("cpu")


def strips(count: int, *, dtype: str = "uint16") -> list[RawStrip]:
    generator = np.random.default_rng(0)
    return [
        raw_strip(
            generator.integers(0, 99, (3, 8, 40)).astype(dtype),
            generator.random((8, 40)) > 0.5 if k % 2 else None,
            cuts=(7, 30),
        )
        for k in range(count)
    ]


def assert_loaded(loaded: LoadedStrip, strip: RawStrip) -> None:
    pixels, valid = assembled(strip)
    for piece in loaded.pieces:
        columns = slice(piece.left, piece.left + piece.pixels.shape[2])
        assert (piece.pixels.cpu().numpy() == pixels[:, :, columns]).all()
    found = loaded.validity(slice(2, 6), slice(5, 35))
    assert (found is None) == bool(valid.all())
    assert found is None or (found.cpu().numpy() == valid[2:6, 5:35]).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64", "int64"])
def test_a_strip_keeps_its_values_and_its_validity(dtype: str) -> None:
    transfer = DirectTransfer(CPU)
    for strip in strips(2, dtype=dtype):
        assert_loaded(transfer.load(strip), strip)


def test_on_a_cpu_no_pixel_is_copied() -> None:
    (strip,) = strips(1)
    (first, *_) = DirectTransfer(CPU).load(strip).pieces
    assert np.shares_memory(first.pixels.numpy(), strip.pieces[0].pixels)


def test_rows_come_back_with_their_extremes() -> None:
    rows = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    found, extremes = DirectTransfer(CPU).fetch(rows, torch.tensor([0.25, 0.5])).wait()
    assert found.tolist() == rows.tolist()
    assert extremes == (0.25, 0.5)


@pytest.mark.gpu
def test_cuda_buffers_are_used_again_without_mixing_strips() -> None:
    device = torch.device("cuda")
    transfer: Transfer = CudaTransfer(device, strip=(3, 8, 40), dtype="uint16", rows=(1, 8, 40), stored="uint8")
    given = strips(9)
    fetched = []
    for k, strip in enumerate(given):
        loaded = transfer.load(strip)
        assert_loaded(loaded, strip)
        rows = loaded.pieces[0].pixels[:1, : 4 + k % 3].to(torch.uint8)
        fetched.append((strip, transfer.fetch(rows, torch.tensor([0.0, 1.0], device=device))))
        if len(fetched) > transfer.behind:
            expected, done = fetched.pop(0)
            found, extremes = done.wait()
            assert (found == assembled(expected)[0][:1, : found.shape[1]]).all()
            assert extremes == (0.0, 1.0)
