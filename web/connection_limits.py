"""Limits of a connection before authentication: the number of connections, and the time for the head of a request.

Rules: captures come first. Open connections need no key, so they must not use up the descriptors of ffmpeg, segments and the
database. A connection above the limit is closed, unless it asks for a probe at once. A supervisor must not take a busy service
for a dead one.
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
"""From the connection, or from the first byte of a further request, to the end of the request's head."""
SHARE = 4
FEWEST, MOST = 16, 1_024
# Connections above the limit that may still ask for a probe. A newer one replaces the oldest.
RESERVED = 32
# Connections accepted in one turn of the event loop. Those above the limit are closed before the next turn.
ACCEPTED_AT_ONCE = 16
PROBES = (b"GET /healthz", b"GET /readyz")
LOG_EVERY_S = 10.0

_reserved: dict[LimitedProtocol, None] = {}


def max_connections() -> int:
    """A quarter of the process's descriptors, from FEWEST to MOST."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST if soft == resource.RLIM_INFINITY else min(max(FEWEST, soft // SHARE), MOST)


class ClosedConnections:
    """Logs the number of closed connections every LOG_EVERY_S at most: an attacker must not be able to fill the log."""

    def __init__(self) -> None:
        self._closed = 0
        self._next_log_s = 0.0

    def note(self, reason: str) -> None:
        """Count one closed connection."""
        self._closed += 1
        if time.monotonic() >= self._next_log_s:
            log.warning("http.connections_closed", reason=reason, connections=self._closed)
            self._closed, self._next_log_s = 0, time.monotonic() + LOG_EVERY_S


CLOSED = ClosedConnections()


class LimitedProtocol(h11_impl.H11Protocol):
    """uvicorn's protocol within these limits. uvicorn itself closes a connection that is idle after an answer."""

    _deadline: asyncio.TimerHandle | None = None
    _begun: bytes | None = None
    """The first bytes of a connection above the limit; None: any other one."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As asyncio's."""
        super().connection_made(transport)
        if len(self.connections) - len(_reserved) > max_connections():
            self._reserve()
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        """As asyncio's."""
        if self._begun is not None and (data := self._probe(data)) == b"":
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            self._start_deadline()
        else:
            self._cancel_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""
        self._cancel_deadline()
        _reserved.pop(self, None)
        super().connection_lost(exc)

    def _reserve(self) -> None:
        """Wait for the request of a probe in one of the reserved places."""
        self._begun = b""
        _reserved[self] = None
        if len(_reserved) > RESERVED:
            next(iter(_reserved))._refuse()

    def _probe(self, data: bytes) -> bytes:
        """What has arrived, once it is known to be a probe's request; b"" before, and for any other request, which is refused."""
        self._begun = begun = (self._begun or b"") + data
        if begun.startswith(PROBES):
            self._begun = None
            return begun
        if not any(probe.startswith(begun) for probe in PROBES):
            self._refuse()
        return b""

    def _refuse(self) -> None:
        _reserved.pop(self, None)
        CLOSED.note("too many")
        self.transport.abort()

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_S, self._expire)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        CLOSED.note("no request came")
        self.transport.abort()
