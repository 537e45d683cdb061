"""What goes into a scene's result, settled before any work: scene, model, settings and area put together."""

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
from pipeline.stages.outputs import SceneWork
from pipeline.storage import Exchange


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Everything that decides a result."""

    scene: Scene
    """The scene."""
    card: ModelCard
    """What the model takes and gives."""
    spec: SegmentSpec
    """The settings."""
    identity: str | None
    """What decides the model's results, wherever it runs; None for a plain function."""
    area: AreaPixels | None
    """The pixels that the result is restricted to; None: all of the scene."""


def card_of(predictor: Predictor | ArrayFunction, card: ModelCard | None) -> ModelCard:
    """The card that a predictor brings, or that was given with it.

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
    """The pixels of a scene that the settings' area restricts it to; None where it does not.

    Raises:
        SettingsError: the file of the area cannot be used.
        SceneError: the CRS of the scene does not show the area.
    """
    return None if spec.area is None else rasterize_area(load_area(spec.area), scene.grid)


def resolve_settings(spec: SegmentSpec, card: ModelCard) -> Tiling:
    """Settings and model put together, before any work.

    Raises:
        SettingsError: tile size, overlap, blend or threshold do not suit the network.
    """
    resolve_threshold(card, spec.polygons.threshold, TOP_LEVEL[spec.mosaic.dtype])
    return resolve_tiling(spec.tiling, card, exact=spec.blend == "exact")


def region_job(
    inputs: Inputs,
    tiling: Tiling,
    work: SceneWork,
    *,
    key: str | None,
    tags: Mapping[str, str],
    exchange: Exchange | None,
) -> RegionJob:
    """What every region of the scene has in common; its precision is still to be proven.

    Args:
        inputs: what goes in.
        tiling: how the scene is cut into tiles.
        work: the work folder.
        key: identity of the mosaic.
        tags: provenance, stored in the rasters.
        exchange: the place through which rasters travel from workers elsewhere.
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
