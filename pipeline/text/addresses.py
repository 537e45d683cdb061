"""URL redaction: addresses and texts without users, passwords, signatures and tokens, for messages and documents.

Every ScenemillError redacts its message, so an address is written raw only to open it. A secret that is part of a path
cannot be recognised.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

SIGNATURE_PARAMETERS = {"signature", "sig", "x-amz-signature", "x-goog-signature"}
"""Query parameters that hold the signature of a URL."""
SIGNING_PARAMETERS = SIGNATURE_PARAMETERS | {
    *("awsaccesskeyid", "expires", "policy", "key-pair-id", "googleaccessid"),
    *("sv", "st", "se", "sr", "sp", "spr", "sip", "ss", "srt", "skoid", "sktid", "skt", "ske", "sks", "skv"),
}
"""These and the parameters that accompany a signature of Amazon, Google or Azure."""

_SECRET_NAMES = re.compile(
    r"token|secret|passw|pwd|auth(?!or$)|credential|signature|session|jwt|^(sig|pw|pass|user|username|code)$|key(id)?$|-key-"
)
"""Names of query parameters, in lower case, whose values are secret."""
_USER = re.compile(r"(?<=://)[^/?#\s'\"<>]*@")
_FIRST_USER = re.compile(r"\A([A-Za-z][\w+.-]*://)[^/?#\s]*@")
"""That of an address which a text begins with, where quotation marks do not end it."""
_QUERY = re.compile(r"[?#][^\s'\"<>)]*[^\s'\"<>),.:;]")


def without_secrets(text: str) -> str:
    """An address, or a text with addresses, without users, passwords and secret query parameters.

    >>> without_secrets("https://bob:pw@host/b.tif?year=2026&X-Amz-Date=20261120&X-Amz-Signature=ab12")
    'https://host/b.tif?year=2026'
    >>> without_secrets("cannot reach /v1/a.tif?api_key=7&page=2 (timeout)"), without_secrets("https://a/b.tif?st=4")
    ('cannot reach /v1/a.tif?page=2 (timeout)', 'https://a/b.tif?st=4')
    """
    return _QUERY.sub(lambda found: _public_query(found[0]), _USER.sub("", _FIRST_USER.sub(r"\1", text)))


def without_signature(address: str) -> str:
    """An address without its signing parameters, which change from day to day; other parameters stay.

    >>> without_signature("https://a/b.tif?year=2026&X-Amz-Date=20261120&X-Amz-Signature=ab12")
    'https://a/b.tif?year=2026'
    >>> without_signature("https://a/b.tif?st=4")
    'https://a/b.tif?st=4'
    """
    path, _, query = address.partition("?")
    parts = query.split("&")
    names = [_name(part) for part in parts]
    if not SIGNATURE_PARAMETERS & {*names}:
        return address
    kept = [part for part, name in zip(parts, names, strict=True) if not _signs(name)]
    return f"{path}?{'&'.join(kept)}" if kept else path


def _public_query(query: str) -> str:
    """A query or fragment, with its `?` or `#`, without its secret parameters."""
    parts = re.split("[&;?#]", query[1:])
    names = [_name(part) for part in parts]
    is_signed = bool(SIGNATURE_PARAMETERS & {*names})
    kept = [
        part
        for part, name in zip(parts, names, strict=True)
        if not _SECRET_NAMES.search(name) and not (is_signed and _signs(name)) and not _holds_secret(part)
    ]
    if len(kept) == len(parts):
        return query
    return query[0] + "&".join(kept) if kept else ""


def _name(part: str) -> str:
    return unquote(part.partition("=")[0]).lower()


def _signs(name: str) -> bool:
    return name in SIGNING_PARAMETERS or name.startswith(("x-amz-", "x-goog-"))


def _holds_secret(part: str) -> bool:
    """Whether a value is an address with secrets of its own, percent-encoded."""
    value = unquote(part.partition("=")[2])
    return "://" in value and without_secrets(value) != value
