"""Inputs of a scene's result, resolved before any work: scene, model, settings and area of interest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.config import SegmentSpec
from pipeline.errors import ModelError
from pipeline.grid import AreaPixels, load_area, rasterize_area
from pipeline.inference import RegionJob, plan_tiles
from pipeline.inference.tiling import Tiling, resolve_tiling
from pipeline.model import ArrayFunction, ModelCard, Predictor
from pipeline.model.predictor import LoadedModel
from pipeline.mosaic import TOP_LEVEL, resolve_threshold
from pipeline.scene import Scene
from pipeline.stages.outputs import SceneStages
from pipeline.storage import Exchange


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
    area: AreaPixels | None
    """The pixels that the result is restricted to; None: all of the scene."""


def card_of(predictor: Predictor | ArrayFunction, card: ModelCard | None) -> ModelCard:
    """The card of a predictor, or the one that was passed with it.

    Raises:
        ModelError: there is none, or there are two that differ.
    """
    own = predictor.card if isinstance(predictor, LoadedModel) else None
    if own is not None and card is not None and own != card:
        raise ModelError("the predictor brings its own card and another one was given; leave card out")
    found = own or card
    if found is None:
        raise ModelError("a plain predictor needs a card, e.g. ModelCard(bands=('red', ...), classes=('building',))")
    return found


def area_on(scene: Scene, spec: SegmentSpec) -> AreaPixels | None:
    """The pixels of a scene inside the area of the settings; None without an area.

    Raises:
        SettingsError: the file of the area is invalid.
        SceneError: the area cannot be projected to the CRS of the scene.
    """
    return None if spec.area is None else rasterize_area(load_area(spec.area), scene.grid)


def resolve_settings(spec: SegmentSpec, card: ModelCard) -> Tiling:
    """Check settings against the model and fill in its defaults, before any work.

    Raises:
        SettingsError: tile size, overlap, blend or threshold do not suit the network.
    """
    resolve_threshold(card, spec.polygons.threshold, TOP_LEVEL[spec.mosaic.dtype])
    return resolve_tiling(spec.tiling, card, exact=spec.blend == "exact")


def region_job(
    inputs: Inputs,
    tiling: Tiling,
    work: SceneStages,
    *,
    key: str | None,
    tags: Mapping[str, str],
    exchange: Exchange | None,
) -> RegionJob:
    """What the regions of a scene have in common; the precision is not chosen yet.

    Args:
        inputs: of the result.
        tiling: resolved against the model.
        work: the work folder.
        key: identity of the mosaic.
        tags: provenance, stored in the rasters.
        exchange: staging area for the rasters of workers on other machines.
    """
    spec = inputs.spec
    return RegionJob(
        scene=inputs.scene,
        plan=plan_tiles(inputs.scene.grid.shape, tiling),
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
        folder=work.folder / "regions",
        exchange=exchange,
        key=key,
    )
