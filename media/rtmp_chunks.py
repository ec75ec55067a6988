"""RTMP chunk streams: bytes into messages, and messages into bytes. Pure. Source: Adobe's RTMP specification 1.0, section 5.3.

Rules:
- The peer chooses every size, so each has a bound: message, chunk, number of chunk streams, bytes of unfinished messages.
- An extended timestamp precedes every chunk of its message; some servers leave it out of the continuation chunks. The first such
  chunk of a connection shows which kind of server this is.
- A message that is replaced before its end is dropped.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

SET_CHUNK_SIZE, ABORT, ACKNOWLEDGEMENT, USER_CONTROL, WINDOW_SIZE, PEER_BANDWIDTH = 1, 2, 3, 4, 5, 6
AUDIO, VIDEO, DATA, COMMAND_AMF3, COMMAND, AGGREGATE = 8, 9, 18, 17, 20, 22
LARGEST_MESSAGE_BYTES = 8 << 20
_SMALLEST_CHUNK_BYTES, _FIRST_CHUNK_BYTES = 128, 128
_MOST_STREAMS = 64
_MOST_UNFINISHED_BYTES = 16 << 20
# A read of the socket has at most 256 KiB. Nobody needs messages of ten bytes on average.
_MOST_MESSAGES = 25_000
_EXTENDED = 0xFFFFFF
_HEADER_BYTES = (11, 7, 3, 0)
_MASK = 0xFFFFFFFF
_TAG_HEADER_BYTES, _TAG_TRAILER_BYTES = 11, 4


class ProtocolError(ValueError):
    """The peer's bytes are no RTMP that this client reads."""


class Message(NamedTuple):
    """One message: its type, its time in ms, and its body."""

    kind: int
    timestamp_ms: int
    payload: bytes


class _Stream:
    """One chunk stream: the last header, and the message in progress."""

    __slots__ = ("delta_ms", "extended", "field", "held", "kind", "left", "parts", "size", "timestamp_ms")

    def __init__(self) -> None:
        self.timestamp_ms = self.delta_ms = self.field = self.size = self.kind = self.left = self.held = 0
        self.extended = False
        self.parts: list[bytes] = []


class ChunkReader:
    """Reads messages from bytes in any pieces. It obeys Set Chunk Size and Abort, and splits aggregates."""

    def __init__(self) -> None:
        self._chunk_bytes = _FIRST_CHUNK_BYTES
        self._streams: dict[int, _Stream] = {}
        self._rest = b""
        self._current: _Stream | None = None
        self._chunk_left = self._unfinished = 0
        self._repeats_extended: bool | None = None

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes. Raises ProtocolError; the reader is then of no more use."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at, end = 0, len(data)
        found: list[Message] = []
        while at < end:
            stream = self._current
            if stream is None:
                begun = self._begin(data, at, end)
                if begun is None:
                    self._rest = data[at:]
                    break
                at, stream = begun
                self._current, self._chunk_left = stream, min(self._chunk_bytes, stream.left)
            take = min(self._chunk_left, end - at)
            if take == stream.size:
                payload = data[at : at + take]
                at, self._current, stream.left = at + take, None, 0
                self._finish(stream, payload, found)
                continue
            self._collect(stream, data[at : at + take])
            at += take
            if self._chunk_left == 0:
                self._current = None
                if stream.left == 0:
                    self._finish(stream, self._whole(stream), found)
        return found

    def _collect(self, stream: _Stream, part: bytes) -> None:
        taken = len(part)
        stream.parts.append(part)
        stream.held += taken
        stream.left -= taken
        self._chunk_left -= taken
        self._unfinished += taken
        if self._unfinished > _MOST_UNFINISHED_BYTES:
            raise ProtocolError("the server keeps too many messages unfinished")

    def _whole(self, stream: _Stream) -> bytes:
        payload = b"".join(stream.parts)
        self._drop(stream)
        return payload

    def _drop(self, stream: _Stream) -> None:
        self._unfinished -= stream.held
        stream.held = stream.left = 0
        stream.parts = []

    def _begin(self, data: bytes, at: int, end: int) -> tuple[int, _Stream] | None:
        """Read a chunk header at `at`: where its payload begins, and its stream. None if it is not whole yet."""
        form, number = data[at] >> 6, data[at] & 0x3F
        at += 1
        if number < 2:
            width = number + 1
            if at + width > end:
                return None
            number = 64 + int.from_bytes(data[at : at + width], "little")
            at += width
        head = _HEADER_BYTES[form]
        if at + head > end:
            return None
        stream = self._streams.get(number)
        if stream is None:
            if len(self._streams) >= _MOST_STREAMS:
                raise ProtocolError("the server uses too many chunk streams")
            stream = self._streams[number] = _Stream()
        if form == 3:
            return self._continue(stream, data, at, end)
        field = int.from_bytes(data[at : at + 3], "big")
        extended = field == _EXTENDED
        if extended:
            if at + head + 4 > end:
                return None
            field = int.from_bytes(data[at + head : at + head + 4], "big")
        if stream.held:
            self._drop(stream)
        if form < 2:
            stream.size, stream.kind = int.from_bytes(data[at + 3 : at + 6], "big"), data[at + 6]
            if stream.size > LARGEST_MESSAGE_BYTES:
                raise ProtocolError("the server announced a message of more than 8 MiB")
        stream.field, stream.extended, stream.delta_ms, stream.left = field, extended, field, stream.size
        stream.timestamp_ms = field if form == 0 else (stream.timestamp_ms + field) & _MASK
        return at + head + (4 if extended else 0), stream

    def _continue(self, stream: _Stream, data: bytes, at: int, end: int) -> tuple[int, _Stream] | None:
        """A chunk without a header: it goes on with the message, or begins another one like the last."""
        if stream.extended and self._repeats_extended is not False:
            if at + 4 > end:
                return None
            if self._repeats_extended is None:
                self._repeats_extended = int.from_bytes(data[at : at + 4], "big") in (stream.field, stream.timestamp_ms)
            at += 4 if self._repeats_extended else 0
        if stream.left == 0:
            stream.timestamp_ms = (stream.timestamp_ms + stream.delta_ms) & _MASK
            stream.left = stream.size
        return at, stream

    def _finish(self, stream: _Stream, payload: bytes, found: list[Message]) -> None:
        kind = stream.kind
        if kind == SET_CHUNK_SIZE:
            size = int.from_bytes(payload[:4], "big")
            if len(payload) < 4 or size < _SMALLEST_CHUNK_BYTES:
                raise ProtocolError("the server set a chunk size below 128 bytes")
            self._chunk_bytes = min(size, LARGEST_MESSAGE_BYTES)
        elif kind == ABORT:
            aborted = self._streams.get(int.from_bytes(payload[:4], "big"))
            if aborted is not None:
                self._drop(aborted)
        elif kind == AGGREGATE:
            found += split(Message(kind, stream.timestamp_ms, payload))
        else:
            found.append(Message(kind, stream.timestamp_ms, payload))
        if len(found) > _MOST_MESSAGES:
            raise ProtocolError("the server sends too many messages without content")


def split(aggregate: Message) -> list[Message]:
    """The messages of an aggregate: FLV tags, whose times move with that of the aggregate. An unfinished one is left out."""
    found: list[Message] = []
    data, at, shift_ms = aggregate.payload, 0, None
    while at + _TAG_HEADER_BYTES <= len(data):
        word, time = struct.unpack_from(">II", data, at)
        timestamp_ms = (time & 0xFF) << 24 | time >> 8
        shift_ms = aggregate.timestamp_ms - timestamp_ms if shift_ms is None else shift_ms
        begin = at + _TAG_HEADER_BYTES
        at = begin + (word & 0xFFFFFF)
        if at > len(data):
            break
        found.append(Message(word >> 24, (timestamp_ms + shift_ms) & _MASK, data[begin:at]))
        at += _TAG_TRAILER_BYTES
    return found


def encode(channel: int, kind: int, payload: bytes, *, stream: int = 0, chunk_bytes: int = _FIRST_CHUNK_BYTES) -> bytes:
    """Encode a message to the server, at time 0, for chunk stream `channel` (2 to 63)."""
    head = bytes((channel, 0, 0, 0)) + len(payload).to_bytes(3, "big") + bytes((kind,)) + stream.to_bytes(4, "little")
    more = bytes((0xC0 | channel,))
    return head + more.join(payload[at : at + chunk_bytes] for at in range(0, max(1, len(payload)), chunk_bytes))
