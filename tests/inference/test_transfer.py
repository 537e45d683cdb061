"""Strips reach the device and rows come back, unchanged; on CUDA through buffers that are used again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.strips import assembled, raw_strip

from pipeline.inference import transfer as transfers
from pipeline.inference.tiling.strips import RawStrip
from pipeline.inference.transfer import CudaTransfer, DeviceStrip, DirectTransfer, FinishedRows, Transfer, blank_rows

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


def assert_loaded(loaded: DeviceStrip, strip: RawStrip) -> None:
    pixels, valid = assembled(strip)
    for chunk in loaded.chunks:
        columns = slice(chunk.left, chunk.left + chunk.pixels.shape[2])
        assert (chunk.pixels.cpu().numpy() == pixels[:, :, columns]).all()
    found = loaded.validity(slice(2, 6), slice(5, 35))
    assert (found is None) == bool(valid.all())
    assert found is None or (found.cpu().numpy() == valid[2:6, 5:35]).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64", "int64"])
def test_a_strip_keeps_its_values_and_its_validity(dtype: str) -> None:
    transfer = DirectTransfer(CPU)
    for strip in strips(2, dtype=dtype):
        assert_loaded(transfer.to_device(strip), strip)


def test_on_a_cpu_no_pixel_is_copied() -> None:
    (strip,) = strips(1)
    (first, *_) = DirectTransfer(CPU).to_device(strip).chunks
    assert np.shares_memory(first.pixels.numpy(), strip.chunks[0].pixels)


def test_rows_come_back_with_their_extremes() -> None:
    rows = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    found, extremes = DirectTransfer(CPU).to_host(rows, torch.tensor([0.25, 0.5])).wait()
    assert found.tolist() == rows.tolist()
    assert extremes == (0.25, 0.5)


class Instant:
    """A stream or event of a device that is always done."""

    def __init__(self, *_: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


@pytest.fixture(params=[pytest.param("cuda", marks=pytest.mark.gpu), "pretended"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A CUDA device, or a CPU that is taken for one: it tests which buffer is used when, not the waiting."""
    if request.param == "cuda":
        return torch.device("cuda")
    for name, pretended in {
        "Stream": Instant,
        "Event": Instant,
        "current_stream": Instant,
        "stream": nullcontext,
    }.items():
        monkeypatch.setattr(torch.cuda, name, pretended)
    monkeypatch.setattr(transfers, "pinned", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    return CPU


@pytest.mark.parametrize("dtype", ["uint16", "float64"])
def test_buffers_are_used_again_without_mixing_strips(device: torch.device, dtype: str) -> None:
    """Rows are kept by the writer until two more have been written, as `MosaicWriter.write` may."""
    transfer: Transfer = CudaTransfer(device, strip=(3, 8, 40), dtype=dtype, rows=(2, 8, 40), stored="uint8")
    travelling, written = list[tuple[NDArray[Any], FinishedRows]](), list[tuple[NDArray[Any], NDArray[Any]]]()
    for k, strip in enumerate(strips(12, dtype=dtype)):
        loaded = transfer.to_device(strip)
        assert_loaded(loaded, strip)
        rows = loaded.chunks[0].pixels[:2, : 4 + k % 3].to(torch.uint8)
        extremes = torch.tensor([0.0, k / 16], device=device)
        travelling.append((assembled(strip)[0][:2, : 4 + k % 3].astype(np.uint8), transfer.to_host(rows, extremes)))
        if len(travelling) > transfer.rows_in_flight:
            expected, finished = travelling.pop(0)
            found, seen = finished.wait()
            assert seen == (0.0, (k - transfer.rows_in_flight) / 16)
            written.append((expected, found))
            for before, still in written[-3:]:
                assert (still == before).all()
    assert len(written) == 10


def test_of_a_strip_with_gaps_what_is_there_arrives(device: torch.device) -> None:
    transfer = CudaTransfer(device, strip=(3, 8, 40), dtype="uint16", rows=(2, 8, 40), stored="uint8")
    for strip in strips(4):
        gap = replace(strip, chunks=strip.chunks[::2], tiles=(0,))
        (chunk,) = transfer.to_device(gap).chunks
        for there in gap.chunks:
            columns = slice(there.left, there.left + there.pixels.shape[2])
            assert (chunk.pixels[:, :, columns].cpu().numpy() == there.pixels).all()
            assert chunk.valid is None or (chunk.valid[:, columns].cpu().numpy() == there.valid).all()
        assert transfer.to_device(replace(strip, chunks=(), tiles=())).chunks == ()


def test_blank_rows_are_nodata() -> None:
    found, extremes = blank_rows((2, 3, 4), "uint16").wait()
    assert (found.shape, found.dtype, set(found.ravel().tolist())) == ((2, 3, 4), np.uint16, {65535})
    assert extremes == (0.0, 1.0)


def test_nodata_counts_next_to_a_chunk_without_any(device: torch.device) -> None:
    _, strip = strips(2)
    _, valid = assembled(strip)
    for full in range(3):
        chunks = tuple(replace(c, valid=None) if k == full else c for k, c in enumerate(strip.chunks))
        expected = valid.copy()
        expected[:, chunks[full].left :][:, : chunks[full].pixels.shape[2]] = True
        for transfer in (
            DirectTransfer(CPU),
            CudaTransfer(device, strip=(3, 8, 40), dtype="uint16", rows=(2, 8, 40), stored="uint8"),
        ):
            found = transfer.to_device(replace(strip, chunks=chunks)).validity(slice(0, 8), slice(0, 40))
            assert found is not None
            assert np.array_equal(found.cpu().numpy(), expected)
