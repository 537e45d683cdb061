"""STAC as a source of scenes: an Item, a collection of Items, and catalogs that are walked document by document.

The first document is read at once and says what the source is; the others are read as far as scenes are asked for, in
the order in which documents link to them: the Items of a catalog, then its children.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pipeline.catalog.rows import Row
from pipeline.catalog.stac.documents import MAX_PREFETCHED, DocumentPrefetcher, DocumentReader
from pipeline.catalog.stac.items import ItemRules, item_row
from pipeline.catalog.stac.links import Place, identity, linked_place, place_of
from pipeline.errors import SceneError, SettingsError, TransientError

STAC = "stac+"
"""Before an address, says that STAC lies there, whatever its suffix."""
MARK = b'"stac_version"'
"""What every Item says; a local GeoJSON file without it is a table of scenes."""
PIECE_BYTES = 2**20

Kind = Literal["item", "items", "catalog"]


@dataclass(frozen=True, kw_only=True)
class _Link:
    """A document that is still to be read."""

    href: object
    """As it is written."""
    place: Place
    """Where the document lies that it stands in."""


def is_stac(source: str) -> bool:
    """Whether a source is STAC, by its name, or for a local GeoJSON file by its content."""
    if source.startswith(STAC):
        return True
    path = urlsplit(source).path if "://" in source else source
    if path.lower().endswith(".geojson"):
        return "://" in source or _is_marked(Path(source).expanduser())
    return path.lower().endswith(".json")


def _is_marked(path: Path) -> bool:
    """Whether a file holds the mark; one that cannot be read does not, and is refused as a table."""
    try:
        with path.open("rb") as file:
            tail = b""
            while piece := file.read(PIECE_BYTES):
                if MARK in tail + piece:
                    return True
                tail = piece[-len(MARK) :]
    except OSError:
        return False
    return False


def open_stac(source: str, rules: ItemRules) -> Iterator[Row]:
    """The rows of a STAC source, whose first document is read at once.

    Raises:
        SettingsError: that document is not there, or no STAC.
        TransientError: disk, network or server failed.
    """
    from pipeline.catalog.stac.search import collections_of, open_search

    documents = DocumentReader()
    address, collections = collections_of(source.removeprefix(STAC))
    place = place_of(address, rules.spec.root)
    try:
        content = documents.read(place.address)
        if _is_api(content, place):
            return open_search(content, place, collections, rules, documents)
        if collections:
            raise SceneError(f"{address}: is no landing page of a STAC API; name that, or leave ?collections= out")
        kind = _kind_of(content, place.address)
    except SceneError as error:
        raise SettingsError(str(error)) from error
    if kind == "item":  # The row is small, the document is not, and a glob may name thousands.
        return iter([*_rows(content, kind, place, rules)])
    return _walk(content, kind, place, rules)


def _is_api(content: Mapping[str, Any], place: Place) -> bool:
    return place.root is None and bool(content.get("conformsTo")) and bool(_links(content, "search"))


def _kind_of(content: Mapping[str, Any], address: str) -> Kind:
    from pystac.serialization import identify_stac_object_type

    if content.get("type") == "FeatureCollection" and isinstance(content.get("features"), list):
        return "items"
    try:
        kind = identify_stac_object_type(dict(content))
    except (TypeError, ValueError, AttributeError):
        kind = None
    if kind is None:
        raise SceneError(f"{address}: is no STAC Item, collection of Items, Catalog or Collection; check the address")
    return "item" if kind.value == "Feature" else "catalog"


def _walk(content: Mapping[str, Any], kind: Kind, place: Place, rules: ItemRules) -> Iterator[Row]:
    """The rows of a document and of all that it leads to, each document once.

    What cannot be read is a row at fault, and the others go on.
    """
    yield from _rows(content, kind, place, rules)
    seen, pending = {identity(place.address)}, _onward(content, kind, place)
    with closing(DocumentPrefetcher()) as documents:
        while pending:
            documents.prefetch(_soon(pending, seen))
            link = pending.pop()
            address = f"{link.place.address}, link {link.href}"
            try:
                place = linked_place(link.href, link.place)
                address = place.address
                if identity(address) in seen:
                    continue
                seen.add(identity(address))
                content = documents.read(address)
                kind = _kind_of(content, address)
            except (SceneError, TransientError) as error:
                yield Row(place=address, error=f"what lies below is missing: {error}")
                continue
            yield from _rows(content, kind, place, rules)
            pending += _onward(content, kind, place)


def _soon(pending: Sequence[_Link], seen: Set[str]) -> Iterator[str]:
    """The addresses of the documents that come next, those left out that have been read or lead nowhere."""
    for link in islice(reversed(pending), MAX_PREFETCHED):
        with suppress(SceneError):
            address = linked_place(link.href, link.place).address
            if identity(address) not in seen:
                yield address


def _rows(content: Mapping[str, Any], kind: Kind, place: Place, rules: ItemRules) -> Iterator[Row]:
    """The Items that a document itself holds."""
    features = content["features"] if kind == "items" else [content] if kind == "item" else []
    for number, feature in enumerate(features, start=1):
        label = place.address if kind == "item" else f"{place.address}, feature {number}"
        yield item_row(feature, place, rules, label=label, itself=kind == "item")


def _onward(content: Mapping[str, Any], kind: Kind, place: Place) -> list[_Link]:
    """The documents that one leads to, the next one last: Items before children, or the next page.

    A Collection of an API links to pages of its Items instead.
    """
    if kind == "item":
        return []
    if kind == "items":
        links = [link for link in _links(content, "next") if str(link.get("method", "GET")).upper() == "GET"]
    else:
        links = [*_links(content, "item"), *_links(content, "child")] or _links(content, "items")
    return [_Link(href=link.get("href"), place=place) for link in reversed(links)]


def _links(content: Mapping[str, Any], rel: str) -> list[Mapping[str, Any]]:
    links = content.get("links")
    return [
        link for link in (links if isinstance(links, list) else ()) if isinstance(link, dict) and link.get("rel") == rel
    ]
