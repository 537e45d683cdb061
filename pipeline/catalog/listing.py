"""Object listings: `s3://bucket/folder/` and globs become the addresses of objects."""

from __future__ import annotations

import re

from pipeline.errors import MissingError, SettingsError
from pipeline.storage import list_keys, split_address

MAX_LISTED_OBJECTS = 100_000
"""Maximum objects listed for one source; for more, a list of addresses written once is cheaper."""


def is_folder_or_glob(source: str) -> bool:
    """Whether an `s3://` address is a folder of objects or a glob."""
    return source.lower().startswith("s3://") and (source.endswith("/") or any(c in source for c in "*?"))


def list_objects(source: str, suffixes: tuple[str, ...]) -> list[str]:
    """Addresses of a folder's objects with one of the suffixes, without subfolders, or of all that match a glob.

    `*` and `?` match anything but a slash, `**/` any number of folders. Hidden names are skipped.
    """
    bucket, pattern = split_address(source)
    if source.endswith("/"):
        pattern += "*"
        endings, flat = suffixes, True
    else:
        endings, flat = ("",), not any(c in pattern.rpartition("/")[0] for c in "*?")

    # The store selects by prefix only; the rest of the pattern is matched here.
    prefix = re.split(r"[*?]", pattern, maxsplit=1)[0]
    matching = re.compile(_glob_to_regex(pattern))
    found = []
    try:
        for count, key in enumerate(list_keys(bucket, prefix, flat=flat), start=1):
            if count > MAX_LISTED_OBJECTS:
                raise SettingsError(
                    f"{source}: more than {MAX_LISTED_OBJECTS:,} objects would have to be listed; name a narrower "
                    "folder, or write the addresses into a list (.txt, .csv)"
                )
            if matching.fullmatch(key) and key.lower().endswith(endings) and "/." not in f"/{key[len(prefix) :]}":
                found.append(f"s3://{bucket}/{key}")
    except MissingError as error:
        raise SettingsError(str(error)) from error
    if not found:
        looked = f"; looked for {', '.join(suffixes)}" if source.endswith("/") else ""
        raise SettingsError(f"{source}: matches no object{looked}; check the address")
    return found


def _glob_to_regex(pattern: str) -> str:
    r"""A glob as a regular expression.

    >>> print(_glob_to_regex("a/**/b*.tif"))
    a/(?:[^/]+/)*b[^/]*\.tif
    """
    wildcards = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "?": "[^/]"}
    return "".join(wildcards.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*|\?)", pattern))
