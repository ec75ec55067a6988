"""A TCP proxy between a service and its server: it can be cut, silenced and restored. Loopback only."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

CHUNK_BYTES = 64 * 1024


@dataclass(slots=True)
class Proxy:
    """Forwards connections on `port` to `target_port` of 127.0.0.1. `taken` counts the accepted connections."""

    target_port: int
    port: int = 0
    taken: int = 0
    _server: asyncio.Server | None = None
    _open: set[asyncio.StreamWriter] = field(default_factory=set)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _cut: bool = False
    _flows: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> None:
        """Listen on a free port."""
        self._flows.set()
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Reset open connections and stop listening; safe to call twice."""
        if self._server is not None:
            self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Reset every connection, and each new one immediately, until `restore`."""
        self._cut = True
        for writer in self._open:
            writer.transport.abort()

    def blackhole(self) -> None:
        """Forward nothing in either direction and close nothing, until `restore`: the other side seems to hang."""
        self._flows.clear()

    def restore(self) -> None:
        """Forward again. Data held since `blackhole` flows; cut connections have to be opened again."""
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
        """Forward one direction until it ends; the end of one ends both."""
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
