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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from machine import errors
from machine.reasons import Reason
from media import flv

_BLOCK_BYTES = 4096
_MOVED_BYTES = 4 << 20
_INSERT_RANGE = 0x20  # FALLOC_FL_INSERT_RANGE of linux/falloc.h
_HEAD, _U32, _I32, _LARGE = struct.Struct(">I4s"), struct.Struct(">I"), struct.Struct(">i"), struct.Struct(">Q")
# An edit: its length in ticks of the film, the media time at which it begins (-1: an empty one), and its rate.
_EDIT, _EDIT_64 = struct.Struct(">IiI"), struct.Struct(">QqI")
_KINDS = {b"soun": flv.AUDIO, b"vide": flv.VIDEO}
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
            raise _damaged("its index is missing")
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


def track_ends_ms(path: Path) -> dict[int, float]:
    """The end of each track by the index (blocking), by its kind in FLV.

    Raises OSError, and errors.TranscodeFailed ("verify-failed") unless the samples of the index fill the file's media exactly.
    """
    with path.open("rb") as file:
        boxes = {box.kind: box for box in _boxes(file.fileno())}
        if not {b"moov", b"mdat"} <= boxes.keys():
            raise _damaged("its index or its media is missing")
        index, media = boxes[b"moov"], boxes[b"mdat"]
        found = os.pread(file.fileno(), index.size, index.at)
        narrow = os.pread(file.fileno(), _U32.size, media.at) != _U32.pack(1)
    try:
        inside = list(_inside(found))
        scale = _scale(next(body for kind, body in inside if kind == b"mvhd"))
        tracks = [_Track(dict(_leaves(body))) for kind, body in inside if kind == b"trak"]
        sample_bytes = sum(track.sample_bytes for track in tracks)
        ends_ms = {track.kind: track.end_ms(scale) for track in tracks}
    except (KeyError, IndexError, StopIteration, ZeroDivisionError, struct.error, ValueError) as error:
        raise _damaged(f"its index cannot be read ({type(error).__name__})") from error
    media_bytes = media.size - _HEAD.size - (0 if narrow else _LARGE.size)
    if sample_bytes != media_bytes:
        raise _damaged(f"its index has {sample_bytes} bytes of samples, its media {media_bytes}")
    return ends_ms


class _Track:
    """One track by the boxes inside it."""

    def __init__(self, boxes: Mapping[bytes, bytes]) -> None:
        self.kind = _KINDS[boxes[b"hdlr"][8:12]]
        self._scale = _scale(boxes[b"mdhd"])
        self._times = _numbers("I", boxes[b"stts"][8:])
        self._edits = boxes.get(b"elst", b"")
        # Pictures are shown some time after they are decoded, the first one by as much as the edit leaves out.
        self._shown_late = _I32.unpack_from(boxes[b"ctts"], 12)[0] if b"ctts" in boxes else 0
        size, count = _U32.unpack_from(boxes[b"stsz"], 4)[0], _U32.unpack_from(boxes[b"stsz"], 8)[0]
        self.sample_bytes: int = size * count or sum(_numbers("I", boxes[b"stsz"][12:]))

    def end_ms(self, scale: int) -> float:
        """Its end; `scale`: the ticks per second of the film."""
        ticks = sum(count * each for count, each in zip(self._times[::2], self._times[1::2], strict=True))
        entry, at_ms = _EDIT_64 if self._edits[:1] == b"\x01" else _EDIT, 0.0
        for length, begins, _ in entry.iter_unpack(self._edits[8:]):
            if begins >= 0:
                return float(at_ms + (ticks + self._shown_late - begins) * 1000 / self._scale)
            at_ms += length * 1000 / scale  # an empty edit: the track begins later
        return at_ms + ticks * 1000 / self._scale


def _damaged(why: str) -> errors.TranscodeFailed:
    return errors.TranscodeFailed(f"The finished file is no whole MP4: {why}.", reason=Reason.VERIFY_FAILED, retry=True)


def _inside(box: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the content of each box inside a box."""
    at = _HEAD.size
    while at + _HEAD.size <= len(box):
        size, kind = _HEAD.unpack_from(box, at)
        size = max(size, _HEAD.size)
        yield kind, box[at + _HEAD.size : at + size]
        at += size


def _leaves(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the content of each box inside containers that has no boxes of its own."""
    for kind, body in _inside(bytes(_HEAD.size) + content):
        if kind in _CONTAINERS or kind == b"edts":
            yield from _leaves(body)
        else:
            yield kind, body


def _scale(header: bytes) -> int:
    """The ticks per second of a film's or a track's header."""
    return int(_U32.unpack_from(header, 20 if header[0] else 12)[0])


def _numbers(code: str, data: bytes) -> array.array[int]:
    """Big-endian numbers."""
    found = array.array(code, data)
    if sys.byteorder == "little":
        found.byteswap()
    return found


def _big_endian(numbers: array.array[int]) -> bytes:
    return _numbers(numbers.typecode, numbers.tobytes()).tobytes()


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
    content = b"".join(_shifted(_boxed(inner, body), by, wide=wide) for inner, body in _inside(box))
    return _boxed(kind, content)


def _shifted_offsets(box: bytes, by: int, *, wide: bool) -> bytes:
    entries, entry_bytes = box[16:], 4 if box[4:8] == b"stco" else 8
    if wide and entry_bytes < _LARGE.size:
        entries, entry_bytes = _big_endian(array.array("Q", _numbers("I", entries))), _LARGE.size
    # As one large number: an index of three hours has a million offsets.
    ones = int.from_bytes((1).to_bytes(entry_bytes, "big") * (len(entries) // entry_bytes), "big")
    moved = (int.from_bytes(entries, "big") + by * ones).to_bytes(len(entries), "big")
    return _boxed(b"co64" if wide else b"stco", box[8:16] + moved)


def _boxed(kind: bytes, content: bytes) -> bytes:
    return _HEAD.pack(_HEAD.size + len(content), kind) + content


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
