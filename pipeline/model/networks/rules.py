"""Validation of network settings and of input sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Protocol, get_args

from torch import Tensor

from pipeline.errors import ModelError, SettingsError
from pipeline.model.card import MAX_CLASSES
from pipeline.text import quoted

BASE_CHANNELS = (8, 128)
MAX_BANDS = 2**16
MAX_DROPOUT = 0.5


class Shape(Protocol):
    """Properties of every network spec."""

    @property
    def bands(self) -> int:
        """Input channels."""

    @property
    def classes(self) -> int:
        """Output channels."""

    @property
    def stride(self) -> int:
        """Input sizes must be `size_offset` modulo this; shifting the input by it shifts the output by it."""

    @property
    def size_offset(self) -> int:
        """`height % stride == width % stride == size_offset`."""

    @property
    def margin(self) -> int:
        """Pixels the output loses on each side."""

    @property
    def receptive_field(self) -> int | None:
        """Side in pixels of the centred square that decides an output pixel; None = unbounded."""

    @property
    def aligned_halo(self) -> int | None:
        """Pixels around a core with edges at multiples of `stride` that decide the core; None = all."""


def check_settings(spec: Any, *, ranges: Mapping[str, tuple[int, int]], choices: Mapping[str, object]) -> None:
    """Validate the fields of a spec; those that all networks share are always checked.

    Args:
        spec: the frozen dataclass.
        ranges: `(min, max)` of each integer field of this network.
        choices: a Literal for each field with named values.
    """
    common = {"bands": (1, MAX_BANDS), "classes": (1, MAX_CLASSES), "base_channels": BASE_CHANNELS}
    for key, (low, high) in (common | dict(ranges)).items():
        value = getattr(spec, key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise SettingsError(f"{key} must be a whole number from {low} to {high}, not {quoted(value)}")
    if not 0 <= spec.dropout <= MAX_DROPOUT:
        raise SettingsError(f"dropout must be from 0 to {MAX_DROPOUT}, not {quoted(spec.dropout)}")
    for key, allowed in choices.items():
        if getattr(spec, key) not in get_args(allowed):
            names = ", ".join(map(str, get_args(allowed)))
            raise SettingsError(f"{key} must be one of {names}, not {quoted(getattr(spec, key))}")
    for flag in fields(spec):
        if isinstance(flag.default, bool) and not isinstance(getattr(spec, flag.name), bool):
            raise SettingsError(f"{flag.name} must be true or false, not {quoted(getattr(spec, flag.name))}")


def check_size(spec: Shape, pixels: Tensor) -> None:
    """Refuse `(N, bands, H, W)` pixels whose height or width the network cannot take."""
    for size in pixels.shape[-2:]:
        if size % spec.stride != spec.size_offset or size <= 2 * spec.margin:
            raise ModelError(
                f"this network takes heights and widths that are {spec.size_offset} modulo {spec.stride} "
                f"and above {2 * spec.margin}, not {tuple(pixels.shape[-2:])}"
            )
