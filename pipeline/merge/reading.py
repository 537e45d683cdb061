"""Polygons of finished scenes, read in parts: near a place, by number, or all in a stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray

from pipeline.errors import SceneError
from pipeline.merge.scenes import MergedScene
from pipeline.polygons import GEOMETRY, LAYER

if TYPE_CHECKING:
    import pyarrow as pa

FID = "fid"
"""Column of the numbers that tell the polygons of a file apart."""
BATCH = 16_384
"""Polygons of a stream that are held at once."""
AT_ONCE = 4096
"""Polygons that are asked for by number at once."""


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """Polygons of a scene with what matching needs; one row per polygon."""

    fid: NDArray[np.int64]
    """Their numbers in the file."""
    class_name: NDArray[np.object_]
    """Names of their classes."""
    geometry: NDArray[np.object_]
    """In CRS coordinates."""


def read_outlines(scene: MergedScene, bounds: tuple[float, float, float, float]) -> Outlines:
    """Polygons whose boxes touch bounds.

    Args:
        scene: whose polygons.
        bounds: `(left, bottom, right, top)` in its CRS.

    Raises:
        SceneError: the file is damaged or gone.
    """
    from pyogrio.raw import read_arrow

    with _told(scene):
        _, table = read_arrow(scene.polygons, layer=LAYER, columns=["class"], bbox=bounds, return_fids=True)
    return Outlines(
        fid=table[FID].to_numpy().astype(np.int64),
        class_name=np.asarray(table["class"].to_pylist(), dtype=object),
        geometry=_geometry_of(table[GEOMETRY].to_pylist()),
    )


def read_rows(scene: MergedScene, fids: Sequence[int]) -> Iterator[tuple[pa.Table, NDArray[np.object_]]]:
    """Yield polygons of these numbers with all columns, and their geometry in CRS coordinates.

    Raises:
        SceneError: the file is damaged or gone.
    """
    from pyogrio.raw import read_arrow

    for first in range(0, len(fids), AT_ONCE):
        with _told(scene):
            wanted = [*fids[first : first + AT_ONCE]]
            _, table = read_arrow(scene.polygons, layer=LAYER, fids=wanted, return_fids=True)
        yield table, _geometry_of(table[GEOMETRY].to_pylist())


def stream_rows(scene: MergedScene) -> Iterator[pa.RecordBatch]:
    """Yield all polygons of a scene with all columns, in the order of the file.

    Raises:
        SceneError: the file is damaged or gone.
    """
    from pyogrio.raw import open_arrow

    with (
        _told(scene),
        open_arrow(scene.polygons, layer=LAYER, return_fids=True, batch_size=BATCH, use_pyarrow=True) as (_, reader),
    ):
        yield from reader


def _geometry_of(wkb: Sequence[bytes]) -> NDArray[np.object_]:
    geometry: NDArray[np.object_] = shapely.from_wkb(np.asarray(wkb, dtype=object))
    return geometry


@contextmanager
def _told(scene: MergedScene) -> Iterator[None]:
    """Faults of a file as one of ours."""
    from pyogrio.errors import DataLayerError, DataSourceError, FeatureError

    try:
        yield
    except (DataLayerError, DataSourceError, FeatureError, KeyError) as error:
        raise SceneError(
            f"{scene.polygons}: the polygons cannot be read: {error}; delete the folder of the scene and run again"
        ) from error
