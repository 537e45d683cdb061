"""Quarantine of scenes with bad data: each is skipped until its files, the model or the settings change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
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
from pipeline.storage import Location, remote_version, resolve_location
from pipeline.text import read_json, without_secrets

QUARANTINE = "quarantine.json"
SIDECARS = (".aux.xml", ".msk", ".ovr")
"""Suffixes after the full name of a scene; GDAL reads these files, so that one can repair a scene."""
WORLD_FILES = (".tfw", ".tifw", ".wld", ".tab")
"""Suffixes in place of the scene's own."""


@dataclass(frozen=True, kw_only=True)
class QuarantinedScene:
    """Why a scene is skipped, and what must change for it to be retried."""

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
    """Fingerprint of its bytes: file name -> size and time, of it and its sidecars; or address -> fingerprint.

    For several files the names follow their addresses, and `catalog` is a digest of their catalog entries.
    """
    inputs: str
    """SHA-256 of model, settings and version; with others the scene may succeed."""


def is_data_error(error: object) -> bool:
    """Whether the scene will fail again, because of its content or because it does not fit the model."""
    return isinstance(error, SceneError | ModelError)


def run_inputs(predictor: LoadedModel, spec: SegmentSpec) -> str:
    """Digest of the inputs besides the scene: model, settings that change results, and version of the package."""
    parts = [predictor.identity, spec.result_settings(), __version__]
    if spec.area is not None:
        parts.append(load_area(spec.area).digest)
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def local_facts(path: Path) -> dict[str, str]:
    """Size and time of a scene's file and of its existing sidecars."""
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
    """`quarantine.json` of a results folder: read and rewritten at each change under a lock."""

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
            out_dir: of the results.
            inputs: of this run, see `run_inputs`.
            drivers: GDAL drivers that may open remote scenes.
            work_dir: of this run, see `RunSpec`.
            now: the clock.
        """
        self._documents, self._inputs = open_results(out_dir, work_dir).documents, inputs
        self._drivers, self._now = drivers, now
        self._scenes = self._read()
        self._started: dict[str, Mapping[str, str]] = {}

    def entry(self, entry: CatalogEntry) -> QuarantinedScene | None:
        """The entry of a scene; None if it is not listed, or if scene, model or settings changed."""
        listed = self._scenes.get(entry.id)
        if listed is None or listed.inputs != self._inputs or not listed.source:
            return None
        return listed if listed.source == self._source_facts(entry) else None

    def begin(self, entry: CatalogEntry) -> None:
        """Note the fingerprint of a local scene: one that is replaced during the run counts as changed."""
        locations = [_resolved(text, entry) for text in _locations(entry)]
        if all(location is not None and not location.is_remote for location in locations):
            self._started[entry.id] = self._source_facts(entry)

    def add(self, entry: CatalogEntry, error: BaseException) -> None:
        """List a scene whose data failed."""
        source = self._started.pop(entry.id, None)
        if source is None:
            source = self._source_facts(entry)
        scene = QuarantinedScene(
            scene=entry.id,
            location=entry.shown,
            kind=type(error).__name__,
            reason=without_secrets(str(error)),
            since=self._now().isoformat(timespec="seconds"),
            source=source,
            inputs=self._inputs,
        )
        with self._documents.lock():
            self._write({**self._read(), entry.id: scene})

    def remove(self, entry: CatalogEntry) -> None:
        """Remove a scene that has a result now."""
        self._started.pop(entry.id, None)
        if entry.id in self._scenes:
            with self._documents.lock():
                self._write({name: scene for name, scene in self._read().items() if name != entry.id})

    def _source_facts(self, entry: CatalogEntry) -> dict[str, str]:
        """Fingerprint of a scene's bytes, of remote files from their headers; empty: none available."""
        if not entry.files:
            return self._file_facts(_resolved(entry.location, entry))
        facts = {
            f"{without_secrets(text)}: {name}": fact
            for text in _locations(entry)
            for name, fact in self._file_facts(_resolved(text, entry)).items()
        }
        return {"catalog": hashlib.sha256(repr(entry.files).encode()).hexdigest(), **facts} if facts else {}

    def _file_facts(self, location: Location | None) -> dict[str, str]:
        """Fingerprint of one file."""
        if location is None:
            return {}
        if not location.is_remote:
            return local_facts(Path(location.gdal_path))
        name = without_secrets(location.persistent_path)
        with suppress(ScenemillError):
            return {name: remote_fingerprint(location, self._drivers)}
        # A damaged header has no blocks to compare.
        with suppress(ScenemillError):
            version = remote_version(location)
            return {} if version is None else {name: version}
        return {}

    def _read(self) -> dict[str, QuarantinedScene]:
        try:
            content = self._documents.read(QUARANTINE)
            if content is None:
                return {}
            scenes = [QuarantinedScene(**scene) for scene in read_json(content)["scenes"]]
        except (TransientError, ValueError, TypeError, KeyError) as error:
            raise SettingsError(
                f"{self._documents.address(QUARANTINE)}: no readable list of scenes in quarantine: {error}; repair it, "
                "or delete it, and all scenes are retried"
            ) from error
        return {scene.scene: scene for scene in scenes}

    def _write(self, scenes: dict[str, QuarantinedScene]) -> None:
        self._scenes = scenes
        listed = {"scenes": [asdict(scene) for scene in scenes.values()]}
        self._documents.write(QUARANTINE, json.dumps(listed, indent=2) + "\n")


def _locations(entry: CatalogEntry) -> tuple[str, ...]:
    """Locations of the files of a scene."""
    return tuple(file.location for file in entry.files) or (entry.location,)


def _resolved(location: str, entry: CatalogEntry) -> Location | None:
    """The location of an address of a scene; None for an invalid one, with which the scene fails later."""
    try:
        return resolve_location(location, entry.rules)
    except SceneError:
        return None
