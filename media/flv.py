"""Reader of FLV files, finished, torn or still growing. Imports nothing of ours.

Format: Adobe "Video File Format Specification 10.1", annex E, and the extended headers of Enhanced RTMP v2.
Rule: packet times are the truth. The duration in a file's metadata is never looked at (a crashed ffmpeg leaves it wrong), and a
file ends with its last whole tag, however it was cut off.
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
    """One FLV tag: `kind` AUDIO, VIDEO or SCRIPT; `timestamp_ms` its decoding time; `payload` without the tag's header."""

    kind: int
    timestamp_ms: int
    payload: bytes

    @property
    def is_sequence_header(self) -> bool:
        """Whether the tag carries a decoder's configuration (AVC, AAC, or an extended codec's) and no media."""
        return is_sequence_header(self.kind, self.payload)

    @property
    def is_key(self) -> bool:
        """Whether the tag is a video frame that decoding can begin with."""
        return self.kind == VIDEO and len(self.payload) > 0 and (self.payload[0] >> 4) & 0x07 == 1

    @property
    def is_media(self) -> bool:
        """Whether the tag is a packet of sound or picture, as opposed to metadata, configuration and end markers."""
        return is_media(self.kind, self.payload)


def is_sequence_header(kind: int, payload: bytes) -> bool:
    """Whether a tag's payload is a decoder's configuration."""
    if len(payload) < 2:
        return False
    first = payload[0]
    if kind == VIDEO:
        return first & 0x0F == 0 if first & 0x80 else first & 0x0F == 7 and payload[1] == 0
    if kind == AUDIO:
        return first & 0x0F == 0 if first >> 4 == 9 else first >> 4 == 10 and payload[1] == 0
    return False


def is_media(kind: int, payload: bytes) -> bool:
    """Whether a tag's payload is a packet of sound or picture."""
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
    """The thirteen bytes an FLV file begins with, declaring these tracks."""
    return b"FLV\x01" + bytes((audio * 4 | video * 1,)) + b"\x00\x00\x00\x09\x00\x00\x00\x00"


def encode(kind: int, timestamp_ms: int, payload: bytes) -> bytes:
    """One tag as bytes, the size that closes it included. `timestamp_ms` wraps after 49 days, as the format has it."""
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


class Reader:
    """Reads the whole tags of one file, from its beginning to as far as it has been written.

    `read()` may be asked again after the file has grown. `torn` says whether bytes of an unfinished or damaged tag follow the
    last one returned; `damaged` that what follows is not FLV, so nothing more will ever be returned.
    """

    def __init__(self, path: Path) -> None:
        """Opens `path`; raises OSError when it cannot."""
        self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._rest = b""
        self._started = False
        self.position_bytes = 0
        self.damaged = False

    def close(self) -> None:
        """Gives the file back; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @property
    def torn(self) -> bool:
        """Whether bytes of an unfinished or damaged tag follow the last whole one."""
        return self.damaged or bool(self._rest)

    def stat(self) -> os.stat_result:
        """The open file's size, time of last writing and number of names (0: it was deleted)."""
        return os.fstat(self._file)

    def read(self, max_bytes: int = 1 << 20) -> list[Tag]:
        """The next whole tags, from at most about `max_bytes` of the file. Empty when no whole tag follows, for now."""
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
