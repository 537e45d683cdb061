"""Cloud-Optimized GeoTIFF from tiled TIFFs, by moving compressed blocks: no pixel is encoded twice.

GDAL writes every block and every tag; this module puts them in the order of a COG: all directories
first, largest level first, then the blocks, smallest level first, so that the blocks of the full
size, which are known first, come last. TIFF 6.0, BigTIFF, and the layout that GDAL's COG driver
documents (https://gdal.org/drivers/raster/cog.html, "Header ghost area" and "Tile data leader").
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

OFFSETS, BYTE_COUNTS = 324, 325
"""TIFF tags: offsets and byte counts of blocks."""
SUBFILE_TYPE = 254
"""TIFF tag: 1 marks an overview."""
LONG, LONG8 = 4, 16
"""TIFF types: unsigned whole numbers of 4 and 8 bytes."""
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
MAX_CLASSIC_BYTES = 2**32 - 1
"""Bytes that the four-byte offsets of a classic TIFF reach."""

_LAYOUT = (
    b"LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    b"BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
)
_GHOST = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n" % len(_LAYOUT) + _LAYOUT
_FRAME = 4
"""Bytes before each block (its length) and after it (its last bytes again), so that readers fetch a block in one go."""


@dataclass(frozen=True, kw_only=True)
class TiffPart:
    """A tiled TIFF whose blocks are a rectangle of a level's blocks."""

    path: Path
    """The file."""
    row: int
    """Block row of its first block in the level."""
    col: int
    """Block column of it."""


@dataclass(frozen=True, kw_only=True)
class CogLevel:
    """One resolution of a COG."""

    template: Path
    """A TIFF with the level's size and tags; its blocks are not read."""
    parts: tuple[TiffPart, ...]
    """The TIFFs with the blocks; together they hold each block once."""


@dataclass(frozen=True, kw_only=True)
class _Field:
    """One tag of a TIFF directory."""

    kind: int
    """TIFF type."""
    count: int
    """How many values."""
    data: bytes
    """The values, little-endian."""


@dataclass(frozen=True, kw_only=True)
class _Format:
    """The differences between classic TIFF and BigTIFF."""

    header: bytes
    """First bytes of the file, up to the offset of the first directory."""
    pointer: str
    """`struct` format of an offset, of a count of values."""
    entries: str
    """`struct` format of the count of entries."""
    offset_kind: int
    """TIFF type of block offsets."""

    @property
    def inline(self) -> int:
        """Bytes of values that fit into an entry itself."""
        return struct.calcsize(self.pointer)


_CLASSIC = _Format(header=b"II*\0", pointer="<I", entries="<H", offset_kind=LONG)
_BIG = _Format(header=b"II+\0\x08\0\0\0", pointer="<Q", entries="<Q", offset_kind=LONG8)


@dataclass(frozen=True, kw_only=True)
class _Blocks:
    """The blocks of a level, row by row."""

    source: NDArray[np.int64]
    """`(blocks,)` index of the part that holds each."""
    offset: NDArray[np.int64]
    """`(blocks,)` first byte in that part."""
    size: NDArray[np.int64]
    """`(blocks,)` bytes, at least 1."""

    @property
    def framed(self) -> NDArray[np.int64]:
        """`(blocks,)` bytes including leader and trailer."""
        return self.size + 2 * _FRAME


def write_levels(target: Path, levels: Sequence[CogLevel], *, max_classic_bytes: int = MAX_CLASSIC_BYTES) -> None:
    """Write a COG of levels, the full size first and each half of the one before.

    Args:
        target: the COG; a BigTIFF when it needs to be.
        levels: all of one pixel type and one compression.
        max_classic_bytes: bytes above which a BigTIFF is written.
    """
    fields = [_read_fields(level.template) for level in levels]
    blocks = [_find_blocks(level, each) for level, each in zip(levels, fields, strict=True)]
    form = _CLASSIC if _total(fields, blocks, _CLASSIC) <= max_classic_bytes else _BIG
    with target.open("wb") as out:
        out.write(_head(fields, blocks, form))
        # Blocks of the smallest overview come first; leader and trailer as GDAL's COG driver writes them.
        for level, each in zip(reversed(levels), reversed(blocks), strict=True):
            for block in _read_blocks(level, each):
                out.write(struct.pack("<I", len(block)))
                out.write(block)
                out.write(block[-_FRAME:])


def check_blocks(path: Path) -> None:
    """Check that a tiled TIFF holds all of its blocks: some may be missing after the disk was full."""
    fields = _read_fields(path)
    offset, size = _values(fields[OFFSETS]), _values(fields[BYTE_COUNTS])
    if not size.all() or (offset + size).max() > path.stat().st_size:
        raise OSError(f"{path} lacks blocks")


def _total(fields: Sequence[Mapping[int, _Field]], blocks: Sequence[_Blocks], form: _Format) -> int:
    """Bytes of the file."""
    return len(_head(fields, blocks, form)) + sum(int(each.framed.sum()) for each in blocks)


def _head(fields: Sequence[Mapping[int, _Field]], blocks: Sequence[_Blocks], form: _Format) -> bytes:
    """Everything before the first block. Its length does not depend on the offsets in it, so it is laid out twice."""
    start = len(_lay_out(fields, blocks, [np.zeros_like(each.size) for each in blocks], form))
    offsets: list[NDArray[np.int64]] = []
    for each in reversed(blocks):
        offsets.insert(0, start + np.cumsum(each.framed) - each.framed + _FRAME)
        start += int(each.framed.sum())
    return _lay_out(fields, blocks, offsets, form)


def _lay_out(
    fields: Sequence[Mapping[int, _Field]],
    blocks: Sequence[_Blocks],
    offsets: Sequence[NDArray[np.int64]],
    form: _Format,
) -> bytes:
    # Directories begin at multiples of 16 bytes.
    first = len(form.header) + form.inline + len(_GHOST)
    first += -first % 16
    head = bytearray(form.header + struct.pack(form.pointer, first) + _GHOST)
    head += bytes(first - len(head))
    for index, (tags, each, offset) in enumerate(zip(fields, blocks, offsets, strict=True)):
        entries = {
            **tags,
            SUBFILE_TYPE: _field(LONG, np.array([min(index, 1)])),
            OFFSETS: _field(form.offset_kind, offset),
            BYTE_COUNTS: _field(LONG, each.size),
        }
        head += _directory(entries, len(head), form, last=index == len(fields) - 1)
    return bytes(head)


def _directory(tags: Mapping[int, _Field], start: int, form: _Format, *, last: bool) -> bytes:
    """A directory that begins at byte `start`, its values behind it; the next one follows at once."""
    entry = 4 + 2 * form.inline
    beyond = start + struct.calcsize(form.entries) + len(tags) * entry + form.inline
    table, values = bytearray(struct.pack(form.entries, len(tags))), bytearray()
    for number, field in sorted(tags.items()):
        table += struct.pack("<HH", number, field.kind) + struct.pack(form.pointer, field.count)
        # TIFF 6.0: values that fit are stored in the entry itself, others behind the directory.
        if len(field.data) <= form.inline:
            table += field.data.ljust(form.inline, b"\0")
        else:
            table += struct.pack(form.pointer, beyond + len(values))
            values += field.data + bytes(-len(field.data) % 16)
    values += bytes(-(beyond + len(values)) % 16)
    return bytes(table + struct.pack(form.pointer, 0 if last else beyond + len(values)) + values)


def _field(kind: int, values: NDArray[np.int64]) -> _Field:
    return _Field(kind=kind, count=len(values), data=values.astype("<u8" if kind == LONG8 else "<u4").tobytes())


def _read_fields(path: Path) -> dict[int, _Field]:
    """The first directory of a little-endian TIFF or BigTIFF."""
    with path.open("rb") as file:
        form = _BIG if _read(file, 4) == _BIG.header[:4] else _CLASSIC
        (first,) = struct.unpack(form.pointer, _read(file, form.inline, at=len(form.header)))
        size = struct.calcsize(form.entries)
        (count,) = struct.unpack(form.entries, _read(file, size, at=first))
        table = _read(file, count * (4 + 2 * form.inline))
        fields = {}
        for number, kind, values, place in struct.iter_unpack(f"<HH{2 * form.pointer[1:]}", table):
            size = TYPE_BYTES[kind] * values
            inline = struct.pack(form.pointer, place)[:size]
            data = inline if size <= form.inline else _read(file, size, at=place)
            fields[number] = _Field(kind=kind, count=values, data=data)
    return fields


def _read(file: BinaryIO, size: int, *, at: int | None = None) -> bytes:
    """Exactly `size` bytes; fewer may be there after the disk was full."""
    if at is not None:
        file.seek(at)
    data = file.read(size)
    if len(data) < size:
        raise OSError(f"{file.name} ends too early")
    return data


def _find_blocks(level: CogLevel, fields: Mapping[int, _Field]) -> _Blocks:
    rows, cols = _block_shape(fields)
    source, offset, size = (np.zeros((rows, cols), np.int64) for _ in range(3))
    for index, part in enumerate(level.parts):
        own = _read_fields(part.path)
        shape = _block_shape(own)
        place = slice(part.row, part.row + shape[0]), slice(part.col, part.col + shape[1])
        source[place] = index
        offset[place] = _values(own[OFFSETS]).reshape(shape)
        size[place] = _values(own[BYTE_COUNTS]).reshape(shape)
    assert size.all(), f"{level.template}: its parts leave blocks out"
    return _Blocks(source=source.ravel(), offset=offset.ravel(), size=size.ravel())


def _block_shape(fields: Mapping[int, _Field]) -> tuple[int, int]:
    """Blocks down and across; bands are interleaved by pixel, so a block holds all of them."""
    width, height, block_width, block_height = (int(_values(fields[tag])[0]) for tag in (256, 257, 322, 323))
    return -(-height // block_height), -(-width // block_width)


def _values(field: _Field) -> NDArray[np.int64]:
    return np.frombuffer(field.data, f"<u{TYPE_BYTES[field.kind]}").astype(np.int64)


def _read_blocks(level: CogLevel, blocks: _Blocks) -> Iterator[bytes]:
    files = [part.path.open("rb") for part in level.parts]
    try:
        for source, offset, size in zip(blocks.source, blocks.offset, blocks.size, strict=True):
            yield _read(files[source], int(size), at=int(offset))
    finally:
        for file in files:
            file.close()
