"""Results of scenes, a folder for each, found by content key and published atomically."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline.results.publish import FindFinished, finished_report, publishing


class SceneResults(Protocol):
    """Results of scenes under one address; thread-safe."""

    def ids(self) -> Iterator[str]:
        """Names of folders that may be scenes' results, in order."""

    def iter_finished(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with its own `finished`; one listing serves all of them."""

    def folder(self, scene_id: str) -> Path | None:
        """The local folder of a scene's result, existing or not; None in an object store."""

    def finished(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The report of a scene's complete result with this content key; None without one."""

    def committed(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """The same; also None if an interrupted run left something that `recover` would process."""

    def recover(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """Publish or clean up what an interrupted run left, then return the same as `finished`.

        Raises:
            TransientError: disk or network fail, or another run is writing the same scene.
        """

    def previous_result(self, scene_id: str, mosaic_key: str | None) -> Path | None:
        """A local folder with the scene's previous result, if its mosaic has this key; None if it cannot be reused.

        It exists until the new result is published.
        """

    def publishing(self, scene_id: str) -> AbstractContextManager[Path]:
        """A local work folder that becomes the scene's result on success; the previous one stays complete until then.

        Raises:
            TransientError: disk or network fail, or another run is writing the same scene.
        """


class LocalScenes:
    """Results of scenes in a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ids(self) -> Iterator[str]:
        """Names of visible folders, in order."""
        return iter(sorted(path.name for path in self._folder.glob("[!.]*") if path.is_dir()))

    def iter_finished(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with its own `finished`."""
        return ((name, partial(self.finished, name)) for name in self.ids())

    def folder(self, scene_id: str) -> Path:
        """The folder of a scene's result, existing or not."""
        return self._folder / scene_id

    def finished(self, scene_id: str, key: str | None) -> dict[str, object] | None:
        """See `publish.finished_report`, which also repairs the folder."""
        return finished_report(self._folder / scene_id, key)

    committed = recover = finished

    def previous_result(self, scene_id: str, mosaic_key: str | None) -> Path:
        """The folder of a scene's result, existing or not."""
        return self._folder / scene_id

    def publishing(self, scene_id: str) -> AbstractContextManager[Path]:
        """See `publish.publishing`."""
        return publishing(self._folder / scene_id)
