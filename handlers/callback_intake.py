"""Intake of TRTC's callbacks: presence in batches, all else by a decision.

Rules: a callback is answered after the commit of its batch or decision. One about a room without an unfinished session gets no
row in the inbox and no journal line, because a repeat or another order changes nothing (machine/presence.py). The number of
waiting callbacks is bounded, and so is their time: a refused callback is repeated as one without an answer is, but costs less.
Source: TRTC waits 5 s for an answer, and repeats a callback for one minute.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from events import codec
from handlers import trtc_events
from machine import batches, errors, ports, presence

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
        self._batches = batches.Batches("callback-intake", self._note, at_most=MAX_BATCH)
        self._taken = 0

    @property
    def busy(self) -> bool:
        """Whether callbacks are being taken at this moment."""
        return self._taken > 0

    async def take(self, event: codec.Event) -> None:
        """Take one callback; returns after the commit. Raises Unavailable if too many wait, or after `ANSWER_S`."""
        if self._taken >= MAX_WAITING:
            raise errors.Unavailable(OVERLOADED)
        self._taken += 1
        try:
            async with asyncio.timeout(ANSWER_S):
                report = trtc_events.presence_report(event)
                if report is None or not await self._batches.run(report):
                    await self._decide(event)
        except TimeoutError:
            raise errors.Unavailable(OVERLOADED) from None
        finally:
            self._taken -= 1

    async def _note(self, reports: Sequence[presence.Report]) -> Sequence[bool]:
        try:
            return await self._store.note(reports)
        except Exception as error:  # noqa: BLE001 - not swallowed: each callback is decided alone, and meets its own error
            log.info("callbacks.decided_alone", callbacks=len(reports), reason=type(error).__name__)
            return [False] * len(reports)
