"""What a row of a list may name: places that the operator named or wrote out, and ids that can be folders."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from pipeline.catalog_rows import Row
from pipeline.errors import SceneError
from pipeline.location import tidy_name

OF_A_RUN = (".json", ".gpkg", ".parquet")
"""How files that a run keeps beside the scenes' folders end; no scene's id may."""


def locate(row: Row, folder: Path, root: Path | None = None) -> str:
    """Where the scene of a row lies: an address, an absolute path, or a file in the folder of the index or below.

    Args:
        row: the row.
        folder: of the index; relative paths count from here.
        root: in its place, the folder that they must stay in.

    Raises:
        SceneError: the row names no place, or one outside by a relative path, also through a link.
    """
    if row.fault:
        raise SceneError(row.fault)
    if not row.path:
        raise SceneError("no path is there; fill it in, or delete the row")
    if "\N{REPLACEMENT CHARACTER}" in row.path or not row.path.isprintable():
        raise SceneError(f"{row.path!r} holds a line break or is no UTF-8; correct the row, perhaps a quote is missing")
    if "://" in row.path or Path(row.path).is_absolute():
        return row.path
    path = folder / row.path
    try:
        inside = path.resolve().is_relative_to((root or folder).expanduser().resolve())
    except (OSError, RuntimeError) as error:
        raise SceneError(f"{row.path}: leads nowhere: {error}; correct the path") from error
    if not inside:
        raise SceneError(
            f"{row.path}: leads out of {(root or folder).absolute()}, the folder of the list; "
            "write the absolute path out if it is meant, or allow a higher folder with catalog.root"
        )
    return str(path)


def checked_id(name: str, taken: Collection[str]) -> str:
    """The id, which becomes the name of a folder.

    Args:
        name: the id.
        taken: the ids before it, in lower case.

    Raises:
        SceneError: no folder can have this name, or one has it.
    """
    if name != tidy_name(name) or name.lower().endswith(OF_A_RUN):
        raise SceneError(
            f"the id {name!r} cannot name a folder; use letters, digits, dash and underscore, and dots inside, "
            f"at most 200, not ending in {', '.join(OF_A_RUN)}"
        )
    if name.lower() in taken:
        raise SceneError(f"the id {name!r} is taken by another scene; give each its own in a column called id")
    return name
