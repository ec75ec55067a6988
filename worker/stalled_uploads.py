"""Stalled uploads: a bucket that takes requests and never answers holds no slot that an upload to another bucket waits for.

Rules:
- An upload has stalled when COS has confirmed nothing of it for STALLED_S. While uploads to other buckets wait, it takes no slot.
- A bucket has at most as many uploads as the worker has slots, and all together have MOST times as many.
- Without an upload to another bucket that waits, nothing of this applies. Where there is one bucket, it has all slots as ever.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import structlog

from machine import states
from worker import leased_job

log = structlog.get_logger()

STALLED_S = 1.0
MOST = 8
# A database that takes longer than the time between two looks holds up nothing else here.
LOOK_S = 1.0


class StalledUploads:
    """The uploads of one worker with so many `slots`, of which `jobs` are its jobs.

    `others_wait` tells whether an upload to none of these buckets is queued, and `is_to` whether the uploads of a session go to
    one of them; both raise DatabaseUnavailable."""

    def __init__(
        self,
        jobs: Mapping[Any, leased_job.AnyJob],
        *,
        slots: int,
        others_wait: Callable[[Collection[str]], Awaitable[bool]],
        is_to: Callable[[str, Collection[str]], Awaitable[bool]],
    ) -> None:
        self._jobs = jobs
        self._waits = others_wait
        self._is_to = is_to
        self._slots = slots
        self._others_wait = False

    def left(self) -> int:
        """How many running uploads leave their slots to others now."""
        if not self._others_wait:
            return 0
        return min(len(self._stalled()), (MOST - 1) * self._slots)

    async def look(self) -> None:
        """Find out whether anybody waits for the slot of an upload that has stalled; reads the database only if one does."""
        waits = False
        if self._stalled():
            try:
                async with asyncio.timeout(LOOK_S):
                    waits = await self._waits(self._full_buckets())
            except Exception as error:  # noqa: BLE001 - not swallowed: logged; nothing can be taken while the database is away
                log.warning("worker.queue_unread", reason=type(error).__name__)
        self._others_wait = waits

    async def refusal(self, task_id: str) -> str:
        """Why one more upload of this session has to wait although a slot is free; "" if it need not. Raises
        DatabaseUnavailable."""
        full = self._full_buckets() if self.left() else []
        if full and await self._is_to(task_id, full):
            return f"{self._slots} uploads to its bucket run"
        return ""

    def _uploads(self) -> list[leased_job.AnyJob]:
        return [job for job in self._jobs.values() if job.kind == states.UPLOAD and not job.ended]

    def _stalled(self) -> list[leased_job.AnyJob]:
        since_s = time.monotonic() - STALLED_S
        return [job for job in self._uploads() if job.bucket and job.moved_s < since_s]

    def _full_buckets(self) -> list[str]:
        """Those that get no further slot. An upload whose bucket is not read yet, which takes a moment, may be to any."""
        running = Counter(job.bucket for job in self._uploads())
        unknown = running.pop("", 0)
        return [bucket for bucket, count in running.items() if count + unknown >= self._slots]
