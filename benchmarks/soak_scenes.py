"""GeoTIFF scenes of the soak: random kinds of good ones with the mask that a pointwise network makes, and bad ones.

Every scene is drawn from its number alone. A good one has any pixel type, layout, compression, CRS, kind of validity
and order of bands that `docs/reference/formats.md` accepts; a bad one has a fault that fails this scene and no other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import cos, sin
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from affine import Affine
from numpy.typing import NDArray
from rasterio.enums import ColorInterp
from torch import Tensor, nn

from pipeline.model import import_model

BANDS = ("red", "green", "blue")
CARD = "{bands: [red, green, blue], classes: [bright], normalization: {gain: [%r, %r, %r]}}" % ((1 / 255,) * 3)
STEEPNESS = 4.0
"""Of the network's sigmoid around the mean of bands that is half of 255."""
UNSURE = 0.01
"""Means of bands this close to a half (of 1) are not compared: mosaics are stored in steps of 1/254."""
DTYPES = ("uint8", "uint8", "uint16", "int16", "uint32", "int32", "float32", "float64")
LAYOUTS: tuple[Mapping[str, object], ...] = (
    {},
    {"interleave": "band"},
    {"tiled": True, "blockxsize": 16, "blockysize": 64},
    {"tiled": True, "blockxsize": 128, "blockysize": 128, "interleave": "pixel"},
    {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "band", "bigtiff": "yes"},
    {"endianness": "big"},
)
COMPRESSIONS = ("none", "deflate", "lzw", "zstd", "packbits", "lzma", "jpeg")
VALIDITY = ("everywhere", "everywhere", "nodata", "mask", "sidecar", "alpha", "nan")
PLACES: tuple[tuple[str, Affine], ...] = (
    ("EPSG:32633", Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000)),
    ("EPSG:32719", Affine(10, 0, 300_000, 0, -10, 6_200_000)),
    ("EPSG:3857", Affine(2, 0, 950_000, 0, -2, 6_000_000)),
    ("EPSG:4326", Affine(2e-5, 0, 13, 0, -2e-5, 47)),
    ("EPSG:3035", Affine(5, 0, 4_321_000, 0, -5, 3_210_000)),
    ("EPSG:3413", Affine(20, 0, -200_000, 0, -20, -900_000)),
    ("EPSG:2193", Affine(1, 0, 1_750_000, 0, -1, 5_430_000)),
    ("EPSG:32633", Affine(0.5, 0, 500_000, 0, -0.5, 5_400_000) @ Affine(cos(0.2), -sin(0.2), 0, sin(0.2), cos(0.2), 0)),
)
"""CRS, and grid; the last is rotated."""

Pixels = NDArray[np.generic]
Generator = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class SoakScene:
    """A scene, and what must become of it."""

    path: Path
    """Its file; there is none for the fault `missing`."""
    mask: NDArray[np.uint8] | None
    """`(height, width)` expected classes: 0, 1, 255 = nodata, 254 = not compared; None: the scene must fail."""
    kind: str
    """How it is stored, or its fault."""


class Brightness(nn.Module):
    """A network without neighbourhood: a sigmoid of the mean of three bands."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Conv2d(len(BANDS), 1, 1)
        nn.init.constant_(self.mean.weight, STEEPNESS / len(BANDS))
        nn.init.constant_(self.mean.bias, -STEEPNESS / 2)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, 3, H, W)` to `(N, 1, H, W)` probabilities."""
        return torch.sigmoid(self.mean(x))


def write_model(folder: Path) -> Path:
    """The network as an imported model."""
    sizes = {0: torch.export.Dim("n"), 2: torch.export.Dim("h"), 3: torch.export.Dim("w")}
    program = torch.export.export(Brightness().eval(), (torch.rand(2, len(BANDS), 64, 64),), dynamic_shapes=(sizes,))
    torch.export.save(program, folder / "exported.pt2")
    (folder / "card.yaml").write_text(CARD)
    import_model(folder / "exported.pt2", folder / "card.yaml", folder / "model.pt2")
    return folder / "model.pt2"


def write_scene(folder: Path, number: int, *, bad: bool) -> SoakScene:
    """Draw the scene of a number and write it to `folder`."""
    random = np.random.default_rng(number)
    path = folder / f"scene-{number:05}.tif"
    if bad:
        names = [*FAULTS]
        name = names[number // 20 % len(names)]  # each in turn, however few there are
        FAULTS[name](path, random)
        return SoakScene(path=path, mask=None, kind=name)
    return _write_good(path, random)


# ---- good scenes


def _write_good(path: Path, random: Generator) -> SoakScene:
    dtype = np.dtype(random.choice(DTYPES))
    layout = LAYOUTS[random.integers(len(LAYOUTS))]
    compression, validity = str(random.choice(COMPRESSIONS)), str(random.choice(VALIDITY))
    if validity == "nan" and dtype.kind != "f":
        validity = "nodata"
    if compression == "jpeg" and (dtype != np.uint8 or validity not in ("everywhere", "mask", "sidecar")):
        compression = "zstd"
    height, width = (int(side) for side in random.integers(24, 700 if random.random() < 0.05 else 260, 2))
    pixels = _patches(random, height, width).astype(dtype)
    valid = _valid(random, height, width) if validity != "everywhere" else np.ones((height, width), np.bool_)
    nodata: float | None = None
    if validity in ("nodata", "nan"):
        nodata = (0 if dtype.kind == "u" else -9999) if validity == "nodata" else np.nan
        pixels[:, ~valid] = nodata
    scale, offset = (1.2, -20.0) if random.random() < 0.1 else (1.0, 0.0)
    crs, transform = PLACES[random.integers(len(PLACES))]
    profile = {"crs": crs, "transform": transform, "nodata": nodata, "compress": compression, **layout}
    stored = _write(path, random, pixels, valid, validity, (scale, offset), profile)
    mean = (stored[:3].astype(np.float64) * scale + offset).mean(axis=0) / 255
    mask = np.where(abs(mean - 0.5) < UNSURE, 254, mean >= 0.5).astype(np.uint8)
    mask[~valid] = 255
    kind = f"{dtype} {compression} {validity} {crs} {dict(layout)} {height} x {width} scale {scale}"
    return SoakScene(path=path, mask=mask, kind=kind)


def _patches(random: Generator, height: int, width: int) -> NDArray[np.int64]:
    """`(4, height, width)` squares of 16 px with a little noise, 1 to 255."""
    squares = random.integers(1, 250, (4, -(-height // 16), -(-width // 16)))
    wide = squares.repeat(16, axis=1).repeat(16, axis=2)[:, :height, :width]
    return np.asarray(wide + random.integers(0, 6, wide.shape), np.int64)


def _valid(random: Generator, height: int, width: int) -> NDArray[np.bool_]:
    """A frame and a hole without data."""
    valid = np.zeros((height, width), np.bool_)
    valid[2:-3, 1:-2] = True
    row, col = random.integers(0, height), random.integers(0, width)
    valid[row : row + 9, col : col + 7] = False
    return valid


def _write(
    path: Path,
    random: Generator,
    pixels: Pixels,
    valid: NDArray[np.bool_],
    validity: str,
    scale: tuple[float, float],
    profile: Mapping[str, object],
) -> Pixels:
    """Write red, green, blue, nir in a random order, named one way or the other; the pixels as a reader gets them."""
    named = bool(random.integers(2)) and profile["compress"] != "jpeg"
    order = random.permutation(4) if named else np.arange(3)
    bands = [pixels[each] for each in order]
    if validity == "alpha":
        opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "iu" else 1
        bands.append(np.where(valid, opaque, 0).astype(pixels.dtype))
    count, (height, width) = len(bands), valid.shape
    options = {**profile, "count": count, "height": height, "width": width, "dtype": pixels.dtype}
    if profile["compress"] == "jpeg":
        options |= {"photometric": "ycbcr", "interleave": "pixel", "jpeg_quality": 95}
    with ExitStack() as opened:
        opened.enter_context(rasterio.Env(GDAL_TIFF_INTERNAL_MASK=validity == "mask"))
        dataset = opened.enter_context(rasterio.open(path, "w", driver="GTiff", **options))
        meanings = ["undefined"] * 4 if named else [*BANDS]
        if validity == "alpha":
            meanings.append("alpha")
        dataset.colorinterp = [ColorInterp[each] for each in meanings]
        for index, each in enumerate(order, start=1):
            if named:
                dataset.set_band_description(index, (*BANDS, "nir")[each])
        if scale != (1.0, 0.0):
            dataset.scales, dataset.offsets = (scale[0],) * count, (scale[1],) * count
        dataset.write(np.stack(bands))
        if validity in ("mask", "sidecar"):
            dataset.write_mask(valid)
    if profile["compress"] != "jpeg":
        return pixels
    with rasterio.open(path) as dataset:  # what the compression has left
        return np.asarray(dataset.read())


# ---- bad scenes


def _plain(path: Path, random: Generator, *, bands: int = 3, dtype: str = "uint8", **options: Any) -> Path:
    """A plain scene, whose options carry a fault."""
    pixels = random.integers(1, 250, (bands, 96, 96)).astype(dtype)
    profile: dict[str, Any] = {"crs": "EPSG:32633", "transform": PLACES[0][1], "photometric": "rgb", **options}
    if bands != 3:
        del profile["photometric"]
    with rasterio.open(path, "w", driver="GTiff", count=bands, height=96, width=96, dtype=dtype, **profile) as dataset:
        dataset.write(pixels)
        dataset.descriptions = BANDS if bands == len(BANDS) else (None,) * bands
    return path


def _truncated(path: Path, random: Generator) -> None:
    _plain(path, random, tiled=True, blockxsize=16, blockysize=16)
    os.truncate(path, path.stat().st_size * 2 // 3)


def _declares_a_terabyte(path: Path, random: Generator) -> None:
    profile = {"count": 3, "height": 500_000, "width": 500_000, "dtype": "uint8", "crs": "EPSG:32633"}
    blocks = {"tiled": True, "blockxsize": 4096, "blockysize": 4096, "sparse_ok": True, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", transform=PLACES[0][1], bigtiff="yes", **profile, **blocks):
        pass


def _foreign_driver(path: Path, random: Generator) -> None:
    """A VRT by the name of a GeoTIFF, which shows the bands of a good scene."""
    good = _plain(path.with_suffix(".src"), random)
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{good}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
        for band in (1, 2, 3)
    )
    path.write_text(f'<VRTDataset rasterXSize="96" rasterYSize="96">{bands}</VRTDataset>')


def _unscaled(path: Path) -> None:
    with rasterio.open(path, "r+") as dataset:
        dataset.scales = (float("nan"),) * 3


def _overviews_elsewhere(path: Path, random: Generator) -> None:
    """A tag in the file names the file of its overviews."""
    _plain(path, random)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE="/etc/hostname")


def _mask_is_a_vrt(path: Path, random: Generator) -> None:
    """A sidecar by the name of a mask is a VRT of another file."""
    _plain(path, random)
    _foreign_driver(path.with_suffix(".tif.msk"), random)


FAULTS: Mapping[str, Callable[[Path, Generator], object]] = {
    "truncated": _truncated,
    "no CRS": lambda path, random: _plain(path, random, crs=None),
    "two bands": lambda path, random: _plain(path, random, bands=2),
    "garbage": lambda path, random: path.write_bytes(random.bytes(5_000)),
    "empty": lambda path, random: path.touch(),
    "VRT": _foreign_driver,
    "complex numbers": lambda path, random: _plain(path, random, dtype="complex64", photometric="minisblack"),
    "declares 250 Gpx": _declares_a_terabyte,
    "missing": lambda path, random: None,
    "a folder": lambda path, random: path.mkdir(),
    "overviews elsewhere": _overviews_elsewhere,
    "mask is a VRT": _mask_is_a_vrt,
    "a pipe": lambda path, random: os.mkfifo(path),
    "off the Earth": lambda path, random: _plain(path, random, transform=Affine(0.5, 0, 5e7, 0, -0.5, 5.4e6)),
    "scale is not a number": lambda path, random: _unscaled(_plain(path, random)),
    "TIFF header and garbage": lambda path, random: path.write_bytes(b"II*\x00" + random.bytes(3_000)),
}
"""Fault -> what writes a scene with it."""
