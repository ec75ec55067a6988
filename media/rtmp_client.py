"""RTMP and RTMPS client that plays one stream. Source: Adobe's RTMP specification 1.0.

Rules:
- The server's handshake must return this client's random bytes. A server that answers otherwise is not understood. One that
  closes the connection during the handshake may be restarting, so only a repetition counts.
- `NetStream.Play.UnpublishNotify`, `Stop`, `Complete` and Stream EOF after media end the pull, as in ffmpeg.
- Every size that the server chooses is bounded (rtmp_chunks.py). Of commands only the status and the stream's number are used.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple, cast
from urllib.parse import urlsplit

from media import amf0, ffmpeg_log, pull, rtmp_chunks

_PORTS = {"rtmp": 1935, "rtmps": 443}
_HANDSHAKE_BYTES = 1536
_CONTROL, _COMMANDS, _STREAM = 2, 3, 8
_CONNECT, _CREATE = 1, 2
_BUFFER_MS = 3_000
_LIVE_OR_RECORDED = -2_000
_WINDOW_BYTES = 2_500_000
_SMALLEST_WINDOW_BYTES = 4_096
_LONGEST_COMMAND_BYTES = 65_536
_MEDIA = frozenset((rtmp_chunks.AUDIO, rtmp_chunks.VIDEO, rtmp_chunks.DATA))
_STREAM_EOF, _PING, _PONG, _SET_BUFFER = 1, 6, 7, 3
_ENDS = frozenset(("NetStream.Play.Stop", "NetStream.Play.Complete", "NetStream.Play.UnpublishNotify"))


class Target(NamedTuple):
    """A stream's place: server, application and name."""

    secure: bool
    host: str
    port: int
    app: str
    name: str


def target(address: str) -> Target:
    """Parse a pull address. The application is the path's first part, or its first two if there are three. Raises ValueError."""
    parts = urlsplit(address)
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not parts.hostname:
        raise ValueError("it is not an rtmp or rtmps URL")
    path = parts.path.lstrip("/").split("/")
    named = 2 if len(path) > 2 else 1
    query = f"?{parts.query}" if parts.query else ""
    port = parts.port or _PORTS[scheme]
    return Target(scheme == "rtmps", parts.hostname, port, "/".join(path[:named]), "/".join(path[named:]) + query)


class RtmpPull:
    """One connection that plays a stream."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: _Connection | None = None

    async def run(self, on_tag: pull.OnTag) -> pull.End:
        """Connect, play, and read until the end. Cancellation closes the connection."""
        try:
            place = target(self._address)
        except ValueError:
            return pull.End("The pull address is not an rtmp or rtmps URL.")
        connection = self._connection = _Connection(place, on_tag)
        try:
            await _connect(place, connection)
            return await connection.ended
        except OSError as error:
            return pull.unreachable(error)
        finally:
            connection.close()

    def pause(self) -> None:
        """Stop reading."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Continue to read."""
        if self._connection is not None:
            self._connection.resume()


async def _connect(place: Target, connection: _Connection) -> None:
    """Try the host's addresses in turn. Raises the last OSError."""
    loop = asyncio.get_running_loop()
    tls: dict[str, Any] = {"ssl": pull.tls(), "server_hostname": place.host} if place.secure else {}
    failed: OSError | None = None
    for host in await pull.addresses(place.host, place.port):
        try:
            await loop.create_connection(lambda: connection, host, place.port, **tls)
        except OSError as error:
            failed = error
        else:
            return
    raise failed or OSError("the host has no address")


# By another name: a class whose base is named Protocol would be an interface of typing.
_StreamProtocol = asyncio.Protocol


class _Connection(_StreamProtocol):
    """The protocol of one connection; `ended` is its end."""

    def __init__(self, place: Target, on_tag: pull.OnTag) -> None:
        self._place = place
        self._on_tag = on_tag
        self.ended: asyncio.Future[pull.End] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._handshake = b""
        self._sent = b""
        self._chunks: rtmp_chunks.ChunkReader | None = None
        self._received = self._acknowledged = 0
        self._window_bytes = _WINDOW_BYTES
        self._connected = self._with_media = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # a connection; uvloop's is no instance of that class
        self._sent = bytes(8) + os.urandom(_HANDSHAKE_BYTES - 8)
        self._transport.write(b"\x03" + self._sent)

    def data_received(self, data: bytes) -> None:
        try:
            self._received += len(data)
            if self._chunks is None:
                data = self._shake(data)
            if self._chunks is not None and data:
                for message in self._chunks.feed(data):
                    kind, timestamp_ms, payload = message
                    if kind not in _MEDIA:
                        self._on_message(message)
                    elif payload and not self.ended.done():
                        self._with_media = self._with_media or kind != rtmp_chunks.DATA
                        self._on_tag(kind, timestamp_ms, payload)
                if self._received - self._acknowledged >= self._window_bytes // 2:
                    self._acknowledge()
        except ValueError as error:
            self._end(pull.End(f"The server's answer was not understood: {error}.", blame=pull.Blame.CLIENT))

    def connection_lost(self, error: Exception | None) -> None:
        if not self._received:
            end = pull.End("The server closed the connection before it answered.", ffmpeg_log.Meaning.REFUSED)
        elif not self._connected:
            end = pull.End("The server closed the connection in the handshake.", blame=pull.Blame.IF_REPEATED)
        else:
            end = pull.End(
                f"The server closed the connection {'while it was pulled' if self._with_media else 'before the stream'}."
            )
        self._end(end)

    def pause(self) -> None:
        """Stop reading."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Continue to read."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def close(self) -> None:
        """Drop the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _end(self, end: pull.End) -> None:
        if not self.ended.done():
            self.ended.set_result(end)
        self.close()

    def _shake(self, data: bytes) -> bytes:
        """Read S0, S1 and S2; returns what follows them. Raises ValueError."""
        self._handshake += data
        if self._handshake[0] != 3:
            raise ValueError("its handshake is not RTMP version 3")
        if len(self._handshake) < 1 + 2 * _HANDSHAKE_BYTES:
            return b""
        theirs = self._handshake[1 : 1 + _HANDSHAKE_BYTES]
        echo = self._handshake[1 + _HANDSHAKE_BYTES : 1 + 2 * _HANDSHAKE_BYTES]
        if echo[8:] != self._sent[8:]:
            raise ValueError("its handshake did not return the random bytes")
        rest = self._handshake[1 + 2 * _HANDSHAKE_BYTES :]
        self._handshake = self._sent = b""
        self._chunks = rtmp_chunks.ChunkReader()
        scheme = "rtmps" if self._place.secure else "rtmp"
        host = f"[{self._place.host}]" if ":" in self._place.host else self._place.host
        self._write(theirs)
        self._command(
            "connect",
            _CONNECT,
            {
                "app": self._place.app,
                "flashVer": "LNX 9,0,124,2",
                "tcUrl": f"{scheme}://{host}:{self._place.port}/{self._place.app}",
                "fpad": False,
                "capabilities": 15,
                "audioCodecs": 4071,
                "videoCodecs": 252,
                "videoFunction": 1,
            },
        )
        return rest

    def _on_message(self, message: rtmp_chunks.Message) -> None:
        match message.kind:
            case rtmp_chunks.COMMAND | rtmp_chunks.COMMAND_AMF3:
                self._on_command(message.payload[1:] if message.kind == rtmp_chunks.COMMAND_AMF3 else message.payload)
            case rtmp_chunks.USER_CONTROL:
                self._on_control(message.payload)
            case rtmp_chunks.WINDOW_SIZE if len(message.payload) >= 4:
                self._window_bytes = max(_SMALLEST_WINDOW_BYTES, int.from_bytes(message.payload[:4], "big"))
            case rtmp_chunks.PEER_BANDWIDTH:
                self._send(_CONTROL, rtmp_chunks.WINDOW_SIZE, struct.pack(">I", _WINDOW_BYTES))

    def _on_control(self, payload: bytes) -> None:
        event = int.from_bytes(payload[:2], "big")
        if event == _PING:
            self._send(_CONTROL, rtmp_chunks.USER_CONTROL, struct.pack(">H", _PONG) + payload[2:6])
        elif event == _STREAM_EOF and self._with_media:
            self._end(pull.End("The server reported the end of the stream."))

    def _on_command(self, payload: bytes) -> None:
        """Act on a command. Raises ValueError if it cannot be read."""
        if len(payload) > _LONGEST_COMMAND_BYTES:
            raise ValueError("a command has more than 64 KiB")
        values = amf0.decode(payload)
        name, number, last = values[0] if values else "", values[1] if len(values) > 1 else 0, values[-1] if values else None
        if name == "_result" and number == _CONNECT:
            self._connected = True
            self._command("createStream", _CREATE, None)
        elif name == "_result" and number == _CREATE:
            self._play(last)
        elif name == "_error" and number in (_CONNECT, _CREATE):
            self._refused(last)
        elif name == "onStatus":
            self._on_status(last)
        elif name == "close":
            self._end(pull.End("The server closed the stream."))

    def _play(self, stream: Any) -> None:
        number = int(stream) if isinstance(stream, float) and 0 <= stream < 1 << 32 else 1
        self._send(_STREAM, rtmp_chunks.COMMAND, amf0.encode("play", 0, None, self._place.name, _LIVE_OR_RECORDED), stream=number)
        buffer = struct.pack(">HII", _SET_BUFFER, number, _BUFFER_MS)
        self._send(_CONTROL, rtmp_chunks.USER_CONTROL, buffer)

    def _on_status(self, status: Any) -> None:
        code = status.get("code") if isinstance(status, Mapping) else None
        level = status.get("level") if isinstance(status, Mapping) else None
        if level == "error":
            self._refused(status)
        elif code in _ENDS:
            self._end(pull.End(f"The server ended the stream: {code}."))

    def _refused(self, status: Any) -> None:
        texts = [status.get(name) for name in ("code", "description")] if isinstance(status, Mapping) else []
        said = ": ".join(text[:500] for text in texts if isinstance(text, str) and text)
        self._end(pull.refusal(f"Server error: {said or 'no reason'}"))

    def _command(self, name: str, number: int, value: Mapping[str, Any] | None) -> None:
        self._send(_COMMANDS, rtmp_chunks.COMMAND, amf0.encode(name, number, value))

    def _acknowledge(self) -> None:
        self._acknowledged = self._received
        self._send(_CONTROL, rtmp_chunks.ACKNOWLEDGEMENT, struct.pack(">I", self._received & 0xFFFFFFFF))

    def _send(self, channel: int, kind: int, payload: bytes, *, stream: int = 0) -> None:
        self._write(rtmp_chunks.encode(channel, kind, payload, stream=stream))

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            with contextlib.suppress(RuntimeError):  # uvloop: the transport was closed a moment ago
                self._transport.write(data)
