"""DNS lookups of hosts in callback URLs, in threads of their own.

Rule: a lookup cannot be cancelled, and the host's name servers decide how long it takes. In asyncio's default threads a few slow
hosts would block segments, transcodes and finished files.
"""

from __future__ import annotations

import contextvars
import socket
from collections.abc import Sequence
from typing import Any

from aiohttp.abc import AbstractResolver, ResolveResult

from machine import daemon_threads

THREADS = 16
# Lookups of starts have threads of their own: hosts of many starts that hang would hold up deliveries.
CHECK_THREADS = 4

waiting: contextvars.ContextVar[list[str]] = contextvars.ContextVar("waiting")
"""The hosts whose lookup waits for a thread; a caller that sets a list before it connects sees its own."""
Infos = Sequence[tuple[Any, ...]]  # of socket.getaddrinfo


class Resolver(AbstractResolver):
    """The system's resolver with at most `threads` concurrent lookups. A lookup that is cancelled while it waits never runs."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = daemon_threads.DaemonThreads("dns", threads)

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """The addresses of `host`. Raises OSError (socket.gaierror) when there are none. Without a time limit of its own."""
        waits = waiting.get([])
        waits.append(host)

        def look_up() -> Infos:
            waits.remove(host)
            return _lookup(host, port, family)

        found = await self._threads.run(look_up)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Do nothing: every HTTP session shares this resolver."""


def _lookup(host: str, port: int, family: socket.AddressFamily) -> Infos:
    try:
        return socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError:
        raise socket.gaierror(socket.EAI_NONAME, "a label of the name is empty or too long") from None
