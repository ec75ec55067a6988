"""Whether the database answers: what tells a message that fails from a database that is away. Imports `machine`.

Rule: while the database is away nothing is a message's fault. Nothing is counted against it, nothing is parked, no loop ends.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from bus import attempts
from machine import errors, ports, supervised_task

log = structlog.get_logger()

PING_LIMIT_S = 5.0
ASK_EVERY_S = 0.5


class Store(ports.Store, Protocol):
    """A store that can be asked whether it answers, and counts tries (store.store.Store)."""

    @property
    def attempts(self) -> attempts.Counts: ...
    async def ping(self) -> None: ...


class Presence:
    """Asks the database, for all loops of a bus."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def answers(self) -> bool:
        """Whether the database answers now."""
        try:
            async with asyncio.timeout(PING_LIMIT_S):
                await self._store.ping()
        except (errors.Unavailable, TimeoutError):
            return False
        return True

    async def back(self) -> None:
        """Wait until the database answers."""
        if await self.answers():
            return
        log.warning("bus.database_away")
        while not await self.answers():
            await supervised_task.pause(asyncio.Event(), ASK_EVERY_S)
        log.info("bus.database_back")
