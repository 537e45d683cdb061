"""Results of scenes, a folder for each, found by content key and published atomically."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline.results.publish import finished_report, is_pending, publishing, recover_report
from pipeline.results.report import SceneReport

log = logging.getLogger(__name__)

FindFinished = Callable[[str | None], SceneReport | None]
"""Content key -> the report of a scene's complete result with that key, or None."""


class SceneResults(Protocol):
    """Results of scenes under one address; thread-safe."""

    def ids(self) -> Iterator[str]:
        """Names of folders that may be scenes' results, in order."""

    def iter_finished(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with its own `finished`; one listing serves all of them."""

    def folder(self, scene_id: str) -> Path | None:
        """The local folder of a scene's result, existing or not; None in an object store."""

    def finished(self, scene_id: str, key: str | None) -> SceneReport | None:
        """The report of a scene's complete result with this content key; None without one. Changes nothing.

        Its `reason` names files that were changed after they were written.

        Raises:
            AccessError: the folder of the result is a link, or a file is in its place.
            TransientError: the network fails.
        """

    def committed(self, scene_id: str, key: str | None) -> SceneReport | None:
        """The same; also None if an interrupted run left something that `recover` would process."""

    def recover(self, scene_id: str, key: str | None) -> SceneReport | None:
        """Publish or clean up what an interrupted run left, then return the same as `finished`.

        Raises:
            AccessError: a folder of the result is a link or another user's, or a file is in its place.
            TransientError: disk or network fail, or another run is writing the same scene.
        """

    def previous_result(self, scene_id: str, mosaic_key: str | None) -> Path | None:
        """A local folder with the scene's previous result, if its mosaic has this key; None if it cannot be reused.

        It exists until the new result is published.
        """

    def publishing(self, scene_id: str) -> AbstractContextManager[Path]:
        """A local work folder that becomes the scene's result on success; the previous one stays complete until then.

        Raises:
            AccessError: a folder of the result is a link or another user's, or a file is in its place.
            TransientError: disk or network fail, or another run is writing the same scene.
        """


class LocalScenes:
    """Results of scenes in a local folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ids(self) -> Iterator[str]:
        """Names of visible folders, in order; links to folders are left out, with a warning."""
        for path in sorted(self._folder.glob("[!.]*")):
            if path.is_symlink() and path.is_dir():
                log.warning("%s: a link to a folder, whose result is left out; name its folder in --out", path)
            elif path.is_dir():
                yield path.name

    def iter_finished(self) -> Iterator[tuple[str, FindFinished]]:
        """The same, each with its own `finished`, which does not compare files with their sizes and digests."""
        return ((name, partial(finished_report, self._folder / name, check_edits=False)) for name in self.ids())

    def folder(self, scene_id: str) -> Path:
        """The folder of a scene's result, existing or not."""
        return self._folder / scene_id

    def finished(self, scene_id: str, key: str | None) -> SceneReport | None:
        """See `publish.finished_report`."""
        return finished_report(self._folder / scene_id, key)

    def committed(self, scene_id: str, key: str | None) -> SceneReport | None:
        """The same; None if `recover` would repair something."""
        return None if is_pending(self._folder / scene_id) else self.finished(scene_id, key)

    def recover(self, scene_id: str, key: str | None) -> SceneReport | None:
        """See `publish.recover_report`."""
        return recover_report(self._folder / scene_id, key)

    def previous_result(self, scene_id: str, mosaic_key: str | None) -> Path:
        """The folder of a scene's result, existing or not."""
        return self._folder / scene_id

    def publishing(self, scene_id: str) -> AbstractContextManager[Path]:
        """See `publish.publishing`."""
        return publishing(self._folder / scene_id)
