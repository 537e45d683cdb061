"""Mutations of files for fuzzing: bytes, JSON documents and TIFF directories, all chosen by one generator."""

from __future__ import annotations

import copy
import json
import struct
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
"""Whole numbers at which readers overflow."""
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 0.5, -0.0, 1e308, -1e308, 5e-324, 10**20, 10**400, float("nan"), float("inf"), 2**31,
    "", " ", "x" * 300, "\x1b[2J\n", "\u202e", "\ud800", "\0", "../../up", "/etc/passwd", "file:///etc/passwd", "a.tif",
"NaN", "1e400", "é" * 150, [], {}, [[]], [None], {"": None}, [1, 2, 3],
    [10**9] * 4, [-1, 0], [["a"]] * 3, {"type": "Point", "coordinates": [0, 0]}, {"href": "a.tif"}, "2026-13-45",
    "9999999-01-01T00:00:00Z", "EPSG:0", "EPSG:4326", "P1Y", "0" * 400,
)  # fmt: skip
"""What replaces a value of a JSON document."""
TEXTS = (
    "&a ",
    "*a",
    "!!int ",
    "<<: ",
    "[",
    "{",
    "- ",
    ": ",
    "? ",
    "|",
    ">",
    "'",
    '"',
    "#",
    "---\n",
    "\t",
    "\n",
    "0x",
    "\\",
)
"""What YAML, CSV and JSON take for syntax."""
TYPES = (0, 1, 2, 3, 4, 5, 11, 12, 13, 16, 18, 99)
"""Numbers of types in a TIFF, and some that are none."""
TAGS = (
    *(0, 65_535, 254, 256, 257, 258, 259, 262, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 325, 330, 338),
    *(339, 347, 33_550, 33_922, 34_264, 34_735, 34_736, 34_737, 42_112, 42_113, 50_844),
)
"""Tags of TIFF, GeoTIFF and GDAL."""


MAX_BYTES = 200_000
"""Bytes of a mutated document; larger ones only take longer."""


def mutate_bytes(random: Random, content: bytes, edits: int = 4) -> bytes:
    """Up to `edits` changes anywhere: flipped, set, inserted, removed, repeated and swapped bytes."""
    data = bytearray(content)
    for _ in range(random.randint(1, edits)):
        at = random.randrange(len(data) + 1)
        span = random.choice((1, 1, 2, 4, 8, 40))
        kind = random.randrange(7)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at : at + span] = bytes(random.randrange(256) for _ in range(span))
        elif kind == 2:
            number, order = random.choice(NUMBERS), random.choice(("little", "big"))
            size = random.choice((1, 2, 4, 8))
            data[at : at + size] = (number % 256**size).to_bytes(size, order)  # type: ignore[arg-type]
        elif kind == 3:
            del data[at : at + span * random.choice((1, 1, 10))]
        elif kind == 4:
            data[at:at] = data[at : at + span] * random.choice((1, 2, 30))
        elif kind == 5:
            data[at:at] = random.choice(TEXTS).encode()
        else:
            data = data[:at] if random.randrange(4) == 0 else data
    return bytes(data)


def mutate_json(random: Random, document: Any, edits: int = 3) -> Any:
    """A copy with up to `edits` values replaced, removed, doubled, renamed or wrapped."""
    document = [copy.deepcopy(document)]
    for _ in range(random.randint(1, edits)):
        parent, key = random.choice([*_places(document)])
        kind = random.randrange(10)
        if kind < 5:
            parent[key] = copy.deepcopy(random.choice(VALUES))
        elif kind == 5:
            other, other_key = random.choice([*_places(document)])
            parent[key] = copy.deepcopy(other[other_key])
        elif kind == 6 and parent is not document:
            del parent[key]
        elif kind == 7 and isinstance(parent, dict):
            parent[random.choice(("", "type", "href", "__proto__", "x" * 200, "\x1b", str(key).upper()))] = parent[key]
        elif kind == 8:
            for _ in range(random.choice((1, 3, 60, 300))):
                parent[key] = random.choice(([parent[key]], {"a": parent[key]}))
        elif isinstance(parent, list) and parent is not document:
            parent.extend(parent[:1] * random.choice((1, 5, 300)))
    return document[0]


def dump_json(random: Random, document: Any) -> bytes:
    """A document as JSON, now and then with a byte that is none."""
    content = json.dumps(document).encode()[:MAX_BYTES]
    return mutate_bytes(random, content, 2) if random.randrange(8) == 0 else content


def mutate_tiff(random: Random, content: bytes, edits: int = 3) -> bytes:
    """A TIFF with up to `edits` changed fields of its directories, or changed bytes."""
    data = bytearray(content)
    entries = [*_entries(content)]
    if not entries or random.randrange(4) == 0:
        return mutate_bytes(random, content)
    order, big = ("<" if content[:2] == b"II" else ">"), content[2:4] in (b"+\0", b"\0+")
    for _ in range(random.randint(1, edits)):
        at = random.choice(entries)
        field = random.randrange(4)
        if field == 0:
            struct.pack_into(f"{order}H", data, at, random.choice(TAGS))
        elif field == 1:
            struct.pack_into(f"{order}H", data, at + 2, random.choice(TYPES))
        else:
            size, where = (8, at + 4) if big else (4, at + 4)
            where += size if field == 3 else 0
            struct.pack_into(f"{order}{'Q' if big else 'I'}", data, where, random.choice(NUMBERS) % 256**size)
    return mutate_bytes(random, bytes(data), 1) if random.randrange(4) == 0 else bytes(data)


def _entries(content: bytes) -> list[int]:
    """Offsets of the entries of all directories of a TIFF."""
    order, big = ("<" if content[:2] == b"II" else ">"), content[2:4] in (b"+\0", b"\0+")
    found, offset = list[int](), struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, 8 if big else 4)[0]
    for _ in range(20):
        if not 0 < offset < len(content) - 8:
            break
        count = struct.unpack_from(f"{order}{'Q' if big else 'H'}", content, offset)[0]
        first, step = offset + (8 if big else 2), 20 if big else 12
        end = first + count * step
        if count > 100 or end + 8 > len(content):
            break
        found += range(first, end, step)
        offset = struct.unpack_from(f"{order}{'Q' if big else 'I'}", content, end)[0]
    return found


def _places(value: Any) -> list[tuple[Any, Any]]:
    """`(container, key)` of every value inside."""
    found, waiting = [], [value]
    while waiting:
        each = waiting.pop()
        keys = [*each] if isinstance(each, dict) else range(len(each))
        found += [(each, key) for key in keys]
        waiting += [each[key] for key in keys if isinstance(each[key], dict | list) and each[key]]
    return found
