"""Reading settings: how scenes are read, and what is corrected about them. Opens nothing."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pipeline.errors import SettingsError
from pipeline.grid import parse_crs
from pipeline.model import ModelCard
from pipeline.scene.bands import BandFile
from pipeline.storage import NAMED_BY_OPERATOR, HostRules, known_drivers


@dataclass(frozen=True, kw_only=True)
class ReadingSpec:
    """How scenes are read, and what to correct about them."""

    bands: Mapping[str, int] = field(default_factory=dict)
    """Band name -> 1-based band number, where the file does not say or says it wrongly."""
    crs: str | None = None
    """CRS of scenes that carry none, e.g. `EPSG:32633`; never overrides a scene's own."""
    nodata: float | None = None
    """Pixel value that means nodata, in place of the file's tag."""
    ignore_nodata: bool = False
    """Take the file's nodata tag for ordinary data."""
    ignore_alpha: bool | None = None
    """Take a band tagged alpha for ordinary data (true) or for a mask (false); None: for a mask, but a scene where its
    values are none is refused."""
    ignore_scale: bool = False
    """Give the model stored values, whatever scale and offset the file or its catalog gives."""
    nodata_when: Literal["all_bands", "any_band"] = "all_bands"
    """A pixel is nodata when all bands the model uses hold nodata, or when any does. NaN in any band always is."""
    resolution_m: float | Literal["native", "model"] = "native"
    """Resample while reading: to metres on the ground, to the model's resolution, or not at all."""
    resolution_tolerance: float = 0.25
    """Relative difference accepted between the resolutions of scene and model."""
    drivers: tuple[str, ...] = ("GTiff",)
    """GDAL drivers that may open scenes and their sidecars, e.g. `JP2OpenJPEG`; `VRT` opens whatever a file names."""
    max_pixels: int = 100_000_000_000
    """Scenes with more pixels are refused: a small file can declare any size."""
    threads: int = 0
    """Threads that decode windows; 0 takes one per CPU, at most 12."""

    def __post_init__(self) -> None:
        if not isinstance(self.resolution_m, str) and not 0 < self.resolution_m < math.inf:
            raise SettingsError(f"resolution_m must be over 0 m and finite, not {self.resolution_m}")
        if not 0 <= self.resolution_tolerance < math.inf:
            raise SettingsError(f"resolution_tolerance must be at least 0 and finite, not {self.resolution_tolerance}")
        if self.max_pixels < 1:
            raise SettingsError(f"max_pixels must be at least 1, not {self.max_pixels}")
        if self.threads < 0:
            raise SettingsError(f"threads must be at least 0, not {self.threads}")
        if any(number < 1 for number in self.bands.values()):
            raise SettingsError(f"bands must map names to 1-based band numbers, not {dict(self.bands)}")
        if self.crs is not None:
            parse_crs(self.crs)
        if not self.drivers:
            raise SettingsError("drivers must name at least one GDAL driver, e.g. [GTiff]")
        for driver in self.drivers:
            _check_driver(driver)


@dataclass(frozen=True, kw_only=True)
class SceneSource:
    """What a catalog or a training set knows of a scene in addition to its location."""

    files: tuple[BandFile, ...] = ()
    """The raster files that hold its bands; empty: the raster at its location is the scene."""
    acquired: str | None = None
    """Acquisition time, ISO 8601 in UTC; None: as the files say."""
    georeferenced: bool = True
    """False accepts an image without georeferencing, on a plane of its own pixels; for training only."""
    rules: HostRules = NAMED_BY_OPERATOR
    """The hosts that requests for its files may reach."""


@dataclass(frozen=True, kw_only=True)
class ReadingTerms:
    """How the files of one scene are read."""

    spec: ReadingSpec
    """Corrections and permissions."""
    card: ModelCard | None = None
    """The model that will see it; None takes every band that is not alpha."""
    georeferenced: bool = True
    """False accepts an image without georeferencing, on a plane of its own pixels."""
    rules: HostRules = NAMED_BY_OPERATOR
    """The hosts that requests for its files may reach."""


def _check_driver(name: str) -> None:
    known = known_drivers()
    if name not in known:
        close = difflib.get_close_matches(name.lower(), {k.lower(): k for k in known}, n=1)
        hint = f"; did you mean {next(k for k in known if k.lower() == close[0])}?" if close else ""
        raise SettingsError(f"drivers must name GDAL drivers of this build, not {name!r}{hint}")
