"""Label opener: polygons or masks for each scene, restricted to the labelled area."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline.errors import LabelError
from pipeline.grid import RasterGrid
from pipeline.scene import Scene
from pipeline.training.images import ImageList
from pipeline.training.labels.class_map import mask_meanings
from pipeline.training.labels.labelled_area import ClippedLabels, LabelledArea
from pipeline.training.labels.mask_labels import open_mask_labels
from pipeline.training.labels.polygon_labels import (
    MASK_SUFFIXES,
    Labels,
    PolygonTable,
    open_polygon_labels,
    read_polygons,
)
from pipeline.training.settings.spec import TrainSpec

log = logging.getLogger(__name__)


class LabelOpener:
    """Opens the labels of one scene after another; each vector file is read once."""

    def __init__(self, spec: TrainSpec, files: Iterable[Path]) -> None:
        self.spec = spec
        self.tables: dict[Path, PolygonTable] = {
            p: read_polygons(p, spec.classes, spec.class_field, spec.class_map)
            for p in sorted(files)
            if p.suffix.lower() not in MASK_SUFFIXES
        }
        self.area = None if spec.labelled_area is None else LabelledArea(spec.labelled_area)

    def open(self, files: Sequence[Path], scene: Scene, native: RasterGrid) -> Labels | None:
        """The labels of a scene; None when the scene lies outside the labelled area."""
        inside = None if self.area is None else self.area.polygons_touching(scene)
        if inside is not None and not len(inside):
            return None
        labels: Labels
        if files[0].suffix.lower() in MASK_SUFFIXES:
            meanings = mask_meanings(self.spec.classes, self.spec.class_map)
            labels = open_mask_labels(files[0], scene, native, classes=self.spec.classes, meanings=meanings)
        else:
            tables = [self.tables[p] for p in files]
            labels = open_polygon_labels(tables, scene, classes=len(self.spec.classes), allow_empty=inside is not None)
        return labels if inside is None else ClippedLabels(labels, inside, scene.grid)

    def check_area_overlap(self, missed: Sequence[str], listed: ImageList) -> None:
        """Refuse a labelled area that misses all scenes or a held-out one; log other scenes that it misses."""
        if not missed:
            return
        held_out = sorted({*listed.validation, *listed.test} & {*missed})
        if held_out or len(missed) == len(listed.entries):
            raise LabelError(
                f"labelled_area: {self.spec.labelled_area} does not touch {', '.join((held_out or missed)[:5])}, so "
                "nothing there is labelled; check its CRS and place, or leave the setting out"
            )
        log.warning("scenes left out, because labelled_area does not touch them: %s", ", ".join(missed))
