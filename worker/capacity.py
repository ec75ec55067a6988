"""Capacity of a worker: pauses new captures while the worker is full, so that other workers take them.

Rule: a limit never ends work that has begun. Captures, transcodes, uploads and deliveries in progress go on.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from machine import errors, model, supervised_task
from worker import cpu_usage

log = structlog.get_logger()

CHECK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptureLimits:
    """Limits on new captures; 0 is no limit. `captures` at a time, `cpu` as the share of this worker's CPUs that live work takes,
    `load` of the last minute per core. `free_bytes` of the spool must stay free."""

    captures: int
    cpu: float
    load: float
    free_bytes: Callable[[], int]


class Capacity:
    """Pauses and resumes a worker's captures. `pause` and `resume` act on the bus (bus.rabbit.RabbitBus) and are idempotent."""

    def __init__(
        self,
        limits: CaptureLimits,
        *,
        pause: Callable[[], Awaitable[None]],
        resume: Callable[[], Awaitable[None]],
        running: Callable[[], int],
        live: cpu_usage.LiveCpu,
        free_bytes: Callable[[], int],
        load: Callable[[], float] = lambda: os.getloadavg()[0] / (os.cpu_count() or 1),
    ) -> None:
        self._limits = limits
        self._pause = pause
        self._resume = resume
        self._running = running
        self._live = live
        self._free_bytes = free_bytes
        self._load = load
        self._reason = ""
        self._lock = asyncio.Lock()
        self.task = supervised_task.SupervisedTask("capacity", self._run)

    async def start(self) -> None:
        """Begin the checks, one every `CHECK_EVERY_S`."""
        self.task.start()

    async def stop(self) -> None:
        """End the checks."""
        await self.task.stop()

    def busy(self) -> str:
        """Why no further capture is taken, apart from the spool; "" if one would be."""
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
        """The spare capacity that this worker publishes with its heartbeat."""
        try:
            return model.SpareCapacity(free_bytes=self._free_bytes(), needed_bytes=self._limits.free_bytes(), busy=self.busy())
        except errors.Unavailable as error:
            # An unreadable spool takes no capture, but it is not full: it may be back in a moment.
            return model.SpareCapacity(free_bytes=None, needed_bytes=0, busy=error.message)

    def full(self) -> str:
        """Why no further capture is taken; "" if one would be."""
        spare = self.spare()
        if spare.free_bytes is None or spare.busy or spare.free_bytes >= spare.needed_bytes:
            return spare.busy
        return f"the spool has {spare.free_bytes >> 20} MiB free, {spare.needed_bytes >> 20} MiB are needed"

    async def admit(self, begin: Callable[[], Awaitable[None]]) -> None:
        """Begin one more capture. Raises Full if the worker is full; the bus then requeues the command for any worker.

        One at a time: commands that were delivered before the consumer was paused arrive here too, and together they would exceed
        the limit."""
        async with self._lock:
            reason = self.full()
            if not reason:
                await begin()
            await self.check()
        if reason:
            raise errors.WorkerFull(f"This worker is full: {reason}.")

    async def _run(self) -> None:
        while True:
            self._live.sample()
            await self.check()
            await asyncio.sleep(CHECK_EVERY_S)

    async def check(self) -> None:
        """Compare once with the limits, and pause or resume."""
        reason = self.full()
        if bool(reason) != bool(self._reason):
            log.info("worker.capacity", full=bool(reason), reason=reason)
        self._reason = reason
        if reason:
            await self._pause()
        else:
            await self._resume()
