"""DNS lookups of hosts in callback URLs, in threads of their own.

Rule: a lookup cannot be cancelled, and the host's name servers decide how long it takes. In asyncio's default threads a few slow
hosts would block segments, transcodes and finished files.
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

Infos = Sequence[tuple[Any, ...]]  # of socket.getaddrinfo


class _Lookup(NamedTuple):
    host: str
    port: int
    family: socket.AddressFamily
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[Infos]


class Resolver(AbstractResolver):
    """The system's resolver with at most `THREADS` concurrent lookups. A lookup that is cancelled while it waits never runs."""

    def __init__(self) -> None:
        self._lookups: queue.SimpleQueue[_Lookup] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of `host`. Raises OSError (socket.gaierror) when there are none. Without a time limit of its own."""
        if len(self._threads) < THREADS:
            # Daemons, so that a hanging lookup does not keep the process from ending.
            self._threads.append(threading.Thread(target=self._run, name="dns", daemon=True))
            self._threads[-1].start()
        loop = asyncio.get_running_loop()
        lookup = _Lookup(host, port, family, loop, loop.create_future())
        self._lookups.put(lookup)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in await lookup.result
        ]

    async def close(self) -> None:
        """Do nothing: every HTTP session shares this resolver."""

    def _run(self) -> None:
        while True:
            lookup = self._lookups.get()
            if lookup.result.cancelled():
                continue
            found: Infos | OSError
            try:
                found = socket.getaddrinfo(
                    lookup.host, lookup.port, lookup.family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG
                )
            except UnicodeError:
                found = socket.gaierror(socket.EAI_NONAME, "a label of the name is empty or too long")
            except OSError as error:
                found = error
            # The event loop may be closed by now.
            with contextlib.suppress(RuntimeError):
                lookup.loop.call_soon_threadsafe(_set, lookup.result, found)


def _set(future: asyncio.Future[Infos], found: Infos | OSError) -> None:
    if future.cancelled():
        return
    if isinstance(found, OSError):
        future.set_exception(found)
    else:
        future.set_result(found)
