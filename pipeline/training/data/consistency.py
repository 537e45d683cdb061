"""Consistency checks over the scenes of a training run: bands, pixel type, georeference and resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.catalog import CatalogEntry
from pipeline.errors import SceneError, SettingsError
from pipeline.grid import RasterGrid, is_on_earth
from pipeline.model import ModelCard
from pipeline.scene import Scene, SceneSource, describe_scene
from pipeline.training.images import reading_for
from pipeline.training.settings.spec import TrainSpec

MAX_RESOLUTION_RATIO = 1.1
"""Largest over smallest ground resolution of scenes that may be trained together without `resolution_m`."""


def check_consistent(entries: Sequence[CatalogEntry], spec: TrainSpec) -> tuple[list[Scene], list[RasterGrid]]:
    """Every scene as it is read, and its file's own grid.

    Refuses scenes that differ in bands, type, resolution or in having a georeference, and a `resolution_m` for scenes
    without one.
    """
    expected = _band_card(spec.bands) if spec.bands else None
    natives: list[Scene] = []
    for entry in entries:
        reading, source = reading_for(entry.location, spec.reading), SceneSource(georeferenced=False)
        scene = describe_scene(entry.location, reading, card=expected, scene_id=entry.id, source=source)
        expected = expected or _band_card(scene.bands)
        _check_same_kind(scene, natives[0] if natives else scene)
        natives.append(scene)
    resolution_m = _resolution_m(natives, spec)
    grids = [scene.grid for scene in natives]
    if resolution_m is None:
        return natives, grids
    return [replace(scene, grid=scene.grid.resampled(resolution_m)) for scene in natives], grids


def _band_card(bands: Sequence[str]) -> ModelCard:
    return ModelCard(bands=tuple(bands), classes=("any",))


def _check_same_kind(scene: Scene, first: Scene) -> None:
    """Refuse a scene of another pixel type than the first, or when only one of the two is georeferenced."""
    if "palette" in scene.bands:
        raise SceneError(
            f"{scene.location}: holds palette indices, which have no order; "
            "write the colours themselves, e.g. gdal_translate -expand rgb"
        )
    if scene.dtype != first.dtype:
        raise SceneError(
            f"{scene.location}: is {scene.dtype}, but {first.location} is {first.dtype}; "
            "train on scenes of one type, or convert them"
        )
    located = [is_on_earth(each.grid.crs) for each in (scene, first)]
    if located[0] != located[1]:
        with_it, without = (scene, first) if located[0] else (first, scene)
        raise SceneError(
            f"{without.location}: is not georeferenced, but {with_it.location} is; georeference all images "
            "(reading.crs gives the CRS of those that lack it) or none"
        )


def _resolution_m(natives: Sequence[Scene], spec: TrainSpec) -> float | None:
    """The ground resolution that scenes are resampled to; None = no resampling."""
    if not is_on_earth(natives[0].grid.crs):
        if spec.resolution_m is None:
            return None
        raise SettingsError(
            f"resolution_m must be left out, not {spec.resolution_m}: {natives[0].location} is not georeferenced, so "
            "the size of its pixels in metres is not known"
        )
    if spec.resolution_m is not None:
        return spec.resolution_m
    sizes = [scene.grid.resolution_m for scene in natives]
    if max(sizes) > MAX_RESOLUTION_RATIO * min(sizes):
        pairs = sorted(zip(sizes, (scene.id for scene in natives), strict=True))
        shown = pairs if len(pairs) < 6 else (pairs[0], pairs[-1])
        listed = ", ".join(f"{name} {size:.3g} m" for size, name in shown)
        raise SettingsError(
            f"resolution_m must be set, because the scenes differ in ground resolution: {listed}; "
            f"e.g. resolution_m={max(sizes):.2g}"
        )
    return None
