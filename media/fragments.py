"""Fragments of an MP4 that still grows (ISO/IEC 14496-12, chapter 8.8), and the head that makes a file of them.

Rules: the file begins with RESERVED_BYTES that ffmpeg does not write. Everything behind them only grows. `head` fills them with
the file type, the tracks and an index of the fragments (`sidx`), so that players seek at once. A file that ends between two
fragments is whole.
"""

from __future__ import annotations

import collections
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from machine import errors
from machine.reasons import Reason
from media import flv

RESERVED_BYTES = 64 << 10
# ffmpeg's options: fragments begin at key frames, and without one after this time.
FRAGMENT_US = 10_000_000
FLAGS = "frag_keyframe+delay_moov+default_base_moof+skip_trailer"
_MOST_ENTRIES = 4_500
# The index has each of the last fragments, because the bytes before them may be released.
_MOST_RECENT = 200
_HEAD, _WORD, _WIDE = struct.Struct(">I4s"), struct.Struct(">I"), struct.Struct(">Q")
_KINDS = {b"soun": flv.AUDIO, b"vide": flv.VIDEO}
_NOT_SYNC, _FIRST_FLAGS, _SAMPLE_FLAGS = 0x10000, 0x4, 0x400
_DATA_OFFSET = 0x1
_SAMPLE_DURATION, _PER_SAMPLE, _DEFAULT_DURATION = 0x100, 0xF00, 0x8
_BEGINS_WITH_KEY = 0x9000_0000


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """The beginning of a fragment: its offset in the file, and the position in ms of the first packet of each of its tracks.
    `clean`: its video, if any, begins with a key frame. `lasts_ms`: that of the last packet before it."""

    offset: int
    at_ms: dict[int, float]
    clean: bool
    lasts_ms: dict[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Track:
    kind: int
    timescale: int
    begin_ms: float  # the position of media time 0


class GrowingFragments:
    """Reads the fragments of one file as it grows. Its index covers fewer and longer spans in a long file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = RESERVED_BYTES
        self._tracks: dict[int, _Track] = {}
        self._stride, self._count = 1, 0
        self._type = self._movie = b""
        self.first_bytes = 0  # where the first fragment begins
        self.ends_ms: dict[int, float] = {}  # where each track ends
        self._lasts_ms: dict[int, float] = {}  # where the last packet of each track begins
        self._index: list[tuple[int, dict[int, int]]] = []  # fragments by offset, with the media time of each track
        self._recent: collections.deque[tuple[int, dict[int, int]]] = collections.deque(maxlen=_MOST_RECENT)

    def look(self) -> list[Start]:
        """The fragments that have begun since the last look (blocking). Raises OSError, and errors.TranscodeFailed for bytes that
        are no MP4."""
        found: list[Start] = []
        if not self._path.exists():
            return found
        with self._path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            while self._at + _HEAD.size <= size_bytes:
                size, kind = _HEAD.unpack(os.pread(file.fileno(), _HEAD.size, self._at))
                if size < _HEAD.size:
                    raise errors.TranscodeFailed("The growing file is no MP4.", reason=Reason.FFMPEG_FAILED, retry=True)
                if kind != b"mdat":
                    if self._at + size > size_bytes:
                        break
                    self._take(kind, os.pread(file.fileno(), size, self._at), found)
                self._at += size
        return found

    def _take(self, kind: bytes, box: bytes, found: list[Start]) -> None:
        if kind == b"ftyp":
            self._type = box
        elif kind == b"moov":
            self._movie, self._tracks = box, _tracks(box)
        elif kind == b"moof":
            self.first_bytes = self.first_bytes or self._at
            found.append(self._start(box))

    def _start(self, box: bytes) -> Start:
        at_ms: dict[int, float] = {}
        times: dict[int, int] = {}
        clean, lasts_ms = True, dict(self._lasts_ms)
        for traf in _inside(box, b"traf"):
            number = _WORD.unpack_from(_only(traf, b"tfhd"), 12)[0]
            track, time = self._tracks[number], _only(traf, b"tfdt")
            times[number] = (_WIDE if time[8] else _WORD).unpack_from(time, 12)[0]
            durations = _durations(traf)
            self.ends_ms[track.kind] = (times[number] + sum(durations)) * 1000 / track.timescale + track.begin_ms
            self._lasts_ms[track.kind] = (times[number] + sum(durations[:-1])) * 1000 / track.timescale + track.begin_ms
            at_ms[track.kind] = times[number] * 1000 / track.timescale + track.begin_ms
            if track.kind == flv.VIDEO:
                clean = not _first_sample_flags(traf) & _NOT_SYNC
        if not self._index or (clean and len(times) == len(self._tracks)):
            self._note(self._at, dict.fromkeys(self._tracks, 0) | times)
        return Start(offset=self._at, at_ms=at_ms, clean=clean, lasts_ms=lasts_ms)

    def _note(self, offset: int, times: dict[int, int]) -> None:
        self._recent.append((offset, times))
        if self._count % self._stride == 0:
            self._index.append((offset, times))
            if len(self._index) > _MOST_ENTRIES // len(self._tracks):
                self._index, self._stride = self._index[::2], self._stride * 2
        self._count += 1

    def seen_ms(self, until_bytes: int) -> float:
        """How much media the bytes before an offset have at least."""
        times = next((each for offset, each in reversed(self._index) if offset <= until_bytes), {})
        return min((time * 1000 / self._tracks[number].timescale for number, time in times.items()), default=0.0)

    def head(self, *, end_bytes: int = 0, duration_ms: float = 0) -> bytes:
        """Everything before the first fragment: with an index for a file that ends, in which players find every position. Raises
        errors.TranscodeFailed if it does not fit."""
        head, tail = self._type + (_with_duration(self._movie, duration_ms) if end_bytes else self._movie), b""
        indexed = [*self._index, *(each for each in self._recent if each[0] > self._index[-1][0])]
        # One index for each track, with times in its own units, and right before the fragments: ffmpeg reads no others.
        for number, track in self._tracks.items() if end_bytes else ():
            end = end_bytes, round((duration_ms - track.begin_ms) * track.timescale / 1000)
            index = [*((offset, times[number]) for offset, times in indexed), end]
            begin = round(track.begin_ms * track.timescale / 1000)
            tail = _sidx(number, track.timescale, max(0, index[0][1] + begin), index, len(tail)) + tail
        free = self.first_bytes - len(head) - len(tail)
        if free < _HEAD.size:
            raise errors.TranscodeFailed("The head of the growing file is too long.", reason=Reason.FFMPEG_FAILED, retry=True)
        return head + _HEAD.pack(free, b"free") + bytes(free - _HEAD.size) + tail


def settled_head(head: bytes, duration_ms: float) -> bytes:
    """The head of a file that ended early, with its duration and without an index, in as many bytes. It may be called again."""
    boxes = dict(_boxes(head))
    found = boxes[b"ftyp"] + _with_duration(boxes[b"moov"], duration_ms)
    free = len(head) - len(found)
    return found + _HEAD.pack(free, b"free") + bytes(free - _HEAD.size)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + _HEAD.size <= len(data):
        size, kind = _HEAD.unpack_from(data, at)
        if size < _HEAD.size:
            return
        yield kind, data[at : at + size]
        at += size


def _inside(box: bytes, *names: bytes) -> list[bytes]:
    """The boxes of this name inside a box; of several names, inside each other."""
    found = [inner for kind, inner in _boxes(box[_HEAD.size :]) if kind == names[0]]
    return found if len(names) == 1 else [deeper for inner in found for deeper in _inside(inner, *names[1:])]


def _only(box: bytes, *names: bytes) -> bytes:
    found = _inside(box, *names)
    if not found:
        raise errors.TranscodeFailed("The growing file lacks a box.", reason=Reason.FFMPEG_FAILED, retry=True)
    return found[0]


def _tracks(movie: bytes) -> dict[int, _Track]:
    movie_scale = _WORD.unpack_from(_only(movie, b"mvhd"), 20)[0]
    found = {}
    for trak in _inside(movie, b"trak"):
        number = _WORD.unpack_from(_only(trak, b"tkhd"), 20)[0]
        timescale = _WORD.unpack_from(_only(trak, b"mdia", b"mdhd"), 20)[0]
        kind = _KINDS[_only(trak, b"mdia", b"hdlr")[16:20]]
        begin_ms = 0.0
        for edits in _inside(trak, b"edts", b"elst"):
            wide = edits[8] == 1
            entry = struct.Struct(">QqI" if wide else ">IiI")
            for at in range(16, len(edits), entry.size):
                length, media, _ = entry.unpack_from(edits, at)
                begin_ms += length * 1000 / movie_scale if media < 0 else -media * 1000 / timescale
        found[number] = _Track(kind=kind, timescale=timescale, begin_ms=begin_ms)
    return found


def _first_sample_flags(traf: bytes) -> int:
    """The flags of the first sample of a track in a fragment: in `trun` itself, else the default of `tfhd`."""
    run = _only(traf, b"trun")
    flags = _WORD.unpack_from(run, 8)[0]
    at = 16 + (4 if flags & _DATA_OFFSET else 0)
    if flags & _FIRST_FLAGS:
        return int(_WORD.unpack_from(run, at)[0])
    if flags & _SAMPLE_FLAGS:  # behind the sample's duration and size
        return int(_WORD.unpack_from(run, at + 4 * (flags >> 8 & 1) + 4 * (flags >> 9 & 1))[0])
    head = _only(traf, b"tfhd")
    named = _WORD.unpack_from(head, 8)[0]
    return int(_WORD.unpack_from(head, len(head) - 4)[0]) if named & 0x20 else 0


def _durations(traf: bytes) -> Sequence[int]:
    """The durations of the packets of a track in a fragment, in its own units."""
    run, head = _only(traf, b"trun"), _only(traf, b"tfhd")
    flags, count = struct.unpack_from(">II", run, 8)
    if not flags & _SAMPLE_DURATION:
        named = _WORD.unpack_from(head, 8)[0]
        at = 16 + 8 * (named & 1) + 4 * (named >> 1 & 1)
        return [int(_WORD.unpack_from(head, at)[0]) if named & _DEFAULT_DURATION else 0] * count
    at = 16 + 4 * (flags & 1) + 4 * (flags >> 2 & 1)
    words = struct.unpack_from(f">{(len(run) - at) // 4}I", run, at)
    return words[:: bin(flags & _PER_SAMPLE).count("1")]


def _with_duration(movie: bytes, duration_ms: float) -> bytes:
    """The tracks with the duration of all fragments (`mehd`), which replaces one that was there."""
    scale = _WORD.unpack_from(_only(movie, b"mvhd"), 20)[0]
    told = struct.pack(">I4sIQ", 20, b"mehd", 1 << 24, round(duration_ms * scale / 1000))
    content = b""
    for kind, box in _boxes(movie[_HEAD.size :]):
        if kind == b"mvex":
            inner = told + b"".join(each for name, each in _boxes(box[_HEAD.size :]) if name != b"mehd")
            box = _HEAD.pack(_HEAD.size + len(inner), b"mvex") + inner  # noqa: PLW2901 - the box in its new form
        content += box
    return _HEAD.pack(_HEAD.size + len(content), b"moov") + content


def _sidx(number: int, timescale: int, begin: int, index: Sequence[tuple[int, int]], between_bytes: int) -> bytes:
    """The index of the fragments, the last of which is their end; `between_bytes` are before the first one. `begin` is when it is
    shown: with another one, ffmpeg looks for some positions from the beginning of the file on."""
    head = struct.pack(">IIIQQHH", 1 << 24, number, timescale, begin, between_bytes, 0, len(index) - 1)
    entries = b"".join(
        struct.pack(">III", to_bytes - from_bytes, max(0, to_time - from_time), _BEGINS_WITH_KEY)
        for (from_bytes, from_time), (to_bytes, to_time) in itertools.pairwise(index)
    )
    return _HEAD.pack(_HEAD.size + len(head) + len(entries), b"sidx") + head + entries
