"""Searches of STAC APIs, page by page: what the settings ask for is asked of the server as far as it understands it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pipeline.catalog.rows import Row, truncated_row
from pipeline.catalog.stac.documents import HttpRequest
from pipeline.catalog.stac.items import CLOUDS, ItemRules, item_row
from pipeline.errors import SceneError, SettingsError, TransientError

if TYPE_CHECKING:
    from pystac_client import Client, ItemSearch

    from pipeline.catalog.stac.documents import DocumentReader
    from pipeline.catalog.stac.links import Place

PAGE = 100
"""Items that are asked for at a time."""


def collections_of(address: str) -> tuple[str, tuple[str, ...]]:
    """An address without `collections=` in its query, and the collections that this names.

    >>> collections_of("https://host/v1?collections=a,b&key=1")
    ('https://host/v1?key=1', ('a', 'b'))
    """
    if "://" not in address or "collections=" not in address:
        return address, ()
    parts = urlsplit(address)
    query = parse_qsl(parts.query, keep_blank_values=True)
    names = [name.strip() for key, value in query if key == "collections" for name in value.split(",")]
    kept = urlencode([(key, value) for key, value in query if key != "collections"])
    return urlunsplit(parts._replace(query=kept)), tuple(dict.fromkeys(filter(None, names)))


def open_search(
    content: Mapping[str, Any], place: Place, collections: Sequence[str], rules: ItemRules, documents: DocumentReader
) -> Iterator[Row]:
    """The rows of a search, oldest Items first where the server can sort; pages are fetched as scenes are asked for.

    Args:
        content: the API's landing page.
        place: where it lies.
        collections: those that are searched.
        rules: which Items and assets count.
        documents: talks to the server.

    Raises:
        SettingsError: the landing page is not one of an API that can be searched, or no collection is named.
    """
    if not collections:
        raise SettingsError(f"{place.address}: name the collections of the API, as in {place.address}?collections=...")
    try:
        search = _search(_client(content, place, documents), collections, rules)
    except _faults() as error:
        raise SettingsError(f"{place.address}: cannot be searched: {_said(error)}; check the address") from error
    return _rows(search, place, rules)


def _client(content: Mapping[str, Any], place: Place, documents: DocumentReader) -> Client:
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO

    class Exchange(StacApiIO):
        """What pystac-client asks goes through our reader, with its sizes, times and retries."""

        def request(
            self,
            href: str,
            method: str | None = None,
            headers: dict[str, str] | None = None,
            parameters: dict[str, Any] | None = None,
        ) -> str:
            """The answer as text."""
            method = (method or "GET").upper()
            body, query = (parameters, None) if method == "POST" else (None, parameters)
            question = HttpRequest(address=href, method=method, query=query, headers=headers, body=body)
            return documents.ask(question).decode("utf-8")

    client = Client.from_dict(dict(content), href=place.address)
    client._stac_io = Exchange(max_retries=None)
    return client


def _search(client: Client, collections: Sequence[str], rules: ItemRules) -> ItemSearch:
    """The search that an API understands."""
    spec = rules.spec
    methods = {str(link.extra_fields.get("method", "GET")).upper() for link in client.get_links("search")}
    span = None if spec.since is None and spec.until is None else f"{spec.first or '..'}/{spec.last or '..'}"
    clouds = {CLOUDS: {"lte": spec.cloud_cover}} if spec.cloud_cover is not None else None
    return client.search(
        method="POST" if "POST" in methods else "GET",
        collections=list(collections),
        limit=min(PAGE, spec.limit or PAGE),
        bbox=spec.bbox,
        datetime=span,
        query=clouds if client.conforms_to("QUERY") else None,
        sortby=["+properties.datetime", "+id"] if client.conforms_to("SORT") else None,
    )


def _rows(search: ItemSearch, place: Place, rules: ItemRules) -> Iterator[Row]:
    number = 0
    try:
        for page in search.pages_as_dicts():
            for feature in page["features"]:
                number += 1
                yield item_row(feature, place, rules, label=f"{place.address}, item {number}", itself=False)
    except _faults() as error:
        yield truncated_row(place.address, _said(error))


def _faults() -> tuple[type[Exception], ...]:
    """What an answer that is none makes our reader, pystac-client and pystac raise."""
    from pystac.errors import STACError, STACTypeError
    from pystac_client.exceptions import APIError
    from pystac_client.warnings import PystacClientWarning

    known = (SceneError, TransientError, APIError, STACError, STACTypeError, PystacClientWarning)
    return (*known, NotImplementedError, LookupError, TypeError, ValueError, AttributeError)


def _said(error: BaseException) -> str:
    ours = isinstance(error, SceneError | TransientError)
    return str(error) if ours else f"{type(error).__name__}: {error}"
