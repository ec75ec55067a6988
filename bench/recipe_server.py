"""An HTTP-FLV server that plays broadcasts of recipes in real time, on an ephemeral port of 127.0.0.1.

Rules: `recipe_source.pull` decides what each pull gets. A broadcast begins with its first pull (`began`, Unix seconds), and each
pull is noted (`pulls`, seconds after that). After its last tag the connection ends, and later pulls get a 404.
"""

from __future__ import annotations

import asyncio
import time
import urllib.parse
from typing import Any

from bench import recipe_source

# As in the recipes' own servers: sleeping for less would only cost CPU, and a pull after this is too late.
_LEAST_S, _LATE_MS = 0.003, 50


class Server:
    """`broadcasts`: by the name of their speaker, which is in the query of the address."""

    def __init__(self, broadcasts: dict[str, Any]) -> None:
        self._broadcasts = broadcasts
        self.port = 0
        self.server: asyncio.Server

    async def start(self) -> None:
        """Listen."""
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            target = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
            speaker = urllib.parse.parse_qs(urllib.parse.urlsplit(target).query)["remoteuserid"][0]
            await self._play(self._broadcasts[speaker], writer)
        except ConnectionError:
            return
        finally:
            writer.close()

    async def _play(self, broadcast: Any, writer: asyncio.StreamWriter) -> None:
        now_s = time.time()
        broadcast.began = broadcast.began or now_s
        at_ms = (now_s - broadcast.began) * 1000
        if at_ms > broadcast.length() + _LATE_MS:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        broadcast.pulls.append(at_ms / 1000)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: video/x-flv\r\nConnection: close\r\n\r\n")
        pull = recipe_source.pull(broadcast, at_ms)
        for due_ms, data in pull.pieces:
            await _until(broadcast.began + due_ms / 1000, writer)
            if writer.transport.is_closing():
                return
            writer.write(data)
        await _until(broadcast.began + pull.ends_ms / 1000, writer)


async def _until(time_s: float, writer: asyncio.StreamWriter) -> None:
    wait_s = time_s - time.time()
    if wait_s > _LEAST_S:
        await writer.drain()
        await asyncio.sleep(wait_s)
