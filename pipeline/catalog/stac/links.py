"""Where the links of a STAC document lead: addresses and absolute paths as written, relative ones never astray.

A relative link counts from the document that it stands in. That of a remote document stays on its server or in its
bucket; that of a local one stays in the folder of the document that the operator named, or below.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

from pipeline.errors import SceneError
from pipeline.storage import resolve_location


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a document lies."""

    address: str
    """Its absolute path or its address."""
    root: Path | None
    """Folder that its relative links must stay in; None for a remote document, which can name no local file."""


def place_of(address: str, root: str | None = None) -> Place:
    """The place of a document that is named by itself; relative links may go as far as its folder, or as `root`."""
    if "://" in address:
        return Place(address=address, root=None)
    path = Path(address).expanduser().absolute()
    return Place(address=str(path), root=path.parent if root is None else Path(root).expanduser().absolute())


def linked_place(href: object, place: Place) -> Place:
    """The place of a document that another one links to.

    Raises:
        SceneError: the link leads nowhere, or where it must not.
    """
    address = resolve_href(href, place)
    if "://" not in address and place.root is not None and _is_inside(Path(address), place.root):
        return Place(address=address, root=place.root)
    return place_of(address)


def identity(address: str) -> str:
    """What is equal for a file however its path is written."""
    return address if "://" in address else str(Path(address).resolve())


def resolve_href(href: object, place: Place) -> str:
    """The absolute path or address that a link of the document at `place` means.

    Raises:
        SceneError: the link leads nowhere, or where it must not.
    """
    if not isinstance(href, str) or not href.strip() or not href.isprintable():
        raise SceneError(f"its link {href!r} is no address; correct the document")
    address = _resolved(href.strip(), place)
    resolve_location(address)
    return address


def _resolved(href: str, place: Place) -> str:
    if "://" in href:
        return href
    if place.root is not None:
        return href if Path(href).is_absolute() else _local(href, place.address, place.root)
    return _remote(href, place.address)


def _local(href: str, address: str, root: Path) -> str:
    path = Path(address).parent / href
    try:
        inside = _is_inside(path, root)
    except (OSError, RuntimeError, ValueError) as error:
        raise SceneError(f"its link {href} leads nowhere: {error}; correct the document") from error
    if not inside:
        raise SceneError(
            f"its link {href} leads out of {root}; name a catalog that lies above both, write the absolute path out "
            "if it is meant, or allow a higher folder with catalog.root"
        )
    return str(path)


def _is_inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _remote(href: str, address: str) -> str:
    """As browsers do; those know `https` and not `s3`, whose addresses are built alike."""
    scheme, _, rest = address.partition("://")
    joined = urljoin(f"https://{rest}", href)
    if not joined.startswith("https://"):
        raise SceneError(f"its link {href} is no address; a remote document can name no local file")
    return f"{scheme}://{joined.removeprefix('https://')}"
