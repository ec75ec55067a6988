"""A TCP proxy between a service and a server of its own: it can be cut, silenced and restored. Loopback only."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

CHUNK_BYTES = 64 * 1024


@dataclass(slots=True)
class Proxy:
    """Hands on what comes to `port` to `target_port` of 127.0.0.1. `taken` counts the connections it has let through."""

    target_port: int
    port: int = 0
    taken: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _cut: bool = False
    _flows: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Begin to listen on a free port."""
        self._flows.set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Break what is open and listen no more; harmless to repeat."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection with a reset, and each new one at once, until `restore`."""
        self._cut = True
        for writer in self._open:
            writer.transport.abort()

    def blackhole(self) -> None:
        """Hand nothing on, in neither direction, and break nothing: the other side seems to think. Until `restore`."""
        self._flows.clear()

    def restore(self) -> None:
        """Be a cable again. What was held back since `blackhole` flows; what was cut has to connect anew."""
        self._cut = False
        self._flows.set()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            writer.transport.abort()
            return
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.taken += 1
        away_reader, away_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        both = {writer, away_writer}
        self._open |= both
        try:
            await asyncio.gather(self._pump(reader, away_writer), self._pump(away_reader, writer))
        finally:
            self._open -= both
            for each in both:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand one direction on until it ends; the end of one is the end of both."""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
