"""Grid alignment of a scene's files: the common grid, and how each file maps to it. Reads no pixels.

The file of the finest resolution gives the grid, unless settings ask for another; the others are mapped to it:

    finest file   |--|--|--|--|--|--|      the scene
    coarser file     |-----|-----|-----|   first = -1/2, last = 5/2 stored pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from affine import Affine

from pipeline.errors import SceneError
from pipeline.grid import RasterGrid, short_crs
from pipeline.scene.resample import AxisMapping

if TYPE_CHECKING:
    from pipeline.scene.file import SceneFile

MAX_DENOMINATOR = 1000
"""Largest denominator of the fractions of a pixel to which positions on a grid are rounded."""
AREA_TOLERANCE = 1e-3
"""Relative difference up to which pixel areas count as equal."""
MAX_ROTATION_PX = 1e-3
"""Largest deviation of a row of one file from the rows of another over its whole length, px."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """Files of a scene with the same grid, and how it maps to the scene's."""

    files: tuple[SceneFile, ...]
    """At least one."""
    rows: AxisMapping
    """Mapping of their rows to the scene's."""
    cols: AxisMapping
    """Mapping of their columns to the scene's."""
    planes: tuple[int, ...]
    """Indices of their bands among the scene's, ascending."""
    planes_of_files: tuple[tuple[int, ...], ...]
    """For each file, the indices of its bands among the layer's."""

    @property
    def nodata(self) -> tuple[float | None, ...]:
        """Nodata value of each band of the layer."""
        values = {
            plane: value
            for file, planes in zip(self.files, self.planes_of_files, strict=True)
            for plane, value in zip(planes, file.nodata, strict=True)
        }
        return tuple(values[plane] for plane in range(len(self.planes)))


def group_layers(files: Sequence[SceneFile], bands: Sequence[str], grid: RasterGrid) -> tuple[Layer, ...]:
    """Group the files of a scene by their grids, in order.

    If all files have the same grid, it covers the scene's exactly; otherwise each is mapped by its georeferencing.
    """
    grids: list[RasterGrid] = []
    for file in files:
        if file.grid not in grids:
            grids.append(file.grid)
    layers = []
    for stored in grids:
        # `planes` are positions in the model's band order; each file gets its own positions among them.
        here = tuple(file for file in files if file.grid == stored)
        planes = sorted(bands.index(name) for file in here for name in file.bands)
        rows, cols = map_whole(stored, grid) if len(grids) == 1 else map_axes(stored, grid)
        layers.append(
            Layer(
                files=here,
                rows=rows,
                cols=cols,
                planes=tuple(planes),
                planes_of_files=tuple(tuple(planes.index(bands.index(name)) for name in file.bands) for file in here),
            )
        )
    return tuple(layers)


def align_files(files: Sequence[SceneFile]) -> tuple[SceneFile, ...]:
    """The files, with equal grids where these differ by rounding only; checks that they overlap."""
    finest = finest_file(files)
    aligned: list[SceneFile] = []
    for file in files:
        _check_crs(file, files[0])
        rows, cols = map_axes(file.grid, finest.grid, f"{file.location}, next to {finest.location}")
        if not all(axis.last > 0 and axis.first < axis.stored for axis in (rows, cols)):
            raise SceneError(
                f"{file.location}: does not overlap {finest.location} of the same scene: it covers {_extent(file)}, "
                f"the other {_extent(finest)}; correct the catalog"
            )
        # Grids that differ by rounding become equal objects, so that their files form one layer.
        same = rows.is_identity and cols.is_identity
        aligned.append(replace(file, grid=finest.grid) if same else _snap_to_earlier(file, aligned))
    return tuple(aligned)


def finest_file(files: Sequence[SceneFile]) -> SceneFile:
    """The file with the smallest pixels, the first of equal ones."""
    areas = [abs(file.grid.transform.determinant) for file in files]
    return next(file for file, area in zip(files, areas, strict=True) if area <= min(areas) * (1 + AREA_TOLERANCE))


def map_axes(stored: RasterGrid, grid: RasterGrid, name: str = "a file") -> tuple[AxisMapping, AxisMapping]:
    """Mappings of the rows and columns of a grid to stored pixels in the same CRS."""
    # Maps pixels of the grid to stored pixels; `turn` is its shear over the whole grid, px.
    across = ~stored.transform @ grid.transform
    turn = max(abs(across.b) * grid.height, abs(across.d) * grid.width)
    if turn > MAX_ROTATION_PX or across.a <= 0 or across.e <= 0:
        raise SceneError(
            f"{name}: the rows of these files of one scene run in different directions ({_directions(stored)}, "
            f"{_directions(grid)}); warp one onto the other first, e.g. gdalwarp"
        )
    (left, top), (right, bottom) = across @ (0, 0), across @ (grid.width, grid.height)
    return (
        AxisMapping(stored=stored.height, outputs=grid.height, first=_position(top), last=_position(bottom)),
        AxisMapping(stored=stored.width, outputs=grid.width, first=_position(left), last=_position(right)),
    )


def map_whole(stored: RasterGrid, grid: RasterGrid) -> tuple[AxisMapping, AxisMapping]:
    """Mappings of rows and columns between grids of the same extent."""
    return AxisMapping.over(stored.height, grid.height), AxisMapping.over(stored.width, grid.width)


def _check_crs(file: SceneFile, first: SceneFile) -> None:
    if file.grid.crs != first.grid.crs:
        raise SceneError(
            f"{file.location}: is in {short_crs(file.grid.crs)}, but {first.location} of the same scene in "
            f"{short_crs(first.grid.crs)}; warp one to the CRS of the other first, e.g. gdalwarp -t_srs"
        )


def _snap_to_earlier(file: SceneFile, earlier: Sequence[SceneFile]) -> SceneFile:
    """The file with the grid of an earlier file, if the two differ by rounding only."""
    for other in earlier:
        if all(axis.is_identity for axis in map_axes(file.grid, other.grid)):
            return replace(file, grid=other.grid)
    return file


def _position(pixels: float) -> Fraction:
    return Fraction(pixels).limit_denominator(MAX_DENOMINATOR)


def _directions(grid: RasterGrid) -> str:
    t: Affine = grid.transform
    return f"a step along a row is ({t.a:.6g}, {t.d:.6g}), down a column ({t.b:.6g}, {t.e:.6g})"


def _extent(file: SceneFile) -> str:
    left, bottom, right, top = file.grid.bounds
    return f"x {left:.10g} to {right:.10g}, y {bottom:.10g} to {top:.10g}"
