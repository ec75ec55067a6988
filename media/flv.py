"""FLV reader for finished, truncated and growing files.

Format: Adobe "Video File Format Specification 10.1", annex E, and the extended headers of Enhanced RTMP v2. Rule: packet times
are authoritative. The duration in a file's metadata is ignored (a crashed ffmpeg leaves it wrong). A file ends with its last
whole tag. After damaged bytes the reader continues at the next tag whose trailing size matches and which another tag follows;
that tag is marked.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

AUDIO = 8
VIDEO = 9
SCRIPT = 18

KINDS = frozenset((AUDIO, VIDEO, SCRIPT))
# Where the first tag begins in a segment, and the bytes of a tag without its payload: header and trailing size.
FIRST_TAG_BYTES = 13
TAG_OVERHEAD_BYTES = 15

_HEADER_BYTES = 9
_TAG_HEADER_BYTES = 11
_LENGTH = struct.Struct(">I")
# Kind and size, then the low 24 bits of the timestamp and its highest 8, then the stream id, which is always 0.
_BEGIN = struct.Struct(">II3x")
_NO_TAG = -1
_AVC, _HEVC_OF_CDNS, _VIDEO_HEAD_BYTES = 7, 12, 5
_START_CODES = (b"\x00\x00\x01", b"\x00\x00\x00\x01")
_START_CODE = re.compile(rb"\x00{2,}\x01")
# The first bytes of a tag: kind, size, timestamp, and the stream id, which is always 0.
_TAG_BEGIN = re.compile(rb"(?=[\x08\x09\x12][\x00-\xff]{7}\x00\x00\x00)")


# Not frozen: one is made for each packet of each stream, and a frozen one takes more than twice as long.
@dataclass(slots=True, kw_only=True)
class Tag:
    """One FLV tag: `kind` is AUDIO, VIDEO or SCRIPT; `timestamp_ms` its decoding time; `payload` excludes the tag's header.
    `after_damage`: unreadable bytes precede it in the file; `offset`: where it begins there."""

    kind: int
    timestamp_ms: int
    payload: bytes
    after_damage: bool = False
    offset: int = field(default=0, compare=False)

    @property
    def is_sequence_header(self) -> bool:
        """Whether the tag carries a decoder configuration (AVC, AAC or an extended codec) and no media."""
        return is_sequence_header(self.kind, self.payload)

    @property
    def is_key(self) -> bool:
        """Whether the tag is a key frame."""
        return self.kind == VIDEO and len(self.payload) > 0 and (self.payload[0] >> 4) & 0x07 == 1

    @property
    def is_media(self) -> bool:
        """Whether the tag is an audio or video packet, not metadata, configuration or an end marker."""
        return is_media(self.kind, self.payload)


def is_sequence_header(kind: int, payload: bytes) -> bool:
    """Whether a tag's payload is a decoder configuration."""
    if len(payload) < 2:
        return False
    first = payload[0]
    if kind == VIDEO:
        return first & 0x0F == 0 if first & 0x80 else first & 0x0F == 7 and payload[1] == 0
    if kind == AUDIO:
        return first & 0x0F == 0 if first >> 4 == 9 else first >> 4 == 10 and payload[1] == 0
    return False


def is_media(kind: int, payload: bytes) -> bool:
    """Whether a tag's payload is an audio or video packet."""
    if kind == SCRIPT or len(payload) < 2:
        return False
    first = payload[0]
    if kind == VIDEO:
        if first & 0x80:
            return first & 0x0F in (1, 3)
        return (first >> 4) & 0x07 != 5 and (first & 0x0F != 7 or payload[1] == 1)
    if first >> 4 == 9:
        return first & 0x0F == 1
    return first >> 4 != 10 or payload[1] == 1


def header(*, audio: bool, video: bool) -> bytes:
    """The 13 bytes at the start of an FLV file that declares these tracks."""
    return b"FLV\x01" + bytes((audio * 4 | video * 1,)) + b"\x00\x00\x00\x09\x00\x00\x00\x00"


def encode(kind: int, timestamp_ms: int, payload: bytes) -> bytes:
    """Encode one tag, including its trailing size. `timestamp_ms` wraps after 49 days, as the format requires."""
    return b"".join(pieces(kind, timestamp_ms, payload))


def pieces(kind: int, timestamp_ms: int, payload: bytes) -> tuple[bytes, bytes, bytes]:
    """A tag as `encode` makes it, in three pieces for one join of many tags."""
    size = len(payload)
    begin = _BEGIN.pack(kind << 24 | size, (timestamp_ms & 0xFFFFFF) << 8 | timestamp_ms >> 24 & 0xFF)
    return begin, payload, _LENGTH.pack(size + _TAG_HEADER_BYTES)


def tags(data: bytes) -> Iterator[Tag]:
    """The tags of bytes that hold whole tags alone."""
    at = 0
    while (after := _tag_end(data, at)) is not None and 0 < after <= len(data):
        yield _tag(data, at, after, after_damage=False, offset=at)
        at = after


class TagReader:
    """Reads the whole tags of a file, from the beginning or `begin_bytes` up to the bytes written so far.

    Call `read()` again after the file has grown. `torn`: bytes of an unfinished or damaged tag follow the last returned one.
    `damaged`: the bytes that follow are not FLV, and no whole tag was found behind them yet.
    """

    def __init__(self, path: Path, begin_bytes: int = 0, *, whole: bool = False) -> None:
        """Open `path`. `begin_bytes` may be inside a tag, unless it is `whole`: the reader looks for the next whole one. Raises
        OSError."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._rest = b""
        self._skipped = False
        self._started = begin_bytes > 0
        self.damaged = self._started and not whole
        self.position_bytes = begin_bytes

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def torn(self) -> bool:
        """Whether bytes of an unfinished or damaged tag follow the last whole one."""
        return self.damaged or bool(self._rest)

    @property
    def read_bytes(self) -> int:
        """How much of the file was read so far, unfinished tags included."""
        return self.position_bytes + len(self._rest)

    def stat(self) -> os.stat_result:
        """The open file's size, modification time and link count (0: the file was deleted)."""
        return os.fstat(self._file)

    def read(self, max_bytes: int = 1 << 20, *, growing: bool = False) -> list[Tag]:
        """The next whole tags, from about `max_bytes` of the file at most. Empty if no whole tag follows yet. `growing`: somebody
        still writes the file, so an unfinished tag is awaited: whole tags inside it may be its payload."""
        tags: list[Tag] = []
        while not tags:
            chunk = os.pread(self._file, max_bytes, self.read_bytes)
            if not chunk:
                return self._parse(self._rest, at_end=True) if self._started and not growing else []
            tags = self._parse(self._rest + chunk, growing=growing)
        return tags

    def _parse(self, data: bytes, *, at_end: bool = False, growing: bool = False) -> list[Tag]:
        """The whole tags of `data`. `at_end`: no more bytes follow, so whole tags behind an unfinished one show that its size is
        damaged."""
        at = 0
        if not self._started:
            if len(data) < _HEADER_BYTES + 4:
                self._rest = data
                return []
            self._started = True
            at = _LENGTH.unpack_from(data, 5)[0] + 4
            if data[:3] != b"FLV" or at > len(data):
                self.damaged, at = True, 0
        tags: list[Tag] = []
        while True:
            if self.damaged:
                found, rest = find_tag(data, at, growing=growing)
                at = rest if found is None else found
                self.damaged, self._skipped = found is None, True
            after = None if self.damaged else _tag_end(data, at)
            if after is None:
                break
            if after == _NO_TAG:
                self.damaged, at = True, at + 1
            elif after <= len(data):
                tags.append(_tag(data, at, after, after_damage=self._skipped, offset=self.position_bytes + at))
                self._skipped, at = False, after
            elif at_end and (found := _chain_behind(data, at + 1)) is not None:
                self._skipped, at = True, found
            else:
                break
        self._rest = data[at:]
        self.position_bytes += at
        return tags


def _tag(data: bytes, at: int, after: int, *, after_damage: bool, offset: int) -> Tag:
    word, time = struct.unpack_from(">II", data, at)
    payload = usual_payload(word >> 24 & 0x1F, data[at + _TAG_HEADER_BYTES : after - _LENGTH.size])
    timestamp = (time & 0xFF) << 24 | time >> 8
    return Tag(kind=word >> 24 & 0x1F, timestamp_ms=timestamp, payload=payload, after_damage=after_damage, offset=offset)


def usual_payload(kind: int, payload: bytes) -> bytes:
    """A payload in the usual form, which is the only one that ffmpeg reads or MP4 players know: HEVC by its FourCC, and NAL units
    with their lengths in front."""
    if kind != VIDEO or len(payload) < _VIDEO_HEAD_BYTES:
        return payload
    if payload[0] & 0x8F == _HEVC_OF_CDNS:
        payload = _enhanced(payload)
    begin = _VIDEO_HEAD_BYTES
    if payload[0] & 0x80:
        if payload[1:5] not in (b"avc1", b"hvc1") or payload[0] & 0x0F not in (1, 3):
            return payload
        begin += 3 if payload[0] & 0x0F == 1 else 0
    elif payload[0] & 0x0F != _AVC or payload[1] != 1:
        return payload
    return _with_lengths(payload, begin) if payload.startswith(_START_CODES, begin) else payload


def _with_lengths(payload: bytes, begin: int) -> bytes:
    """A packet whose NAL units follow start codes (ITU-T H.264, annex B), with lengths instead. A length may look like a start
    code: then the lengths lead exactly to the end."""
    at = begin
    while at + _LENGTH.size <= len(payload):
        at += _LENGTH.size + int.from_bytes(payload[at : at + _LENGTH.size], "big")
    if at == len(payload):
        return payload
    units = _START_CODE.split(payload[begin:])[1:]
    return payload[:begin] + b"".join(_LENGTH.pack(len(unit)) + unit for unit in units if unit)


def _enhanced(payload: bytes) -> bytes:
    """A video packet with the codec id 12, by which Chinese CDNs mean HEVC, as Enhanced RTMP has it: ffmpeg reads no other."""
    packet = payload[1:2]
    if packet not in (b"\x00", b"\x01", b"\x02"):
        return payload
    body = payload[2 if packet == b"\x01" else _VIDEO_HEAD_BYTES :]  # a frame keeps its composition time
    return bytes((0x80 | payload[0] & 0x70 | packet[0],)) + b"hvc1" + body


def _tag_end(data: bytes, at: int) -> int | None:
    """The end of the tag at `at`, trailing size included; beyond the data, if the tag is unfinished. _NO_TAG: no tag begins here;
    None: too few bytes to tell."""
    if at + _TAG_HEADER_BYTES > len(data):
        return None
    word: int = _LENGTH.unpack_from(data, at)[0]
    size = word & 0xFFFFFF
    after = at + _TAG_HEADER_BYTES + size
    if word >> 24 & 0x1F not in KINDS:
        return _NO_TAG
    if after + _LENGTH.size > len(data):
        return after + _LENGTH.size
    return after + _LENGTH.size if _LENGTH.unpack_from(data, after)[0] == size + _TAG_HEADER_BYTES else _NO_TAG


def find_tag(data: bytes, at: int, *, growing: bool = False) -> tuple[int | None, int]:
    """The first whole tag from `at` on; or None, and where the bytes begin that may still become one. If the data are `growing`,
    no whole tag counts that may be part of an unfinished one."""
    unfinished: int | None = None
    for match in _TAG_BEGIN.finditer(data, at):
        after = _tag_end(data, match.start())
        if after is not None and 0 < after <= len(data):
            return match.start(), 0
        if growing and after is not None and after > len(data):
            return None, match.start()
        if unfinished is None and after is not None and after > len(data):
            unfinished = match.start()
    return None, max(at, len(data) - _TAG_HEADER_BYTES + 1) if unfinished is None else unfinished


def _chain_behind(data: bytes, at: int) -> int | None:
    """The first of two whole tags, or the one that ends exactly with the data."""
    while (found := find_tag(data, at)[0]) is not None:
        after = _tag_end(data, found)
        following = None if after is None else _tag_end(data, after)
        if after == len(data) or (following is not None and 0 < following <= len(data)):
            return found
        at = found + 1
    return None
