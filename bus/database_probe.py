"""Database probe: tells a failing message from a database that does not answer or refuses writes.

Rule: while the database is unavailable no failure counts against a message, no message is parked, and no loop of a bus ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from machine import errors, supervised_task

log = structlog.get_logger()

PING_TIMEOUT_S = 5.0
PING_EVERY_S = 0.5


class DatabaseProbe:
    """Pings the database on behalf of a bus. `ping` raises errors.Unavailable when the database does not
    answer, or refuses writes."""

    def __init__(self, ping: Callable[[], Awaitable[None]]) -> None:
        self._ping = ping

    async def available(self) -> bool:
        """Ping once, for at most `PING_TIMEOUT_S`; returns whether the database can do the work."""
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                await self._ping()
        except (errors.Unavailable, TimeoutError):
            return False
        return True

    async def wait_available(self) -> None:
        """Return as soon as the database can do the work."""
        if await self.available():
            return
        log.warning("bus.database_away")
        while not await self.available():
            await supervised_task.pause(asyncio.Event(), supervised_task.jittered_s(PING_EVERY_S))
        log.info("bus.database_back")
