"""STAC sources: an Item, an ItemCollection, a Catalog walked document by document, or an API search.

The first document is read at once and decides the kind of the source. The others are read lazily, in the order of the
links: the Items of a catalog, then its children.
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
from pipeline.catalog.stac.bounds import ListingBounds
from pipeline.catalog.stac.documents import MAX_PREFETCHED, DocumentPrefetcher, DocumentReader
from pipeline.catalog.stac.items import ItemRules, item_row
from pipeline.catalog.stac.links import DocumentLocation, canonical_path, document_location, follow_link
from pipeline.errors import SceneError, SettingsError, TransientError
from pipeline.storage import HostRules, check_regular

STAC_PREFIX = "stac+"
"""Prefix of addresses of STAC documents without the suffix `.json`."""
STAC_MARKER = b'"stac_version"'
"""Field of every Item; a local GeoJSON file without it is a table of scenes."""
CHUNK_BYTES = 2**20

DocumentKind = Literal["item", "items", "catalog"]


@dataclass(frozen=True, kw_only=True)
class _Link:
    """A link to a document that is not yet read."""

    href: object
    """As written."""
    document: DocumentLocation
    """Location of the document with the link."""


def is_stac_source(source: str) -> bool:
    """Whether a source is STAC, by its name, or by content for a local GeoJSON file."""
    if source.startswith(STAC_PREFIX):
        return True
    path = urlsplit(source).path if "://" in source else source
    if path.lower().endswith(".geojson"):
        return "://" in source or _has_marker(Path(source).expanduser())
    return path.lower().endswith(".json")


def _has_marker(path: Path) -> bool:
    """Whether a file contains the marker; False for an unreadable file, which is then refused as a table."""
    try:
        check_regular(path)
        with path.open("rb") as file:
            tail = b""
            while chunk := file.read(CHUNK_BYTES):
                if STAC_MARKER in tail + chunk:
                    return True
                tail = chunk[-len(STAC_MARKER) :]
    except OSError:
        return False
    return False


def open_stac(source: str, rules: ItemRules) -> Iterator[Row]:
    """The rows of a STAC source; SettingsError if its first document, which is read at once, is missing or not STAC."""
    from pipeline.catalog.stac.search import open_search, split_collections

    documents = DocumentReader()
    address, collections = split_collections(source.removeprefix(STAC_PREFIX))
    document = document_location(address, rules.spec.root, HostRules(rules.spec.hosts)).settled()
    try:
        content = documents.read(document)
        if _is_api(content, document):
            return open_search(content, document, collections, rules, documents)
        if collections:
            raise SceneError(f"{address}: is not the landing page of a STAC API; name that, or leave ?collections= out")
        kind = _kind_of(content, document.address)
    except SceneError as error:
        raise SettingsError(str(error)) from error
    if kind == "item":  # Read now: a row is smaller than its document, and a glob may name thousands.
        return iter([*_rows(content, kind, document, rules)])
    return _walk(content, kind, document, rules)


def _is_api(content: Mapping[str, Any], document: DocumentLocation) -> bool:
    return document.root is None and bool(content.get("conformsTo")) and bool(_links(content, "search"))


def _kind_of(content: Mapping[str, Any], address: str) -> DocumentKind:
    from pystac.serialization import identify_stac_object_type

    if content.get("type") == "FeatureCollection" and isinstance(content.get("features"), list):
        return "items"
    try:
        kind = identify_stac_object_type(dict(content))
    except (TypeError, ValueError, AttributeError):
        kind = None
    if kind is None:
        raise SceneError(f"{address}: is not a STAC Item, ItemCollection, Catalog or Collection; check the address")
    return "item" if kind.value == "Feature" else "catalog"


def _walk(
    content: Mapping[str, Any], kind: DocumentKind, document: DocumentLocation, rules: ItemRules
) -> Iterator[Row]:
    """Yield the rows of all linked documents, each document once; an unreadable one becomes a row with an error."""
    yield from _rows(content, kind, document, rules)

    # Depth first: `pending` is a stack, and `seen` stops cycles of links.
    seen, pending = {canonical_path(document.address)}, _next_links(content, kind, document)
    bounds = ListingBounds()
    with closing(DocumentPrefetcher()) as documents:
        while pending:
            documents.prefetch(_upcoming(pending, seen))
            link = pending.pop()
            address = f"{link.document.address}, link {link.href}"
            try:
                document = follow_link(link.href, link.document).settled()
                address = document.address
                if canonical_path(address) in seen:
                    continue
                seen.add(canonical_path(address))
                content = documents.read(document)
                kind = _kind_of(content, address)
            except (SceneError, TransientError) as error:
                yield Row(location=address, error=f"this document and those below it are missing: {error}")
                continue
            try:
                bounds.count(address, content["features"] if kind == "items" else None)
            except SceneError as error:
                yield Row(location=address, error=str(error))
                return
            yield from _rows(content, kind, document, rules)
            pending += _next_links(content, kind, document)


def _upcoming(pending: Sequence[_Link], seen: Set[str]) -> Iterator[DocumentLocation]:
    """Yield the locations of the next documents, without those already read and invalid links."""
    for link in islice(reversed(pending), MAX_PREFETCHED):
        with suppress(SceneError):
            document = follow_link(link.href, link.document)
            if canonical_path(document.address) not in seen:
                yield document


def _rows(
    content: Mapping[str, Any], kind: DocumentKind, document: DocumentLocation, rules: ItemRules
) -> Iterator[Row]:
    """Yield the rows of the Items in a document."""
    features = content["features"] if kind == "items" else [content] if kind == "item" else []
    for number, feature in enumerate(features, start=1):
        label = document.address if kind == "item" else f"{document.address}, feature {number}"
        yield item_row(feature, document, rules, label=label, itself=kind == "item")


def _next_links(content: Mapping[str, Any], kind: DocumentKind, document: DocumentLocation) -> list[_Link]:
    """Links to follow, the first one last: Items and children, else pages of an API's Collection; or the next page."""
    if kind == "item":
        return []
    if kind == "items":
        links = [link for link in _links(content, "next") if str(link.get("method", "GET")).upper() == "GET"]
    else:
        links = [*_links(content, "item"), *_links(content, "child")] or _links(content, "items")
    return [_Link(href=link.get("href"), document=document) for link in reversed(links)]


def _links(content: Mapping[str, Any], rel: str) -> list[Mapping[str, Any]]:
    links = content.get("links")
    return [
        link for link in (links if isinstance(links, list) else ()) if isinstance(link, dict) and link.get("rel") == rel
    ]
