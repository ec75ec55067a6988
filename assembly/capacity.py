"""How much a worker takes on: it leaves new captures to other workers while it is full, and goes on finishing what it has.

May import `machine` and `media`. Rule: a limit never ends work that has begun.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from machine import background, errors

log = structlog.get_logger()

LOOK_S = 1.0


class Captures(Protocol):
    """The side of the bus that hands captures out (bus.rabbit.RabbitBus)."""

    async def pause_captures(self) -> None: ...
    async def resume_captures(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`captures` at once and `load` (of the last minute, per core): 0 is no limit. `free_bytes` of the spool must be left."""

    captures: int
    load: float
    free_bytes: Callable[[], int]


class Capacity:
    """Pauses and resumes a worker's captures."""

    def __init__(self, bus: Captures, limits: Limits, *, running: Callable[[], int], free_bytes: Callable[[], int]) -> None:
        self._bus = bus
        self._limits = limits
        self._running = running
        self._free_bytes = free_bytes
        self._reason = ""
        self._turn = asyncio.Lock()
        self.watch = background.Background("capacity", self._run)

    async def start(self) -> None:
        """Begin to look."""
        self.watch.start()

    async def stop(self) -> None:
        """End it."""
        await self.watch.stop()

    def full(self) -> str:
        """Why no further capture is taken; "" while there is room."""
        limits = self._limits
        if limits.captures and self._running() >= limits.captures:
            return f"{self._running()} captures run, MAX_CAPTURES is {limits.captures}"
        load = os.getloadavg()[0] / (os.cpu_count() or 1)
        if limits.load and load > limits.load:
            return f"the load per core is {load:.1f}, MAX_LOAD is {limits.load:g}"
        free_bytes, needed_bytes = self._free_bytes(), limits.free_bytes()
        if free_bytes < needed_bytes:
            return f"the spool has {free_bytes >> 20} MiB free, {needed_bytes >> 20} MiB are needed"
        return ""

    async def take(self, begin: Callable[[], Awaitable[None]]) -> None:
        """Begin one more capture, or raise Unavailable, upon which the command goes back for any worker. One at a time: what was
        delivered before the consumer was cancelled comes here as well, and together they would pass the limit."""
        async with self._turn:
            reason = self.full()
            if not reason:
                await begin()
            await self.look()
        if reason:
            raise errors.Unavailable(f"This worker is full: {reason}.")

    async def _run(self) -> None:
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Compare once, and pause or resume."""
        try:
            reason = self.full()
        except errors.Unavailable as error:
            reason = error.message
        if bool(reason) != bool(self._reason):
            log.info("worker.capacity", full=bool(reason), reason=reason)
        self._reason = reason
        if reason:
            await self._bus.pause_captures()
        else:
            await self._bus.resume_captures()
