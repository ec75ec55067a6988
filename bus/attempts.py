"""Attempt counts of messages, kept in the recorder's own database.

Brokers count differently: RabbitMQ 3 counts every return, 4.3 counts none that a consumer requests with nack. A count in the
process dies with the process, and a message that kills its process is the case that counts exist for.

Rule: a first attempt costs no write. A redelivered message is counted in a transaction of its own before it is handled, so the
count survives a crash. A first failure is counted afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator

from machine import ports

MAX_ATTEMPTS = 25
BACKOFF_S = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
# From this count on, a message is handled alone. A message that kills its process takes the messages in flight with it, and those
# must not be counted as often as the culprit.
ISOLATE_FROM = 3


class AttemptsExhausted(Exception):
    """A message was begun `MAX_ATTEMPTS` times and never ended: it may have ended its process each time."""


class Isolated(Exception):
    """Another suspect message is handled now, and this one must be handled alone too."""


class AttemptTracker:
    """Counts the attempts of one bus's messages. Messages are named by `key`."""

    def __init__(self, counts: ports.Attempts) -> None:
        self._counts = counts
        self._isolation = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def attempt(self, message: str, *, redelivered: bool) -> AsyncIterator[int]:
        """Enclose one attempt; yields the count with this attempt, or 0 for a first delivery. Raises AttemptsExhausted, and
        Isolated instead of waiting, because a message that waits would hold a slot of the others."""
        if not redelivered:
            yield 0
            return
        suspect = await self._counts.count(message) >= ISOLATE_FROM
        if suspect and self._isolation.locked():
            raise Isolated
        async with self._isolation if suspect else contextlib.nullcontext():
            if await self._counts.count(message) >= MAX_ATTEMPTS:
                await self._counts.forget(message)
                reason = f"begun {MAX_ATTEMPTS} times and never ended: it may have ended its process each time"
                raise AttemptsExhausted(reason)
            yield await self._counts.add(message)

    async def record_failure(self, message: str, counted: int) -> int:
        """Count a failure that is the message's own; returns the attempts so far."""
        return counted or await self._counts.add(message)

    async def uncount(self, message: str, counted: int) -> None:
        """Take back the count of an attempt that failed through no fault of the message."""
        if counted:
            await self._counts.take_back(message)

    async def forget(self, message: str, counted: int) -> None:
        """Delete the count of a handled or parked message, so that it can be sent again."""
        if counted:
            await self._counts.forget(message)


def backoff_s(attempts: int) -> float:
    """Seconds to wait after so many attempts."""
    return BACKOFF_S[min(max(attempts, 1), len(BACKOFF_S)) - 1]


def key(*parts: str) -> str:
    """A message's key in the table of counts. A digest, because publishers choose ids of any length and characters."""
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
