"""A scripted RTMP server for tests: one program of tags, on the wire as different servers write it.

Rule: it is written from the specification, independent of the client, and shares no code with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from media import flv
from tests import waiting

_AUDIO_CHANNEL, _VIDEO_CHANNEL, _STATUS_CHANNEL = 6, 7, 5
_EXTENDED = 0xFFFFFF


@dataclass(kw_only=True)
class Script:
    """What the server sends and how. `aggregate`: so many tags in one message; `deltas`: later headers have only differences;
    `extended_everywhere`: the extended timestamp also precedes continuation chunks; `refusal`: a status instead of the stream."""

    tags: tuple[flv.Tag, ...] = ()
    chunk_bytes: int = 4_096
    aggregate: int = 0
    deltas: bool = False
    extended_everywhere: bool = True
    refusal: str = ""
    connect_refusal: str = ""
    ping: bool = False
    then: str = "NetStream.Play.UnpublishNotify"
    handshake: bytes | None = None
    raw: bytes = b""
    drop_at_play: bool = False
    heard: list[tuple[int, bytes]] = field(default_factory=list)
    connections: int = 0


class RtmpServer:
    """Plays one script to each client, at full speed."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.stopping = False

    async def start(self) -> None:
        """Listen on an ephemeral port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """End all connections."""
        assert self._server is not None
        self.stopping = True
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def address(self, host: str = "127.0.0.1") -> str:
        """The pull address of the stream."""
        scheme = "rtmps" if self._tls else "rtmp"
        return f"{scheme}://{host}:{self.port}/pull/42?userid=recorder&usersig=SECRET-SIGNATURE"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.script.connections += 1
        try:
            await _Session(self.script, reader, writer).run()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort() if self.stopping else writer.close()


@contextlib.asynccontextmanager
async def serving(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[RtmpServer]:
    """A running server."""
    server = RtmpServer(script, tls)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class _Session:
    def __init__(self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._script, self._reader, self._writer = script, reader, writer
        self._chunk_bytes = 128
        self._last: dict[int, int] = {}

    async def run(self) -> None:
        first = await self._reader.readexactly(1537)
        if self._script.handshake is not None:
            self._writer.write(self._script.handshake)
            await self._writer.drain()
            return
        self._writer.write(b"\x03" + bytes(8) + os.urandom(1528) + first[1:])
        await self._reader.readexactly(1536)
        async for kind, body in self._messages():
            self._script.heard.append((kind, body))
            if kind == 20 and b"connect" in body[:12]:
                if self._script.connect_refusal:
                    self._command(
                        "_error", 1, None, _status("error", "NetConnection.Connect.Rejected", self._script.connect_refusal)
                    )
                    await self._writer.drain()
                    return
                self._message(2, 5, 0, struct.pack(">I", 100_000))
                self._message(2, 6, 0, struct.pack(">IB", 100_000, 2))
                self._command("_result", 1, {"fmsVer": "FMS/3,0"}, _status("status", "NetConnection.Connect.Success", "ok"))
            elif kind == 20 and b"createStream" in body[:18]:
                self._command("_result", 2, None, 1)
            elif kind == 20 and b"play" in body[:8]:
                # Closing a connection with unread bytes would reset it, and the client would lose what it has not read.
                reading = asyncio.create_task(self._hear())
                await self._play()
                self._writer.write_eof() if self._writer.can_write_eof() else None
                await reading
                return

    async def _messages(self) -> AsyncIterator[tuple[int, bytes]]:
        """The client's messages: it writes each whole, with 128-byte chunks."""
        while True:
            head = await self._reader.readexactly(12)
            size, kind = int.from_bytes(head[4:7], "big"), head[7]
            body = await self._reader.readexactly(min(size, 128))
            while len(body) < size:
                assert (await self._reader.readexactly(1))[0] >> 6 == 3
                body += await self._reader.readexactly(min(128, size - len(body)))
            yield kind, body

    async def _play(self) -> None:
        script = self._script
        if script.drop_at_play:
            return
        if script.refusal:
            self._command("onStatus", 0, None, _status("error", "NetStream.Play.StreamNotFound", script.refusal), stream=1)
            await self._writer.drain()
            return
        self._message(2, 1, 0, struct.pack(">I", script.chunk_bytes))
        self._chunk_bytes = script.chunk_bytes
        self._message(2, 4, 0, struct.pack(">HI", 0, 1))
        self._command("onStatus", 0, None, _status("status", "NetStream.Play.Start", "ok"), stream=1)
        if script.ping:
            self._message(2, 4, 0, struct.pack(">HI", 6, 4711))
            await waiting.until(lambda: (4, struct.pack(">HI", 7, 4711)) in script.heard)
        self._writer.write(script.raw)
        tags = list(script.tags)
        step = script.aggregate or 1
        for at in range(0, len(tags), step):
            self._tags(tags[at : at + step])
            await self._writer.drain()
        if script.then == "hold":
            await asyncio.Event().wait()
        if script.then == "eof":
            self._message(2, 4, 0, struct.pack(">HI", 1, 1))
            await self._writer.drain()
            await asyncio.Event().wait()
        if script.then:
            self._command("onStatus", 0, None, _status("status", script.then, "ended"), stream=1)
        await self._writer.drain()

    async def _hear(self) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            async for message in self._messages():
                self._script.heard.append(message)

    def _tags(self, tags: list[flv.Tag]) -> None:
        if self._script.aggregate:
            body = b"".join(flv.encode(tag.kind, tag.timestamp_ms, tag.payload) for tag in tags)
            self._message(4, 22, tags[0].timestamp_ms, body, stream=1)
            return
        for tag in tags:
            channel = _AUDIO_CHANNEL if tag.kind == flv.AUDIO else _VIDEO_CHANNEL
            self._message(channel, tag.kind, tag.timestamp_ms, tag.payload, stream=1)

    def _command(self, name: str, number: int, *values: object, stream: int = 0) -> None:
        body = b"".join(_amf(value) for value in (name, number, *values))
        self._message(_STATUS_CHANNEL if stream else 3, 20, 0, body, stream=stream)

    def _message(self, channel: int, kind: int, timestamp_ms: int, body: bytes, *, stream: int = 0) -> None:
        last = self._last.get(channel)
        by_delta = self._script.deltas and last is not None and timestamp_ms >= last
        self._last[channel] = timestamp_ms
        shown = timestamp_ms - last if by_delta and last is not None else timestamp_ms
        extended = struct.pack(">I", shown) if shown >= _EXTENDED else b""
        head = min(shown, _EXTENDED).to_bytes(3, "big") + len(body).to_bytes(3, "big") + bytes((kind,))
        begin = bytes((0x40 | channel,)) + head if by_delta else bytes((channel,)) + head + stream.to_bytes(4, "little")
        pieces = [begin + extended + body[: self._chunk_bytes]]
        more = bytes((0xC0 | channel,)) + (extended if self._script.extended_everywhere else b"")
        for at in range(self._chunk_bytes, len(body), self._chunk_bytes):
            pieces.append(more + body[at : at + self._chunk_bytes])
        self._writer.write(b"".join(pieces))


def _status(level: str, code: str, description: str) -> dict[str, str]:
    return {"level": level, "code": code, "description": description}


def _amf(value: object) -> bytes:
    match value:
        case None:
            return b"\x05"
        case int() | float():
            return b"\x00" + struct.pack(">d", value)
        case str():
            return b"\x02" + struct.pack(">H", len(value)) + value.encode()
        case dict():
            members = (struct.pack(">H", len(key)) + key.encode() + _amf(each) for key, each in value.items())
            return b"\x03" + b"".join(members) + b"\x00\x00\x09"
    raise AssertionError(value)


def shifted(script: Script, by_ms: int) -> Script:
    """The same script with later timestamps."""
    return replace(script, tags=tuple(replace(tag, timestamp_ms=(tag.timestamp_ms + by_ms) & 0xFFFFFFFF) for tag in script.tags))
