"""YAML reader for settings and model cards: text, numbers, booleans, null, lists and maps, all bounded.

YAML's aliases let a file of a kilobyte stand for terabytes, its tags name constructors, and its numbers may have a
million digits; so values are counted with those that an alias stands for, and tags are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.text.escapes import quoted

MAX_YAML_BYTES = 2**20
"""Bytes of a file; the settings file with every key has 10 kB."""
MAX_VALUES = 20_000
"""Texts, numbers, lists and maps of a document; keys count too."""
MAX_DEPTH = 50
"""Lists and maps inside each other."""
MAX_NUMBER_LENGTH = 40
"""Characters of a number; 64 bits take 20 digits."""
_TEXT = "tag:yaml.org,2002:str"
_MERGE = "tag:yaml.org,2002:merge"
_DROPPED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
"""Tags without a meaning for settings: dates stay text, and `=` is one."""


def read_yaml_file(path: Path) -> object:
    """The value of a YAML or JSON file in UTF-8.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is larger than 1 MiB, or see `read_yaml`.
    """
    with path.open("rb") as file:
        content = file.read(MAX_YAML_BYTES + 1)
    if len(content) > MAX_YAML_BYTES:
        raise ValueError(f"over {MAX_YAML_BYTES} bytes, which no settings and no model card need")
    return read_yaml(content.decode("utf-8"))


def read_yaml(text: str) -> object:
    """The value of a YAML text; dates stay text.

    Raises:
        ValueError: no YAML, a key twice, a tag, or past a bound; the message says which and where.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(f"invalid YAML: {' '.join(str(error).split())}") from error


class _PlainLoader(yaml.SafeLoader):
    """YAML's safe loader with bounds; an alias counts as all the values that it stands for."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._values = self._depth = 0
        self._values_of: dict[str | None, int] = {}
        """Anchor -> number of values that it stands for, once it is complete."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse tags, and nesting and numbers of values past the bounds."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in self.anchors and event.anchor not in self._values_of:
                raise _refusal(f"the alias {quoted(event.anchor, 50)} stands for a value that contains it", event)
            self._count(self._values_of.get(event.anchor, 0), event)
            return super().compose_node(parent, index)
        if event.tag is not None:
            raise _refusal(f"the tag {quoted(event.tag, 50)} is not accepted; put texts in quotes", event)
        if self._depth == MAX_DEPTH:
            raise _refusal(f"lists and maps are nested over {MAX_DEPTH} deep", event)
        before = self._values
        self._count(1, event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if event.anchor is not None:
            self._values_of[event.anchor] = self._values - before
        return node

    def _count(self, values: int, event: yaml.Event) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise _refusal(f"the document holds over {MAX_VALUES} values, with those that aliases stand for", event)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Refuse a key that is there twice: YAML would silently take the second value."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in seen:
                    raise _refusal(f"the key {quoted(key.value, 50)} is there twice", node)
                seen.add((key.tag, key.value))
        return node

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Refuse numbers of very many digits, and what is no text."""
        value = super().construct_scalar(node)
        if node.tag != _TEXT and len(value) > MAX_NUMBER_LENGTH:
            raise _refusal(f"a number of {len(value)} characters, over {MAX_NUMBER_LENGTH}", node)
        if re.search("[\0\ud800-\udfff]", value):
            raise _refusal("a text with NUL or half of a surrogate pair, which is no character", node)
        return value


_PlainLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _DROPPED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _refusal(reason: str, place: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, reason, place.start_mark)
