"""Free space of the spool's file system, measured in a thread because a network file system may hang.

Rule: a figure is at most a few seconds old. A file system that does not answer has none, so the worker takes no capture.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from machine import errors
from media import file_threads, spool

STALE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One measurement; `failed` is the reason why there are no figures."""

    at_s: float
    free_bytes: int = 0
    total_bytes: int = 0
    failed: str = ""


class FreeSpace:
    """The free space of one spool."""

    def __init__(self, folder: spool.Spool, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self.root = folder.root
        self._spool = folder
        self._clock_s = clock_s
        self._hangs = f"The spool {folder.root} does not answer. Check its disk or mount, then try again."
        self._last = Measured(at_s=clock_s(), failed=self._hangs)
        self._measuring: asyncio.Task[Measured] | None = None

    async def measure(self) -> None:
        """Measure, and wait a moment for the answer. A measurement that hangs goes on, and no other one begins."""
        if self._measuring is None:
            self._measuring = asyncio.create_task(file_threads.LIVE.run(self._measure))
        measuring = self._measuring
        await asyncio.wait((measuring,), timeout=file_threads.ANSWER_S)
        if measuring.done() and measuring is self._measuring:
            self._measuring = None
            self._last = measuring.result()

    async def stop(self) -> None:
        """Forget a measurement that hangs. Safe to call twice."""
        measuring, self._measuring = self._measuring, None
        if measuring is not None:
            measuring.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await measuring

    def free_bytes(self) -> int:
        """Free bytes for this process. Raises errors.Unavailable if they are not known."""
        return self._figures().free_bytes

    def total_bytes(self) -> int:
        """The size of the file system in bytes. Raises errors.Unavailable if it is not known."""
        return self._figures().total_bytes

    def _figures(self) -> Measured:
        last = self._last
        if last.failed:
            raise errors.Unavailable(last.failed)
        if self._clock_s() - last.at_s > STALE_S:
            raise errors.Unavailable(self._hangs)
        return last

    def _measure(self) -> Measured:
        at_s = self._clock_s()
        try:
            free_bytes, total_bytes = self._spool.space()
        except errors.Unavailable as error:
            return Measured(at_s=at_s, failed=error.message)
        return Measured(at_s=at_s, free_bytes=free_bytes, total_bytes=total_bytes)
