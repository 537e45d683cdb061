"""TIFF directories, read without GDAL: a truncated file is recognised before tags that were cut off count as absent.

header ──▶ directory ──▶ values of its tags, blocks ──▶ next directory

All of them are offsets into the file, so a whole file is at least as long as the farthest of them. libtiff keeps the
values of all tags in memory, twice for some, and tags may share their bytes, so the sum of their sizes is bounded.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedSceneError, SceneError
from pipeline.storage.location import Location
from pipeline.storage.remote import read_range

ReadBytes = Callable[[int, int], bytes]
"""Offset and number of bytes -> these bytes, or fewer where the file ends."""

NEEDED_TAGS = frozenset(
    [
        *(258, 273, 279, 306, 320, 324, 325, 330, 338, 339, 347),  # of TIFF: sample types, blocks, date, palette
        *(33550, 33922, 34264, 34735, 34736, 34737, 50844),  # of GeoTIFF: transform, CRS, camera model
        *(42112, 42113),  # of GDAL: band names, scales, nodata
    ]
)
"""Tags whose values are read; other tags may refer to anything."""
MAX_TAG_BYTES = 2**29
"""Maximum size of the values of all tags of a file; a mosaic of 10^11 pixels in blocks of 64 x 64 has less."""
MAX_TAGS = 4096
"""A directory with more tags is left to GDAL, as are more than `MAX_DIRECTORIES`."""
REMOTE_PART_BYTES, MAX_REMOTE_PARTS = 2**18, 64
MAX_DIRECTORIES = 1024
"""Directories that are followed: the image, its mask and overviews, or further pages."""

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, SAMPLES, ROWS_PER_STRIP, PLANAR = 254, 256, 257, 258, 259, 277, 278, 284
STRIP_OFFSETS = 273
OFFSETS_AND_COUNTS = ((STRIP_OFFSETS, 279), (324, 325))
"""Tags of the offsets and sizes of strips, and of tiles."""
REDUCED, MASK = 1, 4
"""Bits of the tag `SUBFILE`: an overview, a mask."""
UNCOMPRESSED = 1
"""Value of the tag `COMPRESSION`."""

_Blocks = tuple[NDArray[np.unsignedinteger], NDArray[np.unsignedinteger]]
"""Offsets and sizes in bytes of stored blocks."""
_NOTHING: NDArray[np.unsignedinteger] = np.empty(0, "u8")
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}


def check_whole(place: Location) -> None:
    """Refuse a TIFF that is shorter than its directories say; other files pass.

    A remote file costs a request for each part of `REMOTE_PART_BYTES`; one with directories in too many parts passes.

    Raises:
        DamagedSceneError: it is truncated.
        SceneError: its tags need too much memory, or a remote file cannot be requested.
        TransientError: a remote file cannot be requested.
        OSError: a local file cannot be read.
    """
    try:
        (_check_remote if place.is_remote else _check_local)(place)
    except _LargeTagsError as error:
        raise SceneError(
            f"{place}: its tags hold {error} bytes of metadata, over {MAX_TAG_BYTES}, which would be kept in memory; "
            "write the scene again without them"
        ) from None


def _check_local(place: Location) -> None:
    with Path(place.gdal_path).open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)

        def read(offset: int, count: int) -> bytes:
            if offset >= size_bytes:
                return b""
            file.seek(offset)
            return file.read(min(count, size_bytes - offset))

        needed = tiff_extent(read, size_bytes)
    if needed > size_bytes:
        raise truncated_error(place, size_bytes, needed)


def _check_remote(place: Location) -> None:
    first = read_range(place, 0, REMOTE_PART_BYTES)
    if first is None or first.size_bytes is None:
        return
    size_bytes, parts = first.size_bytes, {0: first.content}

    def part(number: int) -> bytes:
        if number not in parts:
            if len(parts) == MAX_REMOTE_PARTS:
                raise _TooManyPartsError
            found = read_range(place, number * REMOTE_PART_BYTES, REMOTE_PART_BYTES)
            parts[number] = b"" if found is None else found.content
        return parts[number]

    def read(offset: int, count: int) -> bytes:
        end = min(offset + count, size_bytes)
        if offset >= end:
            return b""
        numbers = range(offset // REMOTE_PART_BYTES, (end - 1) // REMOTE_PART_BYTES + 1)
        start = numbers.start * REMOTE_PART_BYTES
        return b"".join(map(part, numbers))[offset - start : end - start]

    with suppress(_TooManyPartsError):
        needed = tiff_extent(read, size_bytes)
        if needed > size_bytes:
            raise truncated_error(place, size_bytes, needed)


class _LargeTagsError(Exception):
    """The values of the tags of a file have more than `MAX_TAG_BYTES`; the message is how many."""


class _TooManyPartsError(Exception):
    """A remote file has directories in more than `MAX_REMOTE_PARTS` parts."""


def truncated_error(place: Location, size_bytes: int, needed: int) -> DamagedSceneError:
    """The error for a file of `size_bytes` whose directories refer to bytes up to `needed`."""
    return DamagedSceneError(
        f"{place}: truncated: it has {size_bytes:,} bytes, but its directory refers to bytes up to {needed:,}; "
        "fetch or write the file again"
    )


def tiff_extent(read: ReadBytes, size_bytes: int) -> int:
    """One past the last byte that a TIFF refers to as far as it can be read; 0 for any other file.

    `tiff_extent(read, size) <= size` holds for a whole file. Overviews and further pages count with their directories,
    the image and its masks with their blocks too. A block that runs into another has a damaged size and does not count.
    """
    head = read(0, 16)
    form = _Form.of(head)
    if form is None:
        return 0
    extent, seen, offset = form.header_bytes, set[int](), form.first(head.ljust(16, b"\0"))
    tag_bytes = 0
    blocks: list[_Blocks] = []
    overviews: list[_Blocks] = []
    while offset and offset not in seen and len(seen) < MAX_DIRECTORIES:
        is_image = not seen
        seen.add(offset)
        directory = _read_directory(read, form, offset, size_bytes)
        tag_bytes += directory.tag_bytes
        if tag_bytes > MAX_TAG_BYTES:
            raise _LargeTagsError(tag_bytes)
        extent = max(extent, directory.extent)
        if extent > size_bytes:
            return extent
        is_read = is_image or directory.integer(SUBFILE, 0) & (REDUCED | MASK) == MASK
        (blocks if is_read else overviews).append(_stored_blocks(directory))
        offset = directory.next
    return max(extent, _end_of_blocks(blocks, [*seen, *(start for starts, _ in overviews for start in starts)]))


@dataclass(frozen=True, kw_only=True)
class _Form:
    """Byte order and the sizes of a classic TIFF or BigTIFF."""

    order: str
    """`<` or `>`."""
    count: str
    """struct code of the number of tags."""
    word: str
    """struct code of an offset."""

    @classmethod
    def of(cls, head: bytes) -> _Form | None:
        order = {b"II": "<", b"MM": ">"}.get(head[:2])
        if order is None or len(head) < 4:
            return None
        version = struct.unpack_from(f"{order}H", head, 2)[0]
        return {42: cls(order=order, count="H", word="I"), 43: cls(order=order, count="Q", word="Q")}.get(version)

    @property
    def header_bytes(self) -> int:
        return 8 if self.word == "I" else 16

    def first(self, head: bytes) -> int:
        """Offset of the first directory."""
        return int(struct.unpack_from(self.order + self.word, head, self.header_bytes // 2)[0])


@dataclass(frozen=True, kw_only=True)
class _Directory:
    """The tags of one directory of a TIFF that could be read."""

    values: Mapping[int, NDArray[np.unsignedinteger]]
    """Tag -> its integers."""
    extent: int
    """One past the last byte of the directory and the values of its tags."""
    next: int
    """Offset of the next directory, 0 after the last."""
    tag_bytes: int = 0
    """Bytes of the values that lie outside the directory, as libtiff reads them."""

    def integer(self, tag: int, default: int) -> int:
        found = self.values.get(tag)
        return default if found is None or not len(found) else int(found[0])


def _read_directory(read: ReadBytes, form: _Form, offset: int, size_bytes: int) -> _Directory:
    head = f"{form.order}{form.count}"
    start = offset + struct.calcsize(head)
    table = read(offset, start - offset)
    if len(table) < start - offset:
        return _Directory(values={}, extent=start, next=0)
    number = struct.unpack(head, table)[0]
    if number > MAX_TAGS:
        return _Directory(values={}, extent=start, next=0)
    entry = struct.Struct(f"{form.order}HH{form.word}{struct.calcsize(form.word)}s")
    end = start + number * entry.size + struct.calcsize(form.word)
    table = read(start, end - start)
    if len(table) < end - start:
        return _Directory(values={}, extent=end, next=0)

    values, extent, tag_bytes = {}, end, 0
    for tag, kind, count, inline in entry.iter_unpack(table[: number * entry.size]):
        size = _SIZES.get(kind, 0) * count
        at = struct.unpack(form.order + form.word, inline)[0]
        content = inline[:size]
        if size > len(inline):
            # libtiff reads no value that ends behind the file.
            tag_bytes += size if at + size <= size_bytes else 0
            if tag not in NEEDED_TAGS:
                continue
            extent = max(extent, at + size)
            if tag_bytes > MAX_TAG_BYTES:
                break
            content = read(at, size) if kind in _INTEGERS else b""
        if kind in _INTEGERS and len(content) == size:
            values[tag] = np.frombuffer(content, form.order + _INTEGERS[kind])
    following = struct.unpack(form.order + form.word, table[number * entry.size :])[0]
    return _Directory(values=values, extent=extent, next=following, tag_bytes=tag_bytes)


def _stored_blocks(directory: _Directory) -> _Blocks:
    """Offsets and sizes of the blocks of a directory that are stored; sparse ones have neither."""
    for offsets_tag, counts_tag in OFFSETS_AND_COUNTS:
        offsets, counts = (directory.values.get(tag, _NOTHING).astype("u8") for tag in (offsets_tag, counts_tag))
        if len(offsets) != len(counts) or not len(offsets):
            continue
        if offsets_tag == STRIP_OFFSETS and directory.integer(COMPRESSION, UNCOMPRESSED) == UNCOMPRESSED:
            counts = np.minimum(counts, _strip_bytes(directory, len(counts)))
        stored = (offsets > 0) & (counts > 0)
        return offsets[stored], counts[stored]
    return _NOTHING, _NOTHING


def _end_of_blocks(blocks: Sequence[_Blocks], others: Sequence[int]) -> int:
    """One past the last byte of blocks that do not run into the next one, or into anything at the offsets `others`."""
    offsets, counts = (np.concatenate(each) for each in zip(*blocks, strict=True)) if blocks else (_NOTHING, _NOTHING)
    starts = np.unique(np.concatenate([offsets, np.array(others, "u8"), [np.iinfo("u8").max]]))
    following = starts[np.searchsorted(starts, offsets, side="right").clip(max=len(starts) - 1)]
    inside = counts <= following - offsets
    return int((offsets + counts)[inside].max(initial=0))


def _strip_bytes(directory: _Directory, strips: int) -> NDArray[np.unsignedinteger]:
    """Bytes of each uncompressed strip that are read; some writers count a whole strip for a lower last one."""
    width, height = directory.integer(WIDTH, 0), directory.integer(HEIGHT, 0)
    rows = min(directory.integer(ROWS_PER_STRIP, height), height)
    planes = strips if rows == 0 else max(1, strips // -(-height // rows))
    samples = directory.integer(SAMPLES, 1) if directory.integer(PLANAR, 1) == 1 else 1
    row_bytes = -(-width * samples * directory.integer(BITS, 1) // 8)
    first = np.arange(strips, dtype="u8") % max(1, strips // planes) * np.uint64(rows)
    return np.minimum(np.uint64(rows), np.uint64(height) - np.minimum(first, np.uint64(height))) * np.uint64(row_bytes)
