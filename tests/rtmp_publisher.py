"""An RTMP publisher: pushes a simulated speaker's stream to a real RTMP server as it falls due.

Rule: every packet keeps its timestamp and its order, and no track is declared beforehand. So a camera that is switched on later,
another size or a timestamp jump reaches the server as the speaker's own program would send it; a pushing ffmpeg would fix its
tracks at the start. Source: Adobe's RTMP specification 1.0.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import struct

from simulator import flv, live, speakers
from tests import waiting

_CHUNK_BYTES = 65_536
_CONTROL, _COMMANDS, _MEDIA = 2, 3, 4
_SET_CHUNK_SIZE, _DATA, _COMMAND = 1, 18, 20
_EXTENDED = 0xFFFFFF
_STREAM = 1
_ANSWER_S = 5.0


class Publisher:
    """Pushes one speaker until they leave (then it closes the connection) or `stop`."""

    def __init__(self, speaker: speakers.Speaker, *, port: int, app: str, name: str) -> None:
        """`name` is the stream's name with its query, the part after `rtmp://127.0.0.1:port/app/`."""
        self._speaker = speaker
        self._port, self._app, self._name = port, app, name
        self._viewer = live.Viewer("publisher")
        self._heard = b""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect and start pushing; returns when the server has accepted the stream. Raises OSError, TimeoutError."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer = writer
        writer.write(b"\x03" + bytes(8) + os.urandom(1528))
        answer = await asyncio.wait_for(reader.readexactly(1 + 2 * 1536), waiting.limit_s(_ANSWER_S))
        writer.write(answer[1:1537])
        self._message(_CONTROL, _SET_CHUNK_SIZE, 0, struct.pack(">I", _CHUNK_BYTES), stream=0)
        server = f"rtmp://127.0.0.1:{self._port}/{self._app}"
        await self._ask(reader, _amf("connect", 1.0, {"app": self._app, "tcUrl": server}), b"NetConnection.Connect.Success")
        await self._ask(reader, _amf("createStream", 2.0, None), b"_result")
        await self._ask(reader, _amf("publish", 3.0, None, self._name, "live"), b"NetStream.Publish.Start", stream=_STREAM)
        self._speaker.stream.join(self._viewer)
        self._tasks = [asyncio.create_task(self._push()), asyncio.create_task(_drain(reader))]

    async def stop(self) -> None:
        """End the stream; safe to call twice."""
        self._viewer.close(live.GONE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._writer.close()

    async def _push(self) -> None:
        try:
            async for data in self._viewer.chunks():
                body = data if data.startswith(b"FLV") else flv.header(audio=False, video=False) + data
                for kind, timestamp_ms, payload in flv.tags(body):
                    if kind == flv.SCRIPT:
                        self._message(_MEDIA, _DATA, timestamp_ms, _amf("@setDataFrame") + payload)
                    else:
                        self._message(_MEDIA + kind, kind, timestamp_ms, payload)
                await self._writer.drain()
        except ConnectionError:
            self._viewer.close(live.GONE)
        finally:
            self._speaker.stream.leave(self._viewer)
            self._writer.close()

    async def _ask(self, reader: asyncio.StreamReader, body: bytes, answer: bytes, *, stream: int = 0) -> None:
        self._message(_COMMANDS, _COMMAND, 0, body, stream=stream)
        self._heard = b""
        async with waiting.at_most(_ANSWER_S):
            while answer not in self._heard:
                more = await reader.read(_CHUNK_BYTES)
                if not more:
                    raise ConnectionRefusedError(f"the server closed instead of {answer!r}: {self._heard!r}")
                self._heard += more

    def _message(self, channel: int, kind: int, timestamp_ms: int, body: bytes, *, stream: int = _STREAM) -> None:
        long = timestamp_ms >= _EXTENDED
        extended = struct.pack(">I", timestamp_ms) if long else b""
        head = struct.pack(">I", _EXTENDED if long else timestamp_ms)[1:] + struct.pack(">I", len(body))[1:]
        pieces = [bytes([channel]) + head + bytes([kind]) + struct.pack("<I", stream) + extended]
        for at in range(0, max(1, len(body)), _CHUNK_BYTES):
            if at:
                pieces.append(bytes([0xC0 | channel]) + extended)
            pieces.append(body[at : at + _CHUNK_BYTES])
        self._writer.write(b"".join(pieces))


async def _drain(reader: asyncio.StreamReader) -> None:
    with contextlib.suppress(ConnectionError):
        while await reader.read(_CHUNK_BYTES):
            pass


def _amf(*values: str | float | dict[str, str] | None) -> bytes:
    """AMF0: strings, numbers, null, and objects of strings."""
    found: list[bytes] = []
    for value in values:
        match value:
            case str():
                found += [b"\x02", _text(value)]
            case float():
                found += [b"\x00", struct.pack(">d", value)]
            case dict():
                members = itertools.chain.from_iterable((_text(k), b"\x02", _text(v)) for k, v in value.items())
                found += [b"\x03", *members, b"\x00\x00\x09"]
            case None:
                found.append(b"\x05")
    return b"".join(found)


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack(">H", len(raw)) + raw
