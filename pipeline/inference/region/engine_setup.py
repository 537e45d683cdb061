"""Setup of a region's engine: networks, batch size and transfer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.concurrency import usable_cpus
from pipeline.inference.batch_size import Batching, min_batch_size, resolve_batch_size
from pipeline.inference.cpu_workers import resolve_cpu_workers
from pipeline.inference.engine import Engine, Member, TileRow
from pipeline.inference.memory import disable_malloc_trim
from pipeline.inference.normalize import input_transform
from pipeline.inference.region.job import RegionJob
from pipeline.inference.transfer import CudaTransfer, DirectTransfer, Transfer
from pipeline.model import ArrayFunction, Predictor
from pipeline.model.predictor import BatchShape, LoadedModel, PlainRunnable


def device_of(predictor: Predictor | ArrayFunction) -> torch.device:
    """Where a predictor runs; a plain function runs on the CPU."""
    return predictor.device if isinstance(predictor, LoadedModel) else torch.device("cpu")


def build_transfer(job: RegionJob, device: torch.device, row: TileRow, finished: tuple[int, int]) -> Transfer:
    """The transfer of a region's strips and rows.

    Args:
        job: of the scene.
        device: of the network.
        row: the tiles of every strip.
        finished: rows and columns of the largest set of finished rows.
    """
    if device.type != "cuda":
        return DirectTransfer(device)
    return CudaTransfer(
        device,
        strip=(len(job.scene.bands), row.height, row.lefts[-1] + row.width - row.lefts[0]),
        dtype=job.scene.dtype,
        rows=(len(job.card.classes), *finished),
        stored=job.mosaic.dtype,
    )


def build_engine(
    job: RegionJob, predictor: Predictor | ArrayFunction, row: TileRow, transfer: Transfer, tiles: Sequence[int]
) -> Engine:
    """The engine of a region.

    Args:
        job: of the scene.
        predictor: the model, or a plain function.
        row: the tiles of every strip.
        transfer: of strips to the predictor's device.
        tiles: number of wanted tiles of each strip.
    """
    plain = not isinstance(predictor, LoadedModel | nn.Module)
    device = device_of(predictor)
    if device.type == "cpu":
        disable_malloc_trim()
    asked, pixels = job.inference.batch_size, row.height * row.width
    size = resolve_batch_size(device, pixels, requested=asked, max_size=job.plan.shape[1], plain=plain)
    batches = sum(-(-count // size) for count in tiles)
    threads = job.inference.threads or usable_cpus()
    batching = Batching(
        batch_size=size,
        min_batch_size=min_batch_size(device, size, plain=plain, deterministic=job.inference.deterministic),
        workers=resolve_cpu_workers(threads, plain=plain),
        threads=threads if plain else 1,
    )
    members = build_members(job, predictor, (size, len(job.scene.bands), row.height, row.width), batches)
    return Engine(members, job.card, row, transfer, batching)


def build_members(
    job: RegionJob, predictor: Predictor | ArrayFunction, shape: tuple[int, int, int, int], batches: int
) -> list[Member]:
    """The networks of a predictor in the job's precision, each with its own normalisation of the scene.

    Args:
        job: precision and settings of inference.
        predictor: a model, or a plain function or torch module, which has one member.
        shape: `(N, bands, H, W)` of every batch.
        batches: their approximate number.
    """
    if not isinstance(predictor, LoadedModel):
        return [(PlainRunnable(predictor, job.card), input_transform(job.scene, job.card.normalization))]
    deterministic = job.inference.deterministic
    work = BatchShape(precision=job.precision, batches=batches, shape=shape, deterministic=deterministic)
    return [
        (member.runnable(work), input_transform(job.scene, member.card.normalization)) for member in predictor.members
    ]
