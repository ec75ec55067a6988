"""How much a worker takes on: it leaves new captures to other workers while it is full, and goes on finishing what it has.

May import `machine`. Rule: a limit never ends work that has begun.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from machine import errors, model, supervised_task
from worker import cpu_usage

log = structlog.get_logger()

LOOK_S = 1.0


class Captures(Protocol):
    """The side of the bus that hands captures out (bus.rabbit.RabbitBus)."""

    async def pause_captures(self) -> None: ...
    async def resume_captures(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """`captures` at once, `cpu` (share of this worker's CPUs that live work takes), `load` (of the last minute, per core); 0 is
    no limit. `free_bytes` of the spool must be left."""

    captures: int
    cpu: float
    load: float
    free_bytes: Callable[[], int]


class Capacity:
    """Pauses and resumes a worker's captures."""

    def __init__(
        self,
        bus: Captures,
        limits: Limits,
        *,
        running: Callable[[], int],
        live: cpu_usage.LiveCpu,
        free_bytes: Callable[[], int],
        load: Callable[[], float] = lambda: os.getloadavg()[0] / (os.cpu_count() or 1),
    ) -> None:
        self._bus = bus
        self._limits = limits
        self._live = live
        self._load = load
        self._running = running
        self._free_bytes = free_bytes
        self._reason = ""
        self._turn = asyncio.Lock()
        self.watch = supervised_task.SupervisedTask("capacity", self._run)

    async def start(self) -> None:
        """Begin to look."""
        self.watch.start()

    async def stop(self) -> None:
        """End it."""
        await self.watch.stop()

    def busy(self) -> str:
        """Why no further capture is taken whatever the spool has free; "" while one would be."""
        limits, share = self._limits, self._live.share
        if limits.captures and self._running() >= limits.captures:
            return f"{self._running()} captures run, MAX_CAPTURES is {limits.captures}"
        if limits.cpu and share > limits.cpu:
            return f"live work takes {share:.0%} of the CPUs, MAX_CPU is {limits.cpu:.0%}"
        load = self._load()
        if limits.load and load > limits.load:
            return f"the load per core is {load:.1f}, MAX_LOAD is {limits.load:g}"
        return ""

    def spare(self) -> model.SpareCapacity:
        """What this worker says of itself to those who take starts."""
        try:
            return model.SpareCapacity(free_bytes=self._free_bytes(), needed_bytes=self._limits.free_bytes(), busy=self.busy())
        except errors.Unavailable as error:
            # Nothing is captured to a spool that is not there, but a full one it is not: in a moment it may be back.
            return model.SpareCapacity(free_bytes=None, needed_bytes=0, busy=error.message)

    def full(self) -> str:
        """Why no further capture is taken; "" while there is room."""
        spare = self.spare()
        if spare.free_bytes is None or spare.busy or spare.free_bytes >= spare.needed_bytes:
            return spare.busy
        return f"the spool has {spare.free_bytes >> 20} MiB free, {spare.needed_bytes >> 20} MiB are needed"

    async def take(self, begin: Callable[[], Awaitable[None]]) -> None:
        """Begin one more capture, or raise Full, upon which the command goes back for any worker. One at a time: what was
        delivered before the consumer was cancelled comes here as well, and together they would pass the limit."""
        async with self._turn:
            reason = self.full()
            if not reason:
                await begin()
            await self.look()
        if reason:
            raise errors.Full(f"This worker is full: {reason}.")

    async def _run(self) -> None:
        while True:
            self._live.look()
            await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Compare once, and pause or resume."""
        reason = self.full()
        if bool(reason) != bool(self._reason):
            log.info("worker.capacity", full=bool(reason), reason=reason)
        self._reason = reason
        if reason:
            await self._bus.pause_captures()
        else:
            await self._bus.resume_captures()
