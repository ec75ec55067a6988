"""Intake of TRTC's callbacks: presence in batches, all else by a decision.

Rules: a callback is answered after the commit of its batch or decision. One about a room without an unfinished session gets no
row in the inbox and no journal line, because a repeat or another order changes nothing (machine/presence.py). The number of
waiting callbacks is bounded, and so is their time: a refused callback is repeated as one without an answer is, but costs less.
Source: TRTC waits 5 s for an answer, and repeats a callback for one minute.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from events import codec
from handlers import trtc_events
from machine import errors, ports, presence

MAX_WAITING = 2_000
MAX_BATCH = 200
ANSWER_S = 4.0
OVERLOADED = "Too many callbacks wait, or the database is slow. TRTC repeats this one."

log = structlog.get_logger()


class CallbackIntake:
    """Takes the callbacks of one node. `decide` decides an event whose room may have a session."""

    def __init__(self, store: ports.Presence, decide: Callable[[codec.Event], Awaitable[Any]]) -> None:
        self._store = store
        self._decide = decide
        self._waiting: deque[tuple[presence.Report, asyncio.Future[bool]]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._taken = 0

    async def take(self, event: codec.Event) -> None:
        """Take one callback; returns after the commit. Raises Unavailable if too many wait, or after `ANSWER_S`."""
        if self._taken >= MAX_WAITING:
            raise errors.Unavailable(OVERLOADED)
        self._taken += 1
        try:
            async with asyncio.timeout(ANSWER_S):
                if not await self._is_noted(event):
                    await self._decide(event)
        except TimeoutError:
            raise errors.Unavailable(OVERLOADED) from None
        finally:
            self._taken -= 1

    async def _is_noted(self, event: codec.Event) -> bool:
        report = trtc_events.presence_report(event)
        if report is None:
            return False
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((report, done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="callback-intake")
        return await done

    async def _run(self) -> None:
        while self._waiting:
            taken = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            batch = [(report, done) for report, done in taken if not done.done()]
            try:
                noted = await self._store.note([report for report, _ in batch])
            except Exception as error:  # noqa: BLE001 - not swallowed: each callback is decided alone, and meets its own error
                log.info("callbacks.decided_alone", callbacks=len(batch), reason=type(error).__name__)
                noted = [False] * len(batch)
            for (_, done), each in zip(batch, noted, strict=True):
                if not done.done():
                    done.set_result(each)
