"""Where a name that a stranger chose leads, looked up in threads of its own. Imports nothing of ours.

Rule: a lookup cannot be cancelled, and whoever runs the name's servers decides how long it takes. In asyncio's common threads a
few slow names would hold up what else works there: segments, transcodes, finished files.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from aiohttp.abc import AbstractResolver, ResolveResult

THREADS = 16

Infos = Sequence[tuple[Any, ...]]  # as of socket.getaddrinfo


class _Asked(NamedTuple):
    host: str
    port: int
    family: socket.AddressFamily
    loop: asyncio.AbstractEventLoop
    found: asyncio.Future[Infos]


class Resolver(AbstractResolver):
    """The system's resolver, at most `THREADS` lookups at once; what is given up while it waits is not looked up."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[_Asked] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of `host`. Raises OSError (socket.gaierror) when there are none; takes as long as it takes."""
        if len(self._threads) < THREADS:
            # Daemons: a lookup that hangs does not keep a service from ending.
            self._threads.append(threading.Thread(target=self._work, name="resolving", daemon=True))
            self._threads[-1].start()
        loop = asyncio.get_running_loop()
        asked = _Asked(host, port, family, loop, loop.create_future())
        self._asked.put(asked)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in await asked.found
        ]

    async def close(self) -> None:
        """Nothing to close: it serves every session."""

    def _work(self) -> None:
        while True:
            asked = self._asked.get()
            if asked.found.cancelled():
                continue
            found: Infos | OSError
            try:
                found = socket.getaddrinfo(asked.host, asked.port, asked.family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
            except UnicodeError:
                found = socket.gaierror(socket.EAI_NONAME, "a label of the name is empty or too long")
            except OSError as error:
                found = error
            # The service may have ended meanwhile.
            with contextlib.suppress(RuntimeError):
                asked.loop.call_soon_threadsafe(_answer, asked.found, found)


def _answer(future: asyncio.Future[Infos], found: Infos | OSError) -> None:
    if future.cancelled():
        return
    if isinstance(found, OSError):
        future.set_exception(found)
    else:
        future.set_result(found)
