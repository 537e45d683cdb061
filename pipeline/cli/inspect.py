"""Description of a scene, checkpoint or mosaic as rows of facts, and the check whether scene and model fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from rasterio.errors import NotGeoreferencedWarning

from pipeline.errors import SceneError, ScenemillError, SettingsError
from pipeline.grid import RasterGrid
from pipeline.model import CheckpointFacts, ModelCard, describe_checkpoint
from pipeline.model.exported import SUFFIX, ExportedFacts, describe_exported
from pipeline.mosaic import MosaicReader
from pipeline.scene import ReadingSpec, Scene, SceneFile, describe_scene
from pipeline.storage import check_whole, resolve_location

Fact = tuple[str, str]
"""A name and its value, for a person to read."""


def inspect_path(path: str, reading: ReadingSpec, *, model: Path | None = None) -> tuple[str, list[Fact]]:
    """Describe a raster, an address, a checkpoint or an imported network.

    Returns `("checkpoint" | "mosaic" | "scene", facts)`; with a `model` (checkpoint or imported network), the last fact
    of a scene is whether they fit. SettingsError if a model is given for a path that is not a scene.
    """
    kind, facts = _inspect_own_file(path)
    if kind and model is not None:
        raise SettingsError(f"{path}: a {kind}; only a scene can be checked against a model, leave --model out")
    if kind:
        return kind, facts
    facts = [*_scene_facts(describe_scene(path, reading))]
    if model is not None:
        facts.append(("fits model", _fit(path, reading, _describe_model(model).card)))
    return "scene", facts


def _inspect_own_file(path: str) -> tuple[str, list[Fact]]:
    """Kind and facts of a checkpoint or mosaic; an empty kind for anything else."""
    if path.endswith((".safetensors", SUFFIX)):
        return "checkpoint", [*_checkpoint_facts(Path(path))]
    if not (place := resolve_location(path)).is_remote:
        with suppress(OSError):
            check_whole(place)
        with suppress(SceneError), warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            return "mosaic", [*_mosaic_facts(Path(path))]
    return "", []


def _fit(path: str, reading: ReadingSpec, card: ModelCard) -> str:
    try:
        describe_scene(path, reading, card=card)
    except ScenemillError as error:
        return f"no: {error}"
    return "yes"


def _describe_model(path: Path) -> CheckpointFacts | ExportedFacts:
    return describe_exported(path) if path.suffix == SUFFIX else describe_checkpoint(path)


def _checkpoint_facts(path: Path) -> Iterator[Fact]:
    facts = _describe_model(path)
    yield "sha256", facts.sha256
    if isinstance(facts, ExportedFacts):
        yield "architecture", f"{facts.operators} operators, exported by torch {facts.torch_version}"
        yield "exported sizes", facts.sizes
    else:
        yield "architecture", ", ".join(f"{key} {value}" for key, value in facts.architecture.items())
    yield "parameters", f"{facts.parameters:,}"
    yield from _card_facts(facts.card)


def _card_facts(card: ModelCard) -> Iterator[Fact]:
    yield "bands", ", ".join(card.bands)
    yield "classes", ", ".join(card.classes)
    yield "activation", f"{card.activation} (the network returns {card.outputs})"
    if card.activation == "sigmoid":
        yield "threshold", f"{card.threshold:g}"
    if card.temperature != 1:
        yield "temperature", f"{card.temperature:g}"
    yield "source type", card.dtype or "any real type"
    yield "resolution", f"{card.resolution_m:g} m" if card.resolution_m else "any"
    sizes = f"{card.size_offset} modulo {card.stride}" if card.tile_size is None else f"{card.tile_size}"
    yield "tile sizes", f"{sizes} px, margin {card.margin} px"
    yield "receptive field", f"{card.receptive_field} px" if card.receptive_field else "unbounded"
    for key, value in card.training.items():
        yield f"training: {key}", str(value)


def _mosaic_facts(path: Path) -> Iterator[Fact]:
    with MosaicReader(path) as mosaic:
        yield from _grid_facts(mosaic.grid)
        yield "levels", f"0..{mosaic.levels} mean probability 0..1"
        for tag, name in (("SCENE", "scene"), ("MODEL", "model"), ("VERSION", "written by scenemill")):
            yield name, mosaic.tags.get(f"SCENEMILL_{tag}", "")
        yield from _card_facts(mosaic.card)


def _scene_facts(scene: Scene) -> Iterator[Fact]:
    (file,) = scene.files
    yield "driver", file.driver
    yield from _grid_facts(scene.grid)
    yield "type", scene.dtype
    yield "bands", ", ".join(f"{n}: {name}" for name, n in zip(scene.bands, scene.band_numbers, strict=True))
    yield "blocks", f"{file.block_shape[0]} x {file.block_shape[1]} px"
    yield "valid pixels", _validity(scene, file)
    tags = [
        f"{name} = pixel * {scale:g} + {offset:g}"
        for name, scale, offset in zip(scene.bands, scene.scales, scene.offsets, strict=True)
        if (scale, offset) != (1, 0)
    ]
    if tags:
        yield "scale and offset", "; ".join(tags)


def _grid_facts(grid: RasterGrid) -> Iterator[Fact]:
    yield "size", f"{grid.height} rows x {grid.width} columns ({grid.height * grid.width / 1e6:,.1f} Mpx)"
    epsg = grid.crs.to_epsg()
    yield "CRS", f"EPSG:{epsg}" if epsg else grid.crs.to_wkt()[:100]
    yield "ground pixel", f"{grid.resolution_m:.4g} m"
    if not grid.is_north_up:
        yield "orientation", f"not north-up: transform {tuple(round(v, 6) for v in tuple(grid.transform)[:6])}"


def _validity(scene: Scene, file: SceneFile) -> str:
    rules = []
    values = sorted({value for value in scene.nodata if value is not None})
    if values:
        which = "all bands" if scene.nodata_when == "all_bands" else "any band"
        rules.append(f"not {' or '.join(f'{value:g}' for value in values)} in {which}")
    if file.alpha_number:
        rules.append(f"alpha band {file.alpha_number} over 0")
    if file.mask != "none":
        rules.append(f"{file.mask} mask set")
    if scene.dtype.startswith("float"):
        rules.append("no NaN in any band")
    return " and ".join(rules) or "all"
