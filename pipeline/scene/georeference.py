"""Georeferencing of a raster: its grid, or an error with the reason and the way out.

Files are opened by the caller; `reopen` gives a second handle where one is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import rasterio
from affine import Affine
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import CRSError, NotGeoreferencedWarning
from rasterio.io import DatasetReader

from pipeline.errors import SceneError
from pipeline.grid import (
    RasterGrid,
    check_on_earth,
    foreign_body,
    geodetic_transformer,
    is_on_earth,
    parse_crs,
    short_crs,
)
from pipeline.model import ModelCard
from pipeline.storage import Location, exclusive_warning_filters, suppress_georef_warnings

if TYPE_CHECKING:
    from pipeline.scene.spec import ReadingSpec

Reopen = Callable[[], DatasetReader]


class SourceReader(DatasetReader):  # type: ignore[misc]
    """A dataset that opens also where its CRS is not understood; then it has none, and `crs_fault` says why."""

    crs_fault: str | None = None
    """Why its CRS is not understood; None where it has none, or a usable one."""

    def read_crs(self) -> CRS | None:
        """The CRS of the file, as rasterio calls it on opening."""
        try:
            crs = super().read_crs()
            if crs is not None and is_on_earth(crs):
                foreign_body(crs)
                geodetic_transformer(crs)
        except (CRSError, CPLE_BaseError, UnicodeDecodeError, SceneError) as error:
            self.crs_fault = " ".join(str(error).split())
            # GDAL keeps its last error, which rasterio would raise on the next call; raising it clears it.
            with suppress(CPLE_BaseError):
                _ = self.colorinterp
            return None
        return crs


PLANE = (
    'ENGCRS["picture",EDATUM["corner of the picture"],CS[Cartesian,2],'
    'AXIS["column",east],AXIS["row",south],LENGTHUNIT["metre",1]]'
)
"""CRS of an image without georeferencing, where that is allowed: its own pixels, one unit each."""


def file_grid(
    dataset: DatasetReader, spec: ReadingSpec, place: Location, *, reopen: Reopen, georeferenced: bool = True
) -> RasterGrid:
    """The grid of a file.

    Args:
        dataset: the open file.
        spec: corrections.
        place: for messages.
        reopen: opens it once more.
        georeferenced: False accepts a file without georeferencing, on a plane of its own pixels.
    """
    has_transform = _has_transform(dataset, reopen)
    if not georeferenced and not (has_transform and (is_on_earth(dataset.crs) or spec.crs)):
        plane = CRS.from_wkt(PLANE)
        return RasterGrid(crs=plane, transform=Affine.identity(), height=dataset.height, width=dataset.width)
    if not has_transform:
        raise SceneError(f"{place}: {_why_no_transform(dataset)}")
    _check_sidecar(dataset, place, reopen)
    fault = dataset.crs_fault if isinstance(dataset, SourceReader) else None
    crs = _resolve_crs(dataset.crs, spec, place, fault)
    try:
        grid = RasterGrid(crs=crs, transform=dataset.transform, height=dataset.height, width=dataset.width)
    except SceneError as error:
        raise SceneError(f"{place}: {error}; correct it with gdal_edit -a_ullr") from error
    try:
        check_on_earth(grid)
    except SceneError as error:
        raise SceneError(f"{place}: {error}") from error
    return grid


def resolve_grid(grid: RasterGrid, spec: ReadingSpec, card: ModelCard | None, place: Location) -> RasterGrid:
    """The grid that is read: the file's own, or resampled as settings and model ask."""
    wanted = card.resolution_m if card else None
    if (wanted or spec.resolution_m != "native") and not grid.resolution_m > 0:
        raise SceneError(f"{place}: its middle lies off the Earth in its CRS, so its resolution cannot be determined")
    if spec.resolution_m == "model":
        return grid.resampled(wanted) if wanted and not _close(grid.resolution_m, wanted, 0.01) else grid
    if spec.resolution_m != "native":
        grid = grid.resampled(spec.resolution_m)
    if wanted and not _close(grid.resolution_m, wanted, spec.resolution_tolerance):
        raise SceneError(
            f"{place}: its pixels are {grid.resolution_m:.3g} m on the ground, but the model was trained at "
            f"{wanted:.3g} m; set reading.resolution_m=model to resample while reading, or raise "
            f"reading.resolution_tolerance (now {spec.resolution_tolerance})"
        )
    return grid


def _has_transform(dataset: DatasetReader, reopen: Reopen) -> bool:
    """Whether the file has a geotransform; without one, GDAL returns a transform without an origin, and warns."""
    if dataset.transform == Affine.identity():
        return False
    if dataset.transform.c or dataset.transform.f:
        return True
    with exclusive_warning_filters(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NotGeoreferencedWarning)
        reopen().close()
    return not caught


def _why_no_transform(dataset: DatasetReader) -> str:
    gcps, _ = dataset.gcps
    if gcps:
        return (
            f"georeferenced only by {len(gcps)} control points (GCPs), with no geotransform; "
            "warp it first, e.g. gdalwarp -tps -t_srs EPSG:32633"
        )
    if dataset.rpcs is not None:
        return (
            "georeferenced only by a camera model (RPC), with no geotransform; "
            "orthorectify it first, e.g. gdalwarp -rpc -t_srs EPSG:32633"
        )
    return "has no geotransform, so its pixels have no map coordinates; georeference it first, e.g. gdal_edit -a_ullr"


def _check_sidecar(dataset: DatasetReader, place: Location, reopen: Reopen) -> None:
    """Refuse a scene whose .aux.xml contradicts the georeferencing inside the file."""
    if not any(name.endswith(".aux.xml") for name in dataset.files) or dataset.driver != "GTiff":
        return
    with suppress_georef_warnings(), rasterio.Env(GDAL_GEOREF_SOURCES="INTERNAL"):
        inner = reopen()
    with inner:
        own, outer = inner.transform, dataset.transform
        moved = (own.c or own.f) and not own.almost_equals(outer, precision=abs(own.a) * 1e-3)
        if moved or (inner.crs is not None and inner.crs != dataset.crs):
            raise SceneError(
                f"{place}: the georeferencing inside the file ({short_crs(inner.crs)}, {tuple(own)[:6]}) contradicts "
                f"its .aux.xml sidecar ({short_crs(dataset.crs)}, {tuple(outer)[:6]}); remove whichever is wrong"
            )


def _resolve_crs(own: CRS | None, spec: ReadingSpec, place: Location, fault: str | None) -> CRS:
    """The scene's CRS; the settings' where it has none, a local one, or one that is not understood (`fault`)."""
    given = None if spec.crs is None else parse_crs(spec.crs)
    if own is None or not is_on_earth(own):
        if given is None and fault is not None:
            raise SceneError(
                f"{place}: its CRS is not understood ({fault}); if you know it, give it with --crs, "
                "e.g. --crs EPSG:32633"
            )
        if given is None:
            lack = "no CRS" if own is None else f"a local CRS that is not tied to the Earth ({short_crs(own)})"
            raise SceneError(
                f"{place}: has a geotransform but {lack}; if you know its CRS, give it with --crs, "
                "e.g. --crs EPSG:32633"
            )
        return given
    if body := foreign_body(own):
        raise SceneError(
            f"{place}: its CRS ({short_crs(own)}) is not on the Earth: it has {body}, and only scenes of the Earth are "
            "processed; if the CRS is wrong, correct it with gdal_edit -a_srs"
        )
    if given is not None and own != given:
        raise SceneError(
            f"{place}: has its own CRS ({short_crs(own)}), which reading.crs = {spec.crs} contradicts; "
            "leave the setting out, or correct the file with gdal_edit -a_srs"
        )
    return own


def _close(value: float, wanted: float, tolerance: float) -> bool:
    return abs(value - wanted) <= tolerance * wanted
