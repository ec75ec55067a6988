"""Arrival index of a segment: when each tag of the file arrived. The file `<segment>.arrivals` in the same folder.

Format, big-endian: a header of 16 bytes (`RARR`, version u32, base time u64 in Unix ms), then 8 bytes for each tag, in file
order: arrival u32 in ms since the base, tag type u8, payload size u24. 8 bytes a packet are 0.6 KB/s for 25 pictures and 43
packets of sound.

Rules:
- The base is the capture's clock, which is the database's. Arrivals are a monotonic span on top of it, so a clock step moves
  nothing.
- The tag is written before its record. After a crash the index lacks some of the last tags, and never describes a tag that the
  segment lacks, except where the file system lost written bytes.
- The sizes give the offset of every tag, so that they hold even behind damaged bytes of the segment.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from machine import segments
from media import flv

VERSION = 1
RECORD_BYTES = 8
_MAGIC = b"RARR"
_HEADER = struct.Struct(">4sIQ")
_RECORD = struct.Struct(">II")
_MOST_RECORDS = 1 << 16
_LATEST_MS = (1 << 32) - 1
SMALL_BYTES = 255


class Arrival(NamedTuple):
    """One tag: where it begins in the segment, its kind and payload size, and when it arrived (Unix ms)."""

    offset: int
    kind: int
    size: int
    arrival_ms: int


def path_of(segment: Path) -> Path:
    """The path of a segment's arrival index."""
    return segment.with_name(segment.name + segments.ARRIVALS_SUFFIX)


def offset_of(record: int) -> int:
    """Where the record with this number is in an index."""
    return _HEADER.size + record * RECORD_BYTES


def header(base_ms: int) -> bytes:
    """The first bytes of an index."""
    return _HEADER.pack(_MAGIC, VERSION, base_ms)


def record(since_base_ms: int, kind: int, size: int) -> bytes:
    """The record of one tag. The arrival stays at its largest value after 49 days."""
    return _RECORD.pack(min(since_base_ms, _LATEST_MS), kind << 24 | size)


class ArrivalReader:
    """Reads an index, also while it grows: call `read` again later. `base_ms` is None until the header is read.

    A torn last record is read once it is whole. A damaged header, or the version of a newer writer, means no index. A damaged
    record ends the index, because the offsets behind it are unknown.
    """

    def __init__(self, segment: Path, record: int = 0, offset: int = flv.FIRST_TAG_BYTES) -> None:
        """Open the index of `segment`, at the record with this number, whose tag begins at `offset`. Raises OSError;
        FileNotFoundError if the capture wrote none."""
        self._file = os.open(path_of(segment), os.O_RDONLY | os.O_CLOEXEC)
        self._position = 0
        self._first = offset_of(record)
        self._offset = offset
        self.base_ms: int | None = None
        self.damaged = False

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def read(self) -> list[Arrival]:
        """The next records, at most 65,536. Empty if none is whole yet, or if the rest cannot be read."""
        if self.base_ms is None and not self._read_header():
            return []
        data = b"" if self.damaged else os.pread(self._file, _MOST_RECORDS * RECORD_BYTES, self._position)
        found: list[Arrival] = []
        base_ms, offset = self.base_ms or 0, self._offset
        for since_ms, word in _RECORD.iter_unpack(data[: len(data) // RECORD_BYTES * RECORD_BYTES]):
            kind, size = word >> 24, word & 0xFFFFFF
            if kind not in flv.KINDS:
                self.damaged = True
                break
            found.append(Arrival(offset, kind, size, base_ms + since_ms))
            offset += flv.TAG_OVERHEAD_BYTES + size
        self._offset = offset
        self._position += len(found) * RECORD_BYTES
        return found

    def _read_header(self) -> bool:
        data = os.pread(self._file, _HEADER.size, 0)
        if self.damaged or len(data) < _HEADER.size:
            return False
        magic, version, base_ms = _HEADER.unpack(data)
        if (magic, version) != (_MAGIC, VERSION):
            self.damaged = True
            return False
        self.base_ms, self._position = base_ms, self._first
        return True


def read(segment: Path) -> Iterator[Arrival]:
    """All records of a segment's index; none without an index, or if its header is damaged. Raises OSError if it cannot be
    read."""
    try:
        reader = ArrivalReader(segment)
    except FileNotFoundError:
        return
    try:
        while found := reader.read():
            yield from found
    finally:
        reader.close()


def small_tags(segment: Path, kind: int, before: int) -> Iterator[int]:
    """The offsets of the tags of one kind that have at most SMALL_BYTES and begin before an offset, the newest first. Sequence
    headers are among them. None without an index, or where a bounded spool has released its beginning. A day's index is searched
    in a fraction of a second. Raises OSError."""
    try:
        data = path_of(segment).read_bytes()
    except FileNotFoundError:
        return
    if data[: _HEADER.size - 8] != _HEADER.pack(_MAGIC, VERSION, 0)[:-8]:
        return
    records = data[_HEADER.size : len(data) - (len(data) - _HEADER.size) % RECORD_BYTES]
    words = array("I", records)
    if sys.byteorder == "little":
        words.byteswap()
    sizes, kinds = words[1::2], records[4::RECORD_BYTES]
    if 0 in kinds:  # released: the offsets are not known
        return
    found = [at.start() // RECORD_BYTES for at in re.finditer(bytes((kind, 0, 0)), records) if at.start() % RECORD_BYTES == 4]
    offset, end = flv.FIRST_TAG_BYTES + _span(sizes, kinds), len(kinds)
    for number in reversed(found):
        offset -= _span(sizes[number:end], kinds[number:end])
        end = number
        if offset < before:
            yield offset


def _span(sizes: array[int], kinds: bytes) -> int:
    """The bytes of these tags in the segment. A record has the kind in the same word as the size."""
    return sum(sizes) - (sum(kinds) << 24) + len(sizes) * flv.TAG_OVERHEAD_BYTES
