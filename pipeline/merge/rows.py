"""Arrow batches of a merged file: unchanged polygons of each scene, and joined ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.crs import CRS

from pipeline.merge.joining import join_pieces
from pipeline.merge.projection import to_target_crs
from pipeline.merge.reading import FID, stream_rows
from pipeline.merge.record import MergeReport
from pipeline.merge.scenes import MergedScene
from pipeline.merge.selection import FID_BITS, Selection
from pipeline.polygons import GEOMETRY, polygon_schema, to_wkb

if TYPE_CHECKING:
    import pyarrow as pa

ProgressCallback = Callable[[str, int, int], None]
"""Called with the stage, the steps done and all steps."""


class MergedRows:
    """The rows of the merged file, scene by scene in the order of their ids, with counts."""

    def __init__(
        self, scenes: Sequence[MergedScene], selection: Selection, crs: CRS, *, progress: ProgressCallback | None = None
    ) -> None:
        """Scenes in order of priority, the selection of their polygons, and the CRS of the file."""
        import pyarrow as pa

        self._scenes, self._selection, self.crs, self._progress = scenes, selection, crs, progress
        self.schema = polygon_schema()
        self.schema = self.schema.append(pa.field("date", pa.timestamp("ms", tz="UTC")))
        self.schema = self.schema.append(pa.field("pieces", pa.int32()))
        members = np.concatenate([*selection.merged, np.empty(0, np.int64)])
        self._excluded = np.sort(np.concatenate([selection.dropped, selection.unmatched, members]))
        self._groups: dict[int, list[NDArray[np.int64]]] = defaultdict(list)
        for group in selection.merged:
            self._groups[int(group[0]) >> FID_BITS].append(group)
        self._read = self._polygons = 0
        self.legend = _legend(scenes)
        self._area_m2: dict[str, float] = dict.fromkeys(self.legend.values(), 0.0)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows."""
        order = sorted(range(len(self._scenes)), key=lambda index: self._scenes[index].id)
        for done, index in enumerate(order, start=1):
            for batch in chain(self._kept(index), self._joined(index)):
                self._count(batch)
                yield batch
            if self._progress is not None:
                self._progress("merge", done, len(order))

    def with_counts(self, report: MergeReport) -> MergeReport:
        """A report with the counts of all polygons."""
        return replace(
            report,
            read=self._read,
            polygons=self._polygons,
            area_m2=self._area_m2,
            left_out=len(self._selection.dropped),
            lone=len(self._selection.unmatched),
            joined=sum(map(len, self._selection.merged)),
            made=len(self._selection.merged),
        )

    def _kept(self, index: int) -> Iterator[pa.RecordBatch]:
        """A scene's unchanged polygons."""
        import pyarrow as pa

        scene = self._scenes[index]
        first, last = np.searchsorted(self._excluded, [index << FID_BITS, (index + 1) << FID_BITS])
        excluded = self._excluded[first:last] - (index << FID_BITS)
        for batch in stream_rows(scene):
            self._read += batch.num_rows
            is_kept = ~np.isin(batch[FID].to_numpy(zero_copy_only=False), excluded)
            if is_kept.any():
                yield self._as_rows(scene, batch.filter(pa.array(is_kept)))

    def _joined(self, index: int) -> Iterator[pa.RecordBatch]:
        """Joined polygons whose most preferred part is this scene's."""
        import pyarrow as pa

        scene = self._scenes[index]
        for joined in join_pieces(self._members(group) for group in self._groups.get(index, ())):
            columns = [pa.array([row.get(each.name) for row in joined.rows], each.type) for each in self.schema]
            batch = pa.RecordBatch.from_arrays(columns, schema=self.schema)
            yield self._dated(scene, _with_geometry(batch, to_target_crs(joined.geometry, scene.grid, self.crs)))

    def _members(self, group: NDArray[np.int64]) -> list[tuple[MergedScene, int]]:
        return [(self._scenes[int(each) >> FID_BITS], int(each) & ((1 << FID_BITS) - 1)) for each in group]

    def _as_rows(self, scene: MergedScene, batch: pa.RecordBatch) -> pa.RecordBatch:
        import pyarrow as pa

        added = {"date", "pieces"}
        columns = [
            pa.nulls(batch.num_rows, each.type) if each.name in added else batch[each.name].cast(each.type)
            for each in self.schema
        ]
        columns[self.schema.get_field_index("pieces")] = pa.array(np.ones(batch.num_rows), pa.int32())
        rows = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        if scene.grid.crs != self.crs:
            geometry = shapely.from_wkb(np.asarray(rows[GEOMETRY].to_pylist(), dtype=object))
            rows = _with_geometry(rows, to_target_crs(geometry, scene.grid, self.crs))
        return self._dated(scene, rows)

    def _dated(self, scene: MergedScene, rows: pa.RecordBatch) -> pa.RecordBatch:
        import pyarrow as pa

        date = datetime.fromisoformat(scene.date) if scene.date else None
        column = self.schema.get_field_index("date")
        return rows.set_column(column, self.schema[column], pa.array([date] * rows.num_rows, self.schema[column].type))

    def _count(self, batch: pa.RecordBatch) -> None:
        self._polygons += batch.num_rows
        names, indices = np.unique(batch["class"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
        sums = np.bincount(indices, batch["area_m2"].to_numpy(), minlength=len(names))
        for name, area_m2 in zip(names.tolist(), sums.tolist(), strict=True):
            self._area_m2[name] = self._area_m2.get(name, 0.0) + area_m2


def _with_geometry(batch: pa.RecordBatch, geometry: NDArray[np.object_]) -> pa.RecordBatch:
    import pyarrow as pa

    column = batch.schema.get_field_index(GEOMETRY)
    return batch.set_column(column, batch.schema[column], pa.array(to_wkb(geometry), pa.binary()))


def _legend(scenes: Sequence[MergedScene]) -> dict[int, str]:
    """Class value -> name over all scenes; a name with different values in two models gets the first."""
    names = sorted({(value, name) for scene in scenes for value, name in scene.classes.items()})
    return dict(enumerate(dict.fromkeys(name for _, name in names), start=1))
