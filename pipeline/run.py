"""Many scenes, one after another: a scene's failure is recorded here and stops no other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.catalog import CatalogEntry
from pipeline.config import SegmentSpec
from pipeline.errors import ScenemillError, SettingsError
from pipeline.predictor import LoadedPredictor
from pipeline.report import SceneReport
from pipeline.scene import describe_scene
from pipeline.segment import Watch, resolve_settings, segment_scene

if TYPE_CHECKING:
    from distributed import Client

log = logging.getLogger(__name__)


def segment_entry(
    entry: CatalogEntry,
    out_dir: Path,
    *,
    predictor: LoadedPredictor,
    spec: SegmentSpec,
    client: Client | None = None,
    watch: Watch | None = None,
) -> SceneReport:
    """Describe and segment one scene of a catalog; raises what `segment_scene` raises."""
    scene = describe_scene(entry.location, spec.reading, card=predictor.card, scene_id=entry.id)
    return segment_scene(scene, out_dir, predictor=predictor, spec=spec, client=client, watch=watch)


def segment_catalog(
    entries: Sequence[CatalogEntry],
    out_dir: Path,
    *,
    predictor: LoadedPredictor,
    spec: SegmentSpec,
    client: Client | None = None,
    watcher: Callable[[CatalogEntry], Watch | None] = lambda _: None,
) -> Iterator[SceneReport]:
    """Yield a report for every scene, in order, whatever becomes of it.

    Args:
        entries: the scenes.
        out_dir: their folders go here.
        predictor: the model.
        spec: settings.
        client: runs regions on a cluster.
        watcher: gives the progress callback of a scene.

    Raises:
        SettingsError: before the first scene, when settings and model do not fit or `out_dir` is a file.
    """
    check_settings(spec, predictor)
    check_out(out_dir)
    for entry in entries:
        try:
            yield segment_entry(entry, out_dir, predictor=predictor, spec=spec, client=client, watch=watcher(entry))
        except SettingsError:
            raise
        except Exception as error:
            log.debug("%s failed", entry.location, exc_info=True)
            yield failed_report(entry, error)


def check_settings(spec: SegmentSpec, predictor: LoadedPredictor) -> None:
    """Raise SettingsError when tile size, overlap, blend or threshold do not suit the network."""
    resolve_settings(spec, predictor.card)


def check_out(out_dir: Path) -> None:
    """Raise SettingsError when results cannot go into a folder of this name."""
    blocking = next((path for path in (out_dir, *out_dir.parents) if path.exists()), out_dir)
    if blocking.exists() and not blocking.is_dir():
        raise SettingsError(f"{out_dir}: results go into a folder, and {blocking} is a file; name another with --out")


def failed_report(entry: CatalogEntry, error: BaseException) -> SceneReport:
    """The record of a scene that could not be processed."""
    reason = str(error) if isinstance(error, ScenemillError) else f"unexpected {type(error).__name__}: {error}"
    return SceneReport(scene=entry.id, location=entry.location, status="failed", reason=reason)
