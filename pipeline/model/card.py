"""The model card: every fact about a network that is needed to use it correctly, as plain data.

A card travels inside the checkpoint (or next to a plain predictor function) and is enforced: a scene
that does not fit it is refused with what is missing. This module imports no torch and opens no files.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from inspect import signature
from typing import Literal, TypeVar, get_args

from pipeline.errors import ModelError
from pipeline.text import MAX_NAME_LENGTH, name_fault, quoted, read_json

Activation = Literal["sigmoid", "softmax"]
"""How class scores become probabilities: `sigmoid` for independent classes, `softmax` for exclusive ones."""
Outputs = Literal["probabilities", "logits"]
"""What a network returns: finished probabilities, or logits that the engine activates."""

REAL_DTYPES = (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)
"""Pixel types a scene may have; complex data are refused."""
Built = TypeVar("Built")
MAX_CLASSES = 254
"""Mask values 1 to 254 name classes; 0 is none or background, 255 is nodata."""
MAX_NUMBER = 3.4e38
"""Largest magnitude of a number: that of float32, in which networks compute."""
MAX_SIZE = 2**31 - 1
"""Largest receptive field, px: the longest side of a raster in GDAL."""
MAX_SIZES = {"stride": 4096, "size_offset": 4096, "margin": 8192, "tile_size": 16_384}
"""Largest sizes that decide how large a tile is, px: one of 16,384 px takes 1 GiB per band in float32."""


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Raw pixels to model input: `clip(raw * gain + bias)`, `raw = pixel * scale + offset` of the scene's tags."""

    gain: tuple[float, ...] = ()
    """A factor per band, finite and not 0; empty = 1 for every band."""
    bias: tuple[float, ...] = ()
    """A term per band added after the gain, finite; empty = 0 for every band."""
    clip: tuple[float, float] | None = None
    """`(low, high)` that the model input is clipped to; None = not clipped."""

    def __post_init__(self) -> None:
        for key in ("gain", "bias"):
            object.__setattr__(self, key, _numbers(f"normalization.{key}", getattr(self, key)))
        if self.clip is not None:
            clip = _numbers("normalization.clip", self.clip)
            if len(clip) != 2 or not clip[0] < clip[1]:
                raise ModelError(f"normalization.clip must be (low, high) with low < high, not {quoted(self.clip)}")
            object.__setattr__(self, "clip", clip)
        if 0 in self.gain:
            raise ModelError(f"normalization.gain must not be 0, which erases a band: {quoted(self.gain)}")
        if self.gain and self.bias and len(self.gain) != len(self.bias):
            raise ModelError(
                f"normalization.gain and normalization.bias must name the same bands, "
                f"not {len(self.gain)} and {len(self.bias)}"
            )

    @classmethod
    def standard(cls, mean: Sequence[float], std: Sequence[float]) -> Normalization:
        """Mean 0 and standard deviation 1: `(raw - mean) / std` per band.

        Mean and deviation are in raw units.

        Raises:
            ModelError: when the lengths differ or a deviation is not above 0.
        """
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ModelError(f"a mean and a deviation above 0 are needed for every band, not {mean} and {std}")
        gain = tuple(1.0 / float(s) for s in std)
        return cls(gain=gain, bias=tuple(-float(m) * g for m, g in zip(mean, gain, strict=True)))

    @classmethod
    def value_range(cls, low: Sequence[float], high: Sequence[float]) -> Normalization:
        """`[low, high]` to `[0, 1]` per band, clipped there: `(raw - low) / (high - low)`.

        Both bounds are in raw units, `low` below `high`.

        Raises:
            ModelError: when the lengths differ or a range is empty.
        """
        if len(low) != len(high) or not all(a < b for a, b in zip(low, high, strict=True)):
            raise ModelError(f"a range low < high is needed for every band, not {low} and {high}")
        gain = tuple(1.0 / (float(b) - float(a)) for a, b in zip(low, high, strict=True))
        bias = tuple(-float(a) * g for a, g in zip(low, gain, strict=True))
        return cls(gain=gain, bias=bias, clip=(0.0, 1.0))

    @property
    def band_count(self) -> int | None:
        """Number of bands it fits; None = any."""
        return len(self.gain) or len(self.bias) or None


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """Input that a network expects and meaning of its output; validated on construction."""

    bands: tuple[str, ...]
    """Names of the bands a scene must offer, in input order; unique."""
    classes: tuple[str, ...]
    """Names of the output classes, in output order; unique."""
    activation: Activation = "sigmoid"
    """`sigmoid`: independent classes (binary or multi-label); `softmax`: exclusive classes, at least two."""
    outputs: Outputs = "probabilities"
    """What the network returns; `logits` are divided by `temperature` and activated by the predictor."""
    temperature: float = 1.0
    """Calibration: logits are divided by it before the activation (Guo et al. 2017, section 4); above 0."""
    background: str | None = None
    """Softmax only: the class, `classes[0]`, that means none of the others; it gets no polygons."""
    threshold: float = 0.5
    """Sigmoid: a pixel is of the class where `probability >= threshold`, in (0, 1]. Softmax decides by argmax."""
    normalization: Normalization = field(default_factory=Normalization)
    """Raw pixels to model input."""
    dtype: str | None = None
    """Pixel type required of scenes, e.g. `uint8`; None accepts any real type."""
    resolution_m: float | None = None
    """True ground pixel side in metres that the network was trained at; None = any."""
    stride: int = 1
    """Input heights and widths must be `size_offset` modulo this."""
    size_offset: int = 0
    """See `stride`; 0 <= size_offset < stride. 12 for the 2015 paper's network (572 = 12 modulo 16)."""
    tile_size: int | None = None
    """The only input height and width that the network takes, in pixels; None = every size that suits `stride`."""
    margin: int = 0
    """Pixels the output loses on each side (unpadded convolutions); 92 for the 2015 paper's network."""
    receptive_field: int | None = 1
    """Side in pixels of the centred input square that decides an output pixel; None = unbounded."""
    aligned_halo: int | None = None
    """Pixels around a square with edges at multiples of `stride` that decide it, at most `receptive_field // 2`; None =
    not known to be fewer."""
    training: Mapping[str, object] = field(default_factory=dict, hash=False)
    """Provenance of the network as JSON values: data, split, settings, metrics."""

    def __post_init__(self) -> None:
        self._check_names()
        self._check_choices()
        self._check_numbers()
        if self.normalization.band_count not in (None, len(self.bands)):
            raise ModelError(
                f"normalization is for {self.normalization.band_count} bands, but bands has {len(self.bands)}: "
                f"{', '.join(self.bands)}"
            )
        try:
            plain = read_json(json.dumps(dict(self.training), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelError(f"training must hold JSON values (finite numbers, text, lists, maps): {error}") from error
        object.__setattr__(self, "training", plain)

    def _check_names(self) -> None:
        for key in ("bands", "classes"):
            names = getattr(self, key)
            if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in names):
                raise ModelError(f"{key} must be a sequence of non-empty names, not {quoted(names)}")
            if fault := next(filter(None, map(name_fault, names)), None):
                raise ModelError(f"{key} must hold names of at most {MAX_NAME_LENGTH} printable characters: {fault}")
            if not names or len(set(names)) != len(names):
                raise ModelError(f"{key} must hold at least one name and none twice, not {quoted(tuple(names))}")
            object.__setattr__(self, key, tuple(names))
        if len(self.classes) > MAX_CLASSES:
            raise ModelError(f"classes must hold at most {MAX_CLASSES} names (mask is uint8), not {len(self.classes)}")

    def _check_choices(self) -> None:
        choices = {"activation": get_args(Activation), "outputs": get_args(Outputs), "dtype": (None, *REAL_DTYPES)}
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ModelError(
                    f"{key} must be one of {', '.join(map(str, allowed))}, not {quoted(getattr(self, key))}"
                )
        if self.activation == "softmax" and len(self.classes) < 2:
            raise ModelError(f"softmax needs at least two classes, not {self.classes}; use sigmoid for one class")
        if self.background is not None and (self.activation, self.background) != ("softmax", self.classes[0]):
            raise ModelError(
                f"background must be the first class ({self.classes[0]!r}) of a softmax model, "
                f"not {quoted(self.background)} with {self.activation}"
            )

    def _check_numbers(self) -> None:
        object.__setattr__(self, "threshold", _number("threshold", self.threshold))
        if not 0 < self.threshold <= 1:
            raise ModelError(f"threshold must be above 0 and at most 1, not {self.threshold}")
        object.__setattr__(self, "temperature", _number("temperature", self.temperature))
        if self.temperature <= 0:
            raise ModelError(f"temperature must be above 0, not {self.temperature}")
        if self.temperature != 1 and self.outputs != "logits":
            raise ModelError(
                f"temperature {self.temperature} divides logits, but the network returns {self.outputs}; "
                "use temperature 1, or a network that returns logits with outputs 'logits'"
            )
        if self.resolution_m is not None:
            object.__setattr__(self, "resolution_m", _number("resolution_m", self.resolution_m))
            if self.resolution_m <= 0:
                raise ModelError(f"resolution_m must be above 0, not {self.resolution_m}")
        self._check_sizes()

    def _check_sizes(self) -> None:
        minimums = {"stride": 1, "size_offset": 0, "margin": 0, "receptive_field": 1, "tile_size": 1, "aligned_halo": 0}
        for key, bound in minimums.items():
            value = getattr(self, key)
            if value is None and key in ("receptive_field", "tile_size", "aligned_halo"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < bound:
                raise ModelError(f"{key} must be a whole number >= {bound}, not {quoted(value)}")
            if value > MAX_SIZES.get(key, MAX_SIZE):
                raise ModelError(f"{key} must be at most {MAX_SIZES.get(key, MAX_SIZE)} px, not {value}")
        if self.size_offset >= self.stride:
            raise ModelError(f"size_offset must be below stride {self.stride}, not {self.size_offset}")
        if self.tile_size is not None and not self.takes(self.tile_size):
            raise ModelError(
                f"tile_size must be {self.size_offset} modulo stride {self.stride} and above {2 * self.margin} px "
                f"(twice the margin), not {self.tile_size}"
            )

    def takes(self, size: int) -> bool:
        """Whether `stride`, `size_offset` and `margin` allow an input height or width of `size` px."""
        return size % self.stride == self.size_offset and size > 2 * self.margin

    @property
    def mask_values(self) -> tuple[int, ...]:
        """The value of each class in `mask.tif`, in class order; 0 is always none or background, 255 nodata."""
        first = 1 if self.background is None else 0
        return tuple(range(first, first + len(self.classes)))

    @property
    def foreground(self) -> tuple[tuple[int, int, str], ...]:
        """`(class index, mask value, name)` of each class that becomes polygons."""
        rows = zip(range(len(self.classes)), self.mask_values, self.classes, strict=True)
        return tuple(row for row in rows if row[2] != self.background)

    def to_json(self) -> str:
        """The card as one line of JSON with sorted keys; `ModelCard.from_json(card.to_json()) == card`."""
        return json.dumps(asdict(self), sort_keys=True, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> ModelCard:
        """A card from JSON; keys left out get their defaults.

        Raises:
            ModelError: when it is no JSON object, a key is unknown, or a value breaks its rule.
        """
        try:
            content = read_json(text)
        except (TypeError, ValueError) as error:
            raise ModelError(f"the model card is not JSON: {error}") from error
        content = _known(content, cls, "the model card")
        nested = _known(content.pop("normalization", {}), Normalization, "normalization of the model card")
        return _built(cls, content | {"normalization": _built(Normalization, nested)})


def _known(content: object, record: type, where: str) -> dict[str, object]:
    """`content` as a dict whose keys are all fields of `record`."""
    if not isinstance(content, dict):
        raise ModelError(f"{where} must be a JSON object, not {quoted(content)}")
    names = [f.name for f in fields(record)]
    for key in content:
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(names)}"
            raise ModelError(f"{where} has the unknown key {quoted(key, 50)}{hint}")
    return dict(content)


def _built(make: Callable[..., Built], content: Mapping[str, object]) -> Built:
    lacking = [p.name for p in signature(make).parameters.values() if p.default is p.empty and p.name not in content]
    if lacking:
        raise ModelError(f"the model card lacks {', '.join(lacking)}; add what is missing")
    try:
        return make(**content)
    except TypeError as error:
        raise ModelError(f"the model card has a value of the wrong type: {error}") from error


def _number(key: str, value: object) -> float:
    try:
        if not isinstance(value, bool) and isinstance(value, int | float) and abs(number := float(value)) <= MAX_NUMBER:
            return number
    except OverflowError:  # a whole number of over 308 digits
        pass
    raise ModelError(f"{key} must be a finite number, not {quoted(value)}")


def _numbers(key: str, values: object) -> tuple[float, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ModelError(f"{key} must be a sequence of numbers, not {quoted(values)}")
    return tuple(_number(key, value) for value in values)
