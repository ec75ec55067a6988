"""The index of an MP4 file (`moov`), moved from its end to its beginning, so that players start at once.

Rules: the media is not copied where the file system can insert space into a file (ext4, XFS); elsewhere it is moved inside the
file. Both give the same bytes: `ftyp`, `moov`, a `free` box up to a whole block, then the media. So a file that was written while
its recording still ran equals one that was written afterwards. Format: ISO/IEC 14496-12.
"""

from __future__ import annotations

import array
import ctypes
import errno
import os
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from machine import errors
from machine.reasons import Reason

_BLOCK_BYTES = 4096
_MOVED_BYTES = 4 << 20
_INSERT_RANGE = 0x20  # FALLOC_FL_INSERT_RANGE of linux/falloc.h
_HEAD, _LARGE = struct.Struct(">I4s"), struct.Struct(">Q")
_NARROW_MOST = 0xFFFF_FFFF
_CONTAINERS = frozenset((b"moov", b"trak", b"mdia", b"minf", b"stbl"))
_CANNOT_INSERT = frozenset((errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM))
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Box(NamedTuple):
    kind: bytes
    at: int
    size: int


def to_front(path: Path) -> int:
    """Move the index of a finished MP4 to its front (blocking); returns how many bytes farther back the media is now. A file
    whose index is in front already stays as it is.

    Raises OSError, and errors.TranscodeFailed ("verify-failed") for a file that is no MP4 with one index.
    """
    with path.open("r+b") as file:
        boxes = list(_boxes(file.fileno()))
        kinds = [box.kind for box in boxes]
        if kinds[:2] == [b"ftyp", b"moov"]:
            return 0
        if kinds[:1] != [b"ftyp"] or [kind for kind in kinds if kind in (b"mdat", b"moov")] != [b"mdat", b"moov"]:
            raise errors.TranscodeFailed(
                "The finished file is no whole MP4: its index is missing.", reason=Reason.VERIFY_FAILED, retry=True
            )
        first, index, media = boxes[0], boxes[kinds.index(b"moov")], boxes[kinds.index(b"mdat")]
        found = os.pread(file.fileno(), index.size, index.at)
        wide = index.at + 2 * index.size + 2 * _BLOCK_BYTES > _NARROW_MOST
        needed = first.size + len(_shifted(found, 0, wide=wide)) + _HEAD.size
        inserted = -(-(needed - media.at) // _BLOCK_BYTES) * _BLOCK_BYTES
        head = os.pread(file.fileno(), first.size, 0) + _shifted(found, inserted, wide=wide)
        free = inserted + media.at - len(head)
        head += _HEAD.pack(free, b"free") + bytes(free - _HEAD.size)
        if boxes[-1] == index:
            end = index.at
            os.ftruncate(file.fileno(), end)
        else:  # boxes that no player needs follow; the old index becomes one of them
            end = boxes[-1].at + boxes[-1].size
            _write(file.fileno(), b"free", index.at + _HEAD.size - len(b"free"))
        _insert(file.fileno(), inserted, end)
        _write(file.fileno(), head, 0)
        return inserted


def _boxes(file: int) -> Iterator[_Box]:
    """The outermost boxes of a file."""
    at, end = 0, os.fstat(file).st_size
    while at + _HEAD.size <= end:
        head = os.pread(file, _HEAD.size + _LARGE.size, at)
        size, kind = _HEAD.unpack_from(head)
        if size == 1 and len(head) == _HEAD.size + _LARGE.size:
            size = _LARGE.unpack_from(head, _HEAD.size)[0]
        if size < _HEAD.size or at + size > end:
            return
        yield _Box(kind, at, size)
        at += size


def _shifted(box: bytes, by: int, *, wide: bool) -> bytes:
    """A box whose offsets of media are larger by so much; with `wide` they have 64 bits."""
    _, kind = _HEAD.unpack_from(box)
    if kind in (b"stco", b"co64"):
        return _shifted_offsets(box, by, wide=wide or kind == b"co64")
    if kind not in _CONTAINERS:
        return box
    inside, at = [], _HEAD.size
    while at + _HEAD.size <= len(box):
        size = max(_HEAD.unpack_from(box, at)[0], _HEAD.size)
        inside.append(_shifted(box[at : at + size], by, wide=wide))
        at += size
    content = b"".join(inside)
    return _HEAD.pack(_HEAD.size + len(content), kind) + content


def _shifted_offsets(box: bytes, by: int, *, wide: bool) -> bytes:
    offsets = array.array("I" if box[4:8] == b"stco" else "Q", box[16:])
    if sys.byteorder == "little":
        offsets.byteswap()
    moved = array.array("Q" if wide else "I", (offset + by for offset in offsets))
    if sys.byteorder == "little":
        moved.byteswap()
    content = box[8:16] + moved.tobytes()
    return _HEAD.pack(_HEAD.size + len(content), b"co64" if wide else b"stco") + content


def _insert(file: int, size: int, end: int) -> None:
    """Insert bytes at the front of a file that ends at `end`."""
    if _LIBC.fallocate(file, _INSERT_RANGE, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
        return
    if (number := ctypes.get_errno()) not in _CANNOT_INSERT:
        raise OSError(number, os.strerror(number))
    while end:
        begin = max(0, end - _MOVED_BYTES)
        _write(file, os.pread(file, end - begin, begin), begin + size)
        end = begin


def _write(file: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(file, left, at)
        left, at = left[written:], at + written
