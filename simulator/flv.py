"""FLV encoding: file header, metadata, tags, and the reader for ffmpeg's output.

Rule: a payload is made once; per viewer only the 11 bytes before it are new. Source: Adobe Flash Video File Format Specification
10.1, annex E.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

AUDIO, VIDEO, SCRIPT = 8, 9, 18
KEY_FRAME = 1
SEQUENCE_HEADER = 0


def header(*, audio: bool, video: bool) -> bytes:
    """The 9 bytes of a file header that declares these tracks, and the first back pointer."""
    return b"FLV\x01" + bytes([(4 if audio else 0) | (1 if video else 0)]) + b"\x00\x00\x00\x09" + b"\x00\x00\x00\x00"


def tag(kind: int, timestamp_ms: int, payload: bytes) -> bytes:
    """A whole tag with its back pointer; timestamps wrap at 2³² ms as the format's 32 bits do."""
    time = timestamp_ms & 0xFFFFFFFF
    size = len(payload)
    head = struct.pack(">I", kind << 24 | size) + struct.pack(">I", (time & 0xFFFFFF) << 8 | time >> 24) + b"\x00\x00\x00"
    return b"".join((head, payload, struct.pack(">I", size + 11)))


def metadata(values: Mapping[str, float | str]) -> bytes:
    """The payload of an `onMetaData` script tag: AMF0 string and ECMA array."""
    body = [b"\x02", _name("onMetaData"), b"\x08", struct.pack(">I", len(values))]
    for name, value in values.items():
        if isinstance(value, str):
            body += [_name(name), b"\x02", _name(value)]
        else:
            body += [_name(name), b"\x00", struct.pack(">d", value)]
    return b"".join([*body, b"\x00\x00\x09"])


def tags(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Every whole tag of a file as (kind, timestamp in ms, payload). Raises ValueError if it is not FLV."""
    if data[:3] != b"FLV":
        raise ValueError("not an FLV file")
    at = struct.unpack_from(">I", data, 5)[0] + 4
    while at + 11 <= len(data):
        kind, size = data[at], int.from_bytes(data[at + 1 : at + 4], "big")
        timestamp_ms = int.from_bytes(data[at + 4 : at + 7], "big") | data[at + 7] << 24
        if at + 11 + size > len(data):
            return
        yield kind, timestamp_ms, data[at + 11 : at + 11 + size]
        at += 11 + size + 4


def _name(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">H", len(raw)) + raw
