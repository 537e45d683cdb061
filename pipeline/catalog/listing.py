"""Scenes of an object store by few words: `s3://bucket/folder/` and globs become addresses."""

from __future__ import annotations

import re

from pipeline.errors import MissingError, SettingsError
from pipeline.storage import list_keys, split_address

MAX_LISTED_OBJECTS = 100_000
"""Objects that are looked at for one source; more make a list that should be written once, and given as such."""


def is_folder_or_glob(source: str) -> bool:
    """Whether an address stands for a folder of objects, or for all that match a pattern."""
    return source.lower().startswith("s3://") and (source.endswith("/") or any(c in source for c in "*?"))


def list_addresses(source: str, suffixes: tuple[str, ...]) -> list[str]:
    """Addresses of the objects of a folder that end in a suffix, not of its subfolders, or of those that match a glob.

    `*` and `?` stand for anything but a slash, `**/` for any number of folders. Hidden names are left out.

    Raises:
        SettingsError: nothing matches, there is no such bucket, or too much would have to be listed.
        TransientError: the store refuses or fails.
    """
    bucket, pattern = split_address(source)
    if source.endswith("/"):
        pattern += "*"
        wanted, flat = suffixes, True
    else:
        wanted, flat = ("",), not any(c in pattern.rpartition("/")[0] for c in "*?")
    prefix = re.split(r"[*?]", pattern, maxsplit=1)[0]
    matching = re.compile(_translated(pattern))
    found = []
    try:
        for count, key in enumerate(list_keys(bucket, prefix, flat=flat), start=1):
            if count > MAX_LISTED_OBJECTS:
                raise SettingsError(
                    f"{source}: more than {MAX_LISTED_OBJECTS:,} objects would have to be listed; name a narrower "
                    "folder, or write the addresses into a list (.txt, .csv)"
                )
            if matching.fullmatch(key) and key.lower().endswith(wanted) and not _is_hidden(key[len(prefix) :]):
                found.append(f"s3://{bucket}/{key}")
    except MissingError as error:
        raise SettingsError(str(error)) from error
    if not found:
        looked = f"; looked for {', '.join(suffixes)}" if source.endswith("/") else ""
        raise SettingsError(f"{source}: matches no object{looked}; check the address")
    return found


def _translated(pattern: str) -> str:
    r"""A glob as a regular expression.

    >>> print(_translated("a/**/b*.tif"))
    a/(?:[^/]+/)*b[^/]*\.tif
    """
    kinds = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    return "".join(kinds.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*|\?)", pattern))


def _is_hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))
