"""Links of STAC documents, resolved to absolute paths and addresses; relative links must stay inside a root.

A relative link is resolved against its document. In a remote document it stays on the server or in the bucket; in a
local one it stays inside the folder of the document that the operator named. A whole address may lead to another
server, which must be public or allowed, see `HostRules`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from pipeline.errors import SceneError
from pipeline.storage import NAMED_BY_OPERATOR, HostRules, resolve_location


@dataclass(frozen=True, kw_only=True)
class DocumentLocation:
    """The base of a document's relative links."""

    address: str
    """Absolute path or address of the document."""
    root: Path | None
    """Folder that relative links must stay in; None for a remote document, which cannot refer to local files."""
    rules: HostRules = NAMED_BY_OPERATOR
    """The hosts that requests for the document may reach."""

    @property
    def link_rules(self) -> HostRules:
        """The hosts that requests for its links may reach: a local document is the operator's, a remote one is not.

        The rules of a remote document must be settled.
        """
        return self.rules if self.root is not None else replace(self.rules, is_named=False)

    def settled(self) -> DocumentLocation:
        """The location with its own host among the rules of a remote document that the operator named; resolves it."""
        named = self.root is None and self.rules.is_named
        return replace(self, rules=self.rules.settled(self.address)) if named else self


def document_location(address: str, root: str | None = None, rules: HostRules | None = None) -> DocumentLocation:
    """The location of a document; its relative links must stay in `root`, else in its folder.

    `rules`: the hosts that requests for it may reach; None: those of a document that the operator named.
    """
    rules = rules or NAMED_BY_OPERATOR
    if "://" in address:
        return DocumentLocation(address=address, root=None, rules=rules)
    path = Path(address).expanduser().absolute()
    folder = path.parent if root is None else Path(root).expanduser().absolute()
    return DocumentLocation(address=str(path), root=folder, rules=rules)


def follow_link(href: object, document: DocumentLocation) -> DocumentLocation:
    """The location of a linked document; raises what `resolve_href` raises."""
    address = resolve_href(href, document)
    if "://" not in address and document.root is not None and _is_inside(Path(address), document.root):
        return DocumentLocation(address=address, root=document.root, rules=document.rules)
    return document_location(address, rules=document.link_rules)


def canonical_path(address: str) -> str:
    """An address, or a path without `..` and links; equal for all spellings of one file."""
    return address if "://" in address else str(Path(address).resolve())


def resolve_href(href: object, document: DocumentLocation) -> str:
    """The absolute path or address of a link in `document`; SceneError if it is invalid or not allowed."""
    if not isinstance(href, str) or not href.strip() or not href.isprintable():
        raise SceneError(f"its link {href!r} is not an address; correct the document")
    address = _resolved(href.strip(), document)
    resolve_location(address)
    return address


def _resolved(href: str, document: DocumentLocation) -> str:
    if "://" in href:
        return href
    if document.root is not None:
        return href if Path(href).is_absolute() else _local(href, document.address, document.root)
    return _remote(href, document.address)


def _local(href: str, address: str, root: Path) -> str:
    path = Path(address).parent / href
    try:
        inside = _is_inside(path, root)
    except (OSError, RuntimeError, ValueError) as error:
        raise SceneError(f"its link {href} cannot be resolved: {error}; correct the document") from error
    if not inside:
        raise SceneError(
            f"its link {href} leads out of {root}; name a catalog above both, write the absolute path if it is "
            "intended, or allow a higher folder with catalog.root"
        )
    return str(path)


def _is_inside(path: Path, root: Path) -> bool:
    return path.resolve().is_relative_to(root.resolve())


def _remote(href: str, address: str) -> str:
    """Join as URLs; `urljoin` supports `https` but not `s3`, whose addresses have the same form."""
    scheme, _, rest = address.partition("://")
    base = f"https://{rest}"
    joined = urljoin(base, href)
    if joined.startswith("https://") and urlsplit(joined).netloc != urlsplit(base).netloc:
        raise SceneError(f"its link {href} leads to another server without naming a scheme; write the whole address")
    if not joined.startswith("https://"):
        raise SceneError(f"its link {href} is not an address; a remote document cannot refer to a local file")
    return f"{scheme}://{joined.removeprefix('https://')}"
