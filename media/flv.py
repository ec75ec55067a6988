"""FLV reader for finished, truncated and growing files.

Format: Adobe "Video File Format Specification 10.1", annex E, and the extended headers of Enhanced RTMP v2. Rule: packet times
are authoritative. The duration in a file's metadata is ignored (a crashed ffmpeg leaves it wrong). A file ends with its last
whole tag.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

AUDIO = 8
VIDEO = 9
SCRIPT = 18

_HEADER_BYTES = 9
_TAG_HEADER_BYTES = 11
_KINDS = frozenset((AUDIO, VIDEO, SCRIPT))
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """One FLV tag: `kind` is AUDIO, VIDEO or SCRIPT; `timestamp_ms` its decoding time; `payload` excludes the tag's header."""

    kind: int
    timestamp_ms: int
    payload: bytes

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
    size = len(payload)
    low = timestamp_ms & 0xFFFFFF
    return b"".join(
        (
            _LENGTH.pack(kind << 24 | size),
            _LENGTH.pack(low << 8 | timestamp_ms >> 24 & 0xFF),
            b"\x00\x00\x00",
            payload,
            _LENGTH.pack(size + _TAG_HEADER_BYTES),
        )
    )


class TagReader:
    """Reads the whole tags of a file, from the beginning up to the bytes written so far.

    Call `read()` again after the file has grown. `torn`: bytes of an unfinished or damaged tag follow the last returned one.
    `damaged`: the bytes that follow are not FLV, so nothing more will be returned.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`. Raises OSError."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._rest = b""
        self._started = False
        self.position_bytes = 0
        self.damaged = False

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def torn(self) -> bool:
        """Whether bytes of an unfinished or damaged tag follow the last whole one."""
        return self.damaged or bool(self._rest)

    def stat(self) -> os.stat_result:
        """The open file's size, modification time and link count (0: the file was deleted)."""
        return os.fstat(self._file)

    def read(self, max_bytes: int = 1 << 20) -> list[Tag]:
        """The next whole tags, from about `max_bytes` of the file at most. Empty if no whole tag follows yet."""
        tags: list[Tag] = []
        while not tags and not self.damaged:
            chunk = os.pread(self._file, max_bytes, self.position_bytes + len(self._rest))
            if not chunk:
                break
            tags = self._parse(self._rest + chunk)
        return tags

    def _parse(self, data: bytes) -> list[Tag]:
        at = 0
        if not self._started:
            if len(data) < _HEADER_BYTES + 4:
                self._rest = data
                return []
            at = _LENGTH.unpack_from(data, 5)[0] + 4
            self._started = data[:3] == b"FLV"
            self.damaged = not self._started or at > len(data)
        tags: list[Tag] = []
        end = len(data)
        while not self.damaged and at + _TAG_HEADER_BYTES <= end:
            word, time = struct.unpack_from(">II", data, at)
            kind, size = word >> 24 & 0x1F, word & 0xFFFFFF
            after = at + _TAG_HEADER_BYTES + size
            if kind not in _KINDS:
                self.damaged = True
            elif after + 4 > end:
                break
            elif _LENGTH.unpack_from(data, after)[0] != size + _TAG_HEADER_BYTES:
                self.damaged = True
            else:
                timestamp = (time & 0xFF) << 24 | time >> 8
                tags.append(Tag(kind=kind, timestamp_ms=timestamp, payload=data[at + _TAG_HEADER_BYTES : after]))
                at = after + 4
        self._rest = data[at:]
        self.position_bytes += at
        return tags
