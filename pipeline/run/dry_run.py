"""Dry run over a catalog: what a run would do with each scene, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.catalog import CatalogEntry, describe_entry
from pipeline.config import SegmentSpec
from pipeline.distribute import cluster, scene_executor
from pipeline.errors import ScenemillError, SettingsError
from pipeline.model.predictor import LoadedModel
from pipeline.results import open_results
from pipeline.run.models import load_run_models, on_devices
from pipeline.run.scenes import check_settings
from pipeline.scene import Scene
from pipeline.stages import find_existing

if TYPE_CHECKING:
    from distributed import Client


@dataclass(frozen=True, kw_only=True)
class PlannedScene:
    """What a run would do with one scene."""

    entry: CatalogEntry
    """The scene."""
    action: Literal["runs", "done", "refused"]
    """`runs`: it would be processed; `done`: a result of the same inputs exists; `refused`: it cannot be processed."""
    reason: str
    """Why."""


def plan_run(
    entries: Iterable[CatalogEntry],
    spec: SegmentSpec,
    *,
    models: Sequence[Path] = (),
    out_dir: str | Path | None = None,
) -> Iterator[PlannedScene]:
    """Yield what a run with these settings would do with each scene, in order.

    Args:
        entries: the scenes.
        spec: settings of the run.
        models: checkpoints; without any, scenes are checked against the settings only.
        out_dir: results, in which finished scenes are looked up; needs models.

    Raises:
        SettingsError: `out_dir` without a model, or settings that do not fit the model.
        ModelError: a checkpoint cannot be loaded.
    """
    if not models:
        if out_dir is not None:
            raise SettingsError("--out shows which scenes are done, which depends on the model; name it with --model")
        yield from (_plan_scene(entry, spec) for entry in entries)
        return
    predictor = load_run_models(models, spec)
    check_settings(spec, predictor)
    if out_dir is None:
        yield from (_plan_scene(entry, spec, predictor) for entry in entries)
        return
    open_results(out_dir).documents.check(writing=False)
    with on_devices(spec) as spec, cluster(spec.distribute) as client:
        for entry in entries:
            yield _plan_scene(entry, spec, predictor, out_dir, client)


def _plan_scene(
    entry: CatalogEntry,
    spec: SegmentSpec,
    predictor: LoadedModel | None = None,
    out_dir: str | Path | None = None,
    client: Client | None = None,
) -> PlannedScene:
    if entry.refused is not None:
        return PlannedScene(entry=entry, action="refused", reason=entry.refused)
    card = predictor.card if predictor is not None else None
    try:
        scene = describe_entry(entry, spec.reading, card=card)
        if predictor is None or out_dir is None:
            return PlannedScene(entry=entry, action="runs", reason=_facts(scene, fits=card is not None))
        executor = scene_executor(spec.distribute, client)
        existing = find_existing(scene, out_dir, predictor=predictor, spec=spec, executor=executor)
    except ScenemillError as error:
        return PlannedScene(entry=entry, action="refused", reason=str(error))
    if existing.finished is not None:
        changed = f", {existing.finished.reason}" if existing.finished.reason else ""
        reason = f"an equal result is in {existing.finished.folder}{changed}"
        return PlannedScene(entry=entry, action="done", reason=reason)
    previous = open_results(out_dir).documents.sizes(entry.id)
    other = "the result in its folder is of other inputs" if previous else "there is no result yet"
    return PlannedScene(entry=entry, action="runs", reason=f"{_facts(scene, fits=True)}; {existing.reusable or other}")


def _facts(scene: Scene, *, fits: bool) -> str:
    grid = scene.grid
    facts = f"{grid.height} x {grid.width} px of {grid.resolution_m:.3g} m, {len(scene.bands)} bands of {scene.dtype}"
    facts += f" in {len(scene.files)} files" if len(scene.files) > 1 else ""
    return f"fits the model, {facts}" if fits else facts
