"""What a connection may cost before it has asked anything: how many there may be, and how long a request's head may take.

Imports nothing of ours. Rule: descriptors are the captures' first. Who holds connections open, without a key even, must not take
those that ffmpegs, segments and the database need; what comes above the limit is closed before a byte of it is read.
"""

from __future__ import annotations

import asyncio
import resource
import time

import h11
import structlog
from uvicorn.protocols.http import h11_impl

log = structlog.get_logger()

HEAD_S = 10.0
"""From the connection, or the first byte of a further request, to the end of its head."""
SHARE = 4
FEWEST, MOST = 16, 1_024
TELL_EVERY_S = 10.0


def most() -> int:
    """How many connections there may be: a quarter of the process's descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else min(max(FEWEST, soft // SHARE), MOST)


class Told:
    """Says how many were closed, every ten seconds at most: the log must not be what an attacker fills."""

    def __init__(self) -> None:
        self._closed = 0
        self._again_s = 0.0

    def note(self, reason: str) -> None:
        """One more."""
        self._closed += 1
        if time.monotonic() >= self._again_s:
            log.warning("http.connections_closed", reason=reason, connections=self._closed)
            self._closed, self._again_s = 0, time.monotonic() + TELL_EVERY_S


TOLD = Told()


class Limited(h11_impl.H11Protocol):
    """uvicorn's protocol, within these limits. An idle connection that has been answered is uvicorn's to close."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio's."""
        super().connection_made(transport)
        if len(self.connections) > most():
            TOLD.note("too many")
            transport.abort()
            return
        self._expect()

    def data_received(self, data: bytes) -> None:
        """As asyncio's."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._expect()
        else:
            self._arrived()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""
        self._arrived()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self._too_slow)

    def _arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        TOLD.note("no request came")
        self.transport.abort()
