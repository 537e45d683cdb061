"""How far a TIFF reaches: its directories always count, blocks only those of the image and of its masks."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from itertools import pairwise

import pytest

from pipeline.storage.truncation import tiff_extent

OVERVIEW, PAGE, MASK, MASK_OF_OVERVIEW = 1, 2, 4, 5
"""Values of the tag that says what a directory is."""
BLOCK = 10**6
"""Bytes of each image, in one strip."""


def tiff(
    kinds: list[int], *, order: str = "<", big: bool = False, changes: Mapping[int, int] | None = None
) -> tuple[bytes, list[int]]:
    """A TIFF without its pixels: a directory of each kind; and where each image ends. Tags of the first may change."""
    word, count, code = ("Q", "Q", 16) if big else ("I", "H", 4)
    head = struct.pack(f"{order}2sH", b"II" if order == "<" else b"MM", 43 if big else 42)
    head += struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8)
    number, entry = 7, 4 + 2 * struct.calcsize(word)
    size = struct.calcsize(order + count) + number * entry + struct.calcsize(word)
    ends = [len(head) + size * len(kinds) + BLOCK * (place + 1) for place in range(len(kinds))]
    parts = [head]
    for place, (kind, end) in enumerate(zip(kinds, ends, strict=True)):
        values = {254: kind, 256: 1000, 257: 1000, 258: 8, 259: 1, 273: end - BLOCK, 279: BLOCK}
        values |= changes or {} if place == 0 else {}
        following = len(head) + size * (place + 1) if place + 1 < len(kinds) else 0
        parts.append(struct.pack(order + count, number))
        for tag, value in values.items():
            inline = struct.pack(order + word, value)
            parts.append(struct.pack(f"{order}HH{word}", tag, code, 1) + inline)
        parts.append(struct.pack(order + word, following))
    return b"".join(parts), ends


def extent_of(content: bytes, size_bytes: int = 10**9) -> int:
    return tiff_extent(lambda offset, count: content[offset : offset + count], size_bytes)


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_an_image_reaches_to_the_end_of_its_last_block(order: str, big: bool) -> None:
    content, ends = tiff([0], order=order, big=big)
    assert extent_of(content) == ends[0]
    content, ends = tiff([0, MASK], order=order, big=big)
    assert extent_of(content) == ends[1]


@pytest.mark.parametrize("kind", [0, OVERVIEW, PAGE, MASK_OF_OVERVIEW])
def test_blocks_of_overviews_and_of_further_pages_are_not_read_so_they_do_not_count(kind: int) -> None:
    content, ends = tiff([0, kind])
    assert extent_of(content) == ends[0]


@pytest.mark.parametrize("big", [False, True])
def test_a_file_that_ends_in_a_directory_is_shorter_than_it_says(big: bool) -> None:
    content, _ = tiff([0, MASK, OVERVIEW], big=big)
    for size in range(16, len(content)):
        assert extent_of(content[:size], size) > size


def test_what_is_no_tiff_has_no_extent() -> None:
    for content in (b"", b"II", b"II\x2a", b"\x89PNG\r\n\x1a\n" + bytes(20), b"II\x29\x00" + bytes(20)):
        assert extent_of(content, len(content)) == 0


def test_images_follow_each_other() -> None:
    """The files of these tests are what they say."""
    content, ends = tiff([0, MASK, OVERVIEW])
    assert [after - before for before, after in pairwise(ends)] == [BLOCK, BLOCK]
    assert len(content) == ends[0] - BLOCK


@pytest.mark.parametrize("kind", [MASK, OVERVIEW])
def test_a_block_that_runs_into_another_has_a_damaged_size_and_does_not_count(kind: int) -> None:
    compressed = {259: 8, 279: BLOCK + 1}
    content, ends = tiff([0, kind], changes=compressed)
    assert extent_of(content) == (ends[1] if kind == MASK else len(content))
    content, ends = tiff([0], changes=compressed)
    assert extent_of(content) == ends[0] + 1


@pytest.mark.parametrize("changes", [{273: 0}, {279: 0}, {273: 0, 279: 0}, {273: 10**8, 279: 0}], ids=str)
def test_a_block_without_an_offset_or_bytes_is_not_stored(changes: dict[int, int]) -> None:
    content, _ = tiff([0], changes=changes)
    assert extent_of(content) == len(content)


@pytest.mark.parametrize("counted", [BLOCK + 1, 2 * BLOCK])
def test_a_strip_without_compression_is_as_long_as_its_rows(counted: int) -> None:
    content, ends = tiff([0], changes={279: counted})
    assert extent_of(content) == ends[0]
