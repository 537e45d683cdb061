"""STAC API searches, page by page; the server filters by the settings as far as it supports that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from pipeline.catalog.rows import Row, truncated_row
from pipeline.catalog.stac.bounds import ListingBounds
from pipeline.catalog.stac.items import CLOUDS, ItemRules, item_row
from pipeline.errors import SceneError, SettingsError, TransientError
from pipeline.storage import HttpRequest

if TYPE_CHECKING:
    from pystac_client import Client, ItemSearch

    from pipeline.catalog.stac.documents import DocumentReader
    from pipeline.catalog.stac.links import DocumentLocation

PAGE_ITEMS = 100


def split_collections(address: str) -> tuple[str, tuple[str, ...]]:
    """Split the query parameter `collections` from an address.

    >>> split_collections("https://host/v1?collections=a,b&key=1")
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
    content: Mapping[str, Any],
    document: DocumentLocation,
    collections: Sequence[str],
    rules: ItemRules,
    documents: DocumentReader,
) -> Iterator[Row]:
    """The rows of a search, oldest Items first where the server can sort; pages are fetched lazily.

    `content` is the API's landing page, and `document` its location. SettingsError if it cannot be searched.
    """
    if not collections:
        raise SettingsError(
            f"{document.address}: name the collections of the API, as in {document.address}?collections=..."
        )
    try:
        search = _search(_client(content, document, documents), collections, rules)
    except _search_errors() as error:
        raise SettingsError(f"{document.address}: cannot be searched: {_message(error)}; check the address") from error
    return _rows(search, document, rules)


def _client(content: Mapping[str, Any], document: DocumentLocation, documents: DocumentReader) -> Client:
    from pystac import Link
    from pystac_client import Client
    from pystac_client.stac_api_io import StacApiIO

    class ReaderIO(StacApiIO):
        """Sends pystac-client's requests through our reader, with its limits of size and time, and its retries."""

        def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
            """The response as text; a path, which pystac-client would open, is no address."""
            is_link = isinstance(source, Link)
            return super().read_text(source, *args, **kwargs) if is_link else self.request(str(source), *args, **kwargs)

        def request(
            self,
            href: str,
            method: str | None = None,
            headers: dict[str, str] | None = None,
            parameters: dict[str, Any] | None = None,
        ) -> str:
            """The response as text."""
            method = (method or "GET").upper()
            if method not in ("GET", "POST"):
                raise SceneError(f"{document.address}: a link asks for the method {method}; only GET and POST are sent")
            body, query = (parameters, None) if method == "POST" else (None, parameters)
            request = HttpRequest(
                address=href,
                hosts=document.rules.hosts,
                method=method,
                query=query,
                headers=headers,
                body=body,
            )
            return documents.request(request).decode("utf-8")

    # The landing page is read already; `Client.open` would request it again.
    client = Client.from_dict(dict(content), href=document.address)
    client._stac_io = ReaderIO(max_retries=None)
    return client


def _search(client: Client, collections: Sequence[str], rules: ItemRules) -> ItemSearch:
    """The search, with the filters that the API supports."""
    spec = rules.spec
    methods = {str(link.extra_fields.get("method", "GET")).upper() for link in client.get_links("search")}
    span = None if spec.since is None and spec.until is None else f"{spec.since_utc or '..'}/{spec.until_utc or '..'}"
    clouds = {CLOUDS: {"lte": spec.cloud_cover}} if spec.cloud_cover is not None else None
    return client.search(
        method="POST" if "POST" in methods else "GET",
        collections=list(collections),
        limit=min(PAGE_ITEMS, spec.limit or PAGE_ITEMS),
        bbox=spec.bbox,
        datetime=span,
        query=clouds if client.conforms_to("QUERY") else None,
        sortby=["+properties.datetime", "+id"] if client.conforms_to("SORT") else None,
    )


def _rows(search: ItemSearch, document: DocumentLocation, rules: ItemRules) -> Iterator[Row]:
    number, bounds = 0, ListingBounds()
    try:
        for page in search.pages_as_dicts():
            bounds.count(document.address, page["features"])
            for feature in page["features"]:
                number += 1
                yield item_row(feature, document, rules, label=f"{document.address}, item {number}", itself=False)
    except _search_errors() as error:
        yield truncated_row(document.address, _message(error))


def _search_errors() -> tuple[type[Exception], ...]:
    """Exceptions that our reader, pystac-client and pystac raise for an invalid response."""
    from pystac.errors import STACError, STACTypeError
    from pystac_client.exceptions import APIError
    from pystac_client.warnings import PystacClientWarning

    known = (SceneError, TransientError, APIError, STACError, STACTypeError, PystacClientWarning)
    return (*known, NotImplementedError, LookupError, TypeError, ValueError, AttributeError, RecursionError)


def _message(error: BaseException) -> str:
    is_ours = isinstance(error, SceneError | TransientError)
    return str(error) if is_ours else f"{type(error).__name__}: {error}"
