"""How often a message was tried, counted in our own database. Imports `machine`.

The brokers' counts differ (RabbitMQ 3 counts every return, 4.3 none that is asked for with nack), and a count in the process dies
with the process, which is the very case it is wanted for. Rule: a first try costs nothing. What comes again is counted in a
transaction of its own before it is handled, so that a crash leaves it counted; what fails the first time, afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Protocol

import structlog

log = structlog.get_logger()

TRIES_BEFORE_PARKED = 25
RETRY_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# What came back so often is handled one at a time: the process that a message kills takes along what is handled beside it, and
# that must not be counted as often as the culprit.
ALONE_FROM = 3


class Counts(Protocol):
    """Where the counts are kept (store.attempts.Attempts)."""

    async def count(self, message: str) -> int: ...
    async def add(self, message: str) -> int: ...
    async def take_back(self, message: str) -> None: ...
    async def forget(self, message: str) -> None: ...


class TriedTooOften(Exception):
    """It was begun again and again and never ended: it may have ended its process each time."""


class Tries:
    """The tries of the messages of one bus."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._alone = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def begun(self, message: str, *, again: bool) -> AsyncIterator[int]:
        """While a message is tried; gives the tries that are counted, this one included, or 0 for one that does not come `again`.
        Raises TriedTooOften instead of another try."""
        if not again:
            yield 0
            return
        suspect = await self._counts.count(message) >= ALONE_FROM
        async with self._alone if suspect else contextlib.nullcontext():
            if await self._counts.count(message) >= TRIES_BEFORE_PARKED:
                await self._counts.forget(message)
                reason = f"begun {TRIES_BEFORE_PARKED} times and never ended: it may have ended its process each time"
                raise TriedTooOften(reason)
            yield await self._counts.add(message)

    async def failed(self, message: str, counted: int) -> int:
        """A try failed, through a fault of the message's own; returns the tries so far."""
        return counted or await self._counts.add(message)

    async def excused(self, message: str, counted: int) -> None:
        """A try failed through no fault of the message."""
        if counted:
            await self._counts.take_back(message)

    async def over(self, message: str, counted: int) -> None:
        """It is handled, or parked: its count is forgotten, so that it may be sent again."""
        if counted:
            await self._counts.forget(message)


def pause_s(tries: int) -> float:
    """How long to wait after so many tries."""
    return RETRY_S[min(max(tries, 1), len(RETRY_S)) - 1]


def name(*parts: str) -> str:
    """A message's name in the table of counts: publishers choose their ids, in any length and with any characters."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
