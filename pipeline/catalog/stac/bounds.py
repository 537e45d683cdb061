"""Denial-of-service bounds of STAC listings: bands of an Item, documents of a catalog, and pages without new Items.

The bounds are far above real catalogs. One that is met ends the listing with a refusal, after the scenes before it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.errors import SceneError

MAX_BANDS = 1000
"""Maximum assets of an Item, and bands of all its assets."""
MAX_DOCUMENTS = 100_000
"""Maximum documents and pages that a source leads to."""
MAX_IDLE_PAGES = 20
"""Maximum pages in a row without an Item that no page before had."""


class ListingBounds:
    """Counts the documents and pages of one source."""

    def __init__(self) -> None:
        self._documents = self._idle = 0
        self._seen: set[int] = set()

    def count(self, address: str, features: Iterable[object] | None = None) -> None:
        """Count a document, and the Items of a page; SceneError if the listing ends with the document before.

        Args:
            address: of the document.
            features: the Items of a page; None for a document of another kind.
        """
        self._documents += 1
        if self._documents > MAX_DOCUMENTS:
            raise SceneError(f"{address}: the source leads to over {MAX_DOCUMENTS:,} documents; name its parts")
        if features is None:
            return
        # Hashes take a fraction of the memory of ids.
        ids = {hash(each["id"]) for each in features if isinstance(each, Mapping) and isinstance(each.get("id"), str)}
        self._idle = 0 if ids - self._seen else self._idle + 1
        self._seen |= ids
        if self._idle > MAX_IDLE_PAGES:
            raise SceneError(
                f"{address}: {self._idle} pages in a row have no new Item; the server repeats itself, so the rest is "
                "not read"
            )


def check_count(things: Mapping[str, Any] | int, what: str) -> None:
    """Refuse an Item with too many assets or bands, with SceneError."""
    number = things if isinstance(things, int) else len(things)
    if number > MAX_BANDS:
        raise SceneError(f"has {number:,} {what}, over {MAX_BANDS:,}; correct the Item")
