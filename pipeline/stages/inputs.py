"""Inputs of a scene's result, resolved before any work: scene, model, settings and area of interest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.config import SegmentSpec
from pipeline.distribute import Executor
from pipeline.errors import ModelError
from pipeline.grid import AreaPixels, load_area, rasterize_area
from pipeline.inference import RegionJob, plan_tiles
from pipeline.inference.tiling import Tiling, resolve_tiling
from pipeline.model import ArrayFunction, ModelCard, Predictor
from pipeline.model.predictor import LoadedModel, forward_passes
from pipeline.mosaic import TOP_LEVEL, resolve_threshold
from pipeline.scene import Scene, describe_scene
from pipeline.stages.outputs import REGIONS, SceneStages


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that a result depends on."""

    scene: Scene
    """The scene."""
    card: ModelCard
    """Bands and classes of the model."""
    spec: SegmentSpec
    """The settings."""
    identity: str | None
    """Identity of the model where it runs; None for a plain function."""
    tiling: Tiling
    """How the scene is cut into tiles, resolved against the model."""
    passes: int
    """Forward passes per tile."""
    area: AreaPixels | None
    """The pixels that the result is restricted to; None: all of the scene."""


def card_of(predictor: Predictor | ArrayFunction, card: ModelCard | None) -> ModelCard:
    """The card of a predictor, or the one that was passed with it."""
    own = predictor.card if isinstance(predictor, LoadedModel) else None
    if own is not None and card is not None and own != card:
        raise ModelError("the predictor brings its own card and another one was given; leave card out")
    found = own or card
    if found is None:
        raise ModelError("a plain predictor needs a card, e.g. ModelCard(bands=('red', ...), classes=('building',))")
    return found


def area_on(scene: Scene, spec: SegmentSpec) -> AreaPixels | None:
    """The pixels of a scene inside the area of the settings; None without an area."""
    return None if spec.area is None else rasterize_area(load_area(spec.area), scene.grid)


def resolve_settings(spec: SegmentSpec, card: ModelCard) -> Tiling:
    """Check settings against the model and fill in its defaults, before any work.

    Raises:
        SettingsError: tile size, overlap, blend or threshold do not suit the network.
    """
    resolve_threshold(card, spec.polygons.threshold, TOP_LEVEL[spec.mosaic.dtype])
    return resolve_tiling(spec.tiling, card, exact=spec.blend == "exact")


def resolve_inputs(
    scene: str | Path | Scene,
    predictor: Predictor | ArrayFunction,
    card: ModelCard | None,
    spec: SegmentSpec,
    executor: Executor,
) -> Inputs:
    """Describe the scene, and check and complete the settings against scene and model.

    Args:
        scene: a path or address, or a described scene.
        predictor: the model.
        card: for a plain function.
        spec: settings.
        executor: of the scene; its devices decide the identity of the model.

    Raises:
        ModelError, SettingsError, SceneError: model, settings or scene are invalid, or do not fit each other.
    """
    card = card_of(predictor, card)
    tiling = resolve_settings(spec, card)
    if not isinstance(scene, Scene):
        scene = describe_scene(scene, spec.reading, card=card)
    return Inputs(
        scene=scene,
        card=card,
        spec=spec,
        tiling=tiling,
        identity=executor.identity(predictor, scene),
        passes=forward_passes(predictor),
        area=area_on(scene, spec),
    )


def region_job(inputs: Inputs, work: SceneStages, *, key: str | None, tags: Mapping[str, str]) -> RegionJob:
    """What the regions of a scene have in common; the precision is not chosen yet.

    Args:
        inputs: of the result.
        work: the work folder.
        key: identity of the mosaic.
        tags: provenance, stored in the rasters.
    """
    spec = inputs.spec
    return RegionJob(
        scene=inputs.scene,
        plan=plan_tiles(inputs.scene.grid.shape, inputs.tiling),
        card=inputs.card,
        identity=inputs.identity,
        precision="",
        blend=spec.blend,
        inference=spec.inference,
        mosaic=spec.mosaic,
        threshold=spec.polygons.threshold,
        threads=spec.reading.threads,
        tags=tags,
        area=inputs.area,
        folder=work.folder / REGIONS,
        key=key,
    )
