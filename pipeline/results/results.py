"""Results of a run under one address, a local folder or a prefix in an object store: its documents and its scenes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import SettingsError
from pipeline.results.documents import Documents, LocalDocuments, StoreDocuments
from pipeline.results.object_store import StoreScenes
from pipeline.results.scenes import LocalScenes, SceneResults
from pipeline.storage import StoreFolder
from pipeline.text import is_utf8

COLLAPSED = ("s3:/", "http:/", "https:/", "gs:/", "az:/")
"""Beginnings of addresses that `Path` has stripped of a slash."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """The results under one address."""

    documents: Documents
    scenes: SceneResults


def open_results(out: str | Path, work_dir: str | Path | None = None) -> Results:
    """The results under an address, created on the first write; no file is opened and no request sent.

    Args:
        out: a path, or `s3://bucket/prefix` as text.
        work_dir: local work folder of results for an object store; None: below the system's temporary folder.

    Raises:
        SettingsError: not a valid address of results.
    """
    text = str(out)
    scheme, is_address, _ = text.partition("://")
    if is_address and scheme.lower() == "s3":
        store = StoreFolder(text)
        return Results(documents=StoreDocuments(store, work_dir), scenes=StoreScenes(store, work_dir))
    if is_address:
        raise SettingsError(f"{text}: results cannot be written to {scheme}://; name a folder or s3:// with --out")
    if not is_utf8(text):
        raise SettingsError(f"{text}: the name of the folder is not UTF-8, which GDAL needs; choose another")
    if text.startswith(COLLAPSED):
        raise SettingsError(
            f"{text}: an address that lost a slash, as in a Path; pass it as text, e.g. s3://bucket/out"
        )
    return Results(documents=LocalDocuments(Path(text)), scenes=LocalScenes(Path(text)))
