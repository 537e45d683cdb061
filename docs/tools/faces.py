"""Griffe extension: which names a package exports, and how docstrings are laid out, for the generated API pages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import griffe

EXAMPLE = re.compile(r"(?:^>>> .*\n?)(?:^\S.*\n?|^ +\S.*\n?)*", re.MULTILINE)
"""A doctest: from its first prompt to the next empty line."""


class Faces(griffe.Extension):
    """Take the names of each `__init__.pyi` for `__all__`, as `lazy_loader` does, and doctests for blocks of code."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Adapt the loaded package in place."""
        for module in filter(lambda each: each.is_init_module, [pkg, *pkg.modules.values()]):
            imported = [name for name, member in module.members.items() if member.is_alias]
            module.exports = [name for name in imported if module[name].target_path.startswith(pkg.path)] or None
        for each in _defined_in(pkg):
            if each.docstring:
                each.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```\n", each.docstring.value)


def _defined_in(parent: griffe.Object) -> Iterator[griffe.Object]:
    """Everything that the source of `parent` defines."""
    for member in parent.members.values():
        if isinstance(member, griffe.Object):
            yield member
            yield from _defined_in(member)
