"""Scenes that fail for what they are: listed with the reason, and left alone until something about them changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline import __version__
from pipeline.catalog import CatalogEntry
from pipeline.config import SegmentSpec
from pipeline.errors import ModelError, SceneError, ScenemillError, SettingsError, TransientError
from pipeline.grid import load_area
from pipeline.model.predictor import LoadedModel
from pipeline.results import open_results
from pipeline.scene import remote_fingerprint
from pipeline.storage import Location, resolve_location

QUARANTINE = "quarantine.json"
SIDECARS = (".aux.xml", ".msk", ".ovr")
"""Beside a scene under its whole name; what GDAL reads from them can mend a scene."""
WORLD_FILES = (".tfw", ".tifw", ".wld", ".tab")
"""Beside a scene in place of its suffix."""


@dataclass(frozen=True, kw_only=True)
class QuarantinedScene:
    """Why a scene is left alone, and what must change for it to be tried again."""

    scene: str
    """Scene id; one entry each."""
    location: str
    """Where it was read from."""
    kind: str
    """Name of the error, e.g. `DamagedSceneError`."""
    reason: str
    """The error, in one paragraph."""
    since: str
    """When it failed: ISO 8601, UTC."""
    source: Mapping[str, str]
    """What its bytes are known by: file name -> size and time, of it and its sidecars; or address -> fingerprint.

    Of several files the names follow their addresses, and `catalog` is a digest of what the catalog says of them.
    """
    inputs: str
    """SHA-256 of model, settings and version: with others the scene may fit."""


def is_data_fault(error: object) -> bool:
    """Whether the scene will fail again in the same way, for its own content or for not suiting the model."""
    return isinstance(error, SceneError | ModelError)


def run_inputs(predictor: LoadedModel, spec: SegmentSpec) -> str:
    """What a refusal depends on beside the scene: model, settings that change results, and our version, as a digest."""
    what = [predictor.identity, spec.result_settings(), __version__]
    if spec.area is not None:
        what.append(load_area(spec.area).digest)
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def local_facts(path: Path) -> dict[str, str]:
    """Size and time of a scene's file and of its sidecars, those that are there."""
    sidecars = [path.with_name(path.name + suffix) for suffix in SIDECARS]
    files = [path, *sidecars, *(path.with_suffix(suffix) for suffix in WORLD_FILES)]
    return {file.name: fact for file in files if (fact := _size_and_time(file))}


def _size_and_time(file: Path) -> str | None:
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return None
    return f"{stat.st_size} bytes, modified {stat.st_mtime_ns} ns"


class Quarantine:
    """`quarantine.json` of a place for results: read anew and rewritten whole at each change, by one run at a time."""

    def __init__(
        self,
        out_dir: str | Path,
        *,
        inputs: str,
        drivers: tuple[str, ...],
        work_dir: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Read the list.

        Args:
            out_dir: where the results go.
            inputs: of this run, see `run_inputs`.
            drivers: GDAL drivers that may open remote scenes.
            work_dir: of this run, see `RunSpec`.
            now: the clock.

        Raises:
            SettingsError: the file is there but not one of ours.
        """
        self._results, self._inputs = open_results(out_dir, work_dir), inputs
        self._drivers, self._now = drivers, now
        self._scenes = self._read()
        self._begun: dict[str, Mapping[str, str]] = {}

    def holding(self, entry: CatalogEntry) -> QuarantinedScene | None:
        """Why this scene is left alone; None when it is not listed, or has changed, or model or settings have."""
        held = self._scenes.get(entry.id)
        if held is None or held.inputs != self._inputs or not held.source:
            return None
        return held if held.source == self._source_facts(entry) else None

    def begin(self, entry: CatalogEntry) -> None:
        """Note what a local scene is now: one that is replaced while it is read has changed, and is tried again."""
        places = [_place_of(text) for text in _locations(entry)]
        if all(place is not None and not place.is_remote for place in places):
            self._begun[entry.id] = self._source_facts(entry)

    def add(self, entry: CatalogEntry, error: BaseException) -> None:
        """List a scene that failed for its data.

        Raises:
            TransientError: the disk refuses.
        """
        source = self._begun.pop(entry.id, None)
        if source is None:
            source = self._source_facts(entry)
        scene = QuarantinedScene(
            scene=entry.id,
            location=entry.location,
            kind=type(error).__name__,
            reason=str(error),
            since=self._now().isoformat(timespec="seconds"),
            source=source,
            inputs=self._inputs,
        )
        with self._results.lock():
            self._write({**self._read(), entry.id: scene})

    def release(self, entry: CatalogEntry) -> None:
        """Take a scene off the list, since there is a result of it now.

        Raises:
            TransientError: the disk refuses.
        """
        self._begun.pop(entry.id, None)
        if entry.id in self._scenes:
            with self._results.lock():
                self._write({name: scene for name, scene in self._read().items() if name != entry.id})

    def _source_facts(self, entry: CatalogEntry) -> dict[str, str]:
        """What a scene's bytes are known by; of remote ones the headers are fetched. Empty: nothing is known."""
        if not entry.files:
            return self._place_facts(_place_of(entry.location))
        facts = {
            f"{text}: {name}": fact
            for text in _locations(entry)
            for name, fact in self._place_facts(_place_of(text)).items()
        }
        return {"catalog": hashlib.sha256(repr(entry.files).encode()).hexdigest(), **facts} if facts else {}

    def _place_facts(self, place: Location | None) -> dict[str, str]:
        """What one file is known by."""
        if place is None:
            return {}
        if not place.is_remote:
            return local_facts(Path(place.gdal_path))
        try:
            return {place.persistent_path: remote_fingerprint(place, self._drivers)}
        except ScenemillError:
            return {}

    def _read(self) -> dict[str, QuarantinedScene]:
        try:
            content = self._results.read(QUARANTINE)
            if content is None:
                return {}
            scenes = [QuarantinedScene(**scene) for scene in json.loads(content)["scenes"]]
        except (TransientError, ValueError, TypeError, KeyError) as error:
            raise SettingsError(
                f"{self._results.address(QUARANTINE)}: no readable list of scenes in quarantine: {error}; mend it, "
                "or delete it, and all scenes are tried again"
            ) from error
        return {scene.scene: scene for scene in scenes}

    def _write(self, scenes: dict[str, QuarantinedScene]) -> None:
        self._scenes = scenes
        listed = {"scenes": [asdict(scene) for scene in scenes.values()]}
        self._results.write(QUARANTINE, json.dumps(listed, indent=2) + "\n")


def _locations(entry: CatalogEntry) -> tuple[str, ...]:
    """Where the files of a scene lie."""
    return tuple(file.location for file in entry.files) or (entry.location,)


def _place_of(location: str) -> Location | None:
    """None for an address that is not accepted, which the scene will fail with."""
    try:
        return resolve_location(location)
    except SceneError:
        return None
