"""Readers of finished scenes' polygons: by bounds, by feature id, or as a stream."""

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
from pipeline.storage import import_pyogrio

if TYPE_CHECKING:
    import pyarrow as pa

FID = "fid"
"""Column of feature ids, unique in a file."""
BATCH_ROWS = 16_384
FIDS_PER_QUERY = 4096


@dataclass(frozen=True, kw_only=True)
class Outlines:
    """Polygons of a scene with the columns that matching needs; one row per polygon."""

    fid: NDArray[np.int64]
    class_name: NDArray[np.object_]
    geometry: NDArray[np.object_]
    """In CRS coordinates."""


def read_outlines(scene: MergedScene, bounds: tuple[float, float, float, float]) -> Outlines:
    """Polygons whose bounding boxes intersect `bounds`, `(left, bottom, right, top)` in the scene's CRS."""
    with _translate_errors(scene):
        _, table = import_pyogrio().read_arrow(
            scene.polygons, layer=LAYER, columns=["class"], bbox=bounds, return_fids=True
        )
    return Outlines(
        fid=table[FID].to_numpy().astype(np.int64),
        class_name=np.asarray(table["class"].to_pylist(), dtype=object),
        geometry=_geometry_of(table[GEOMETRY].to_pylist()),
    )


def read_rows(scene: MergedScene, fids: Sequence[int]) -> Iterator[tuple[pa.Table, NDArray[np.object_]]]:
    """Yield polygons by feature id with all columns, and their geometry in CRS coordinates."""
    for first in range(0, len(fids), FIDS_PER_QUERY):
        with _translate_errors(scene):
            selected = [*fids[first : first + FIDS_PER_QUERY]]
            _, table = import_pyogrio().read_arrow(scene.polygons, layer=LAYER, fids=selected, return_fids=True)
        yield table, _geometry_of(table[GEOMETRY].to_pylist())


def stream_rows(scene: MergedScene) -> Iterator[pa.RecordBatch]:
    """Yield all polygons of a scene with all columns, in file order."""
    with _translate_errors(scene):
        opened = import_pyogrio().open_arrow(
            scene.polygons, layer=LAYER, return_fids=True, batch_size=BATCH_ROWS, use_pyarrow=True
        )
        with opened as (_, reader):
            yield from reader


def _geometry_of(wkb: Sequence[bytes]) -> NDArray[np.object_]:
    geometry: NDArray[np.object_] = shapely.from_wkb(np.asarray(wkb, dtype=object))
    return geometry


@contextmanager
def _translate_errors(scene: MergedScene) -> Iterator[None]:
    """Raise a SceneError for errors of the file."""
    errors = import_pyogrio().errors
    try:
        yield
    except (errors.DataLayerError, errors.DataSourceError, errors.FeatureError, KeyError) as error:
        raise SceneError(
            f"{scene.polygons}: the polygons cannot be read: {error}; delete the folder of the scene and run again"
        ) from error
