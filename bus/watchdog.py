"""Finds a consumer that went deaf and has its session rebuilt. Imports `machine`.

Rule: what the broker says counts, not what the library believes. A consumer is deaf when its queue has no consumer at all, or
when messages wait there, there is room for them, and none came between two looks in a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from bus import broker_connection as links
from bus import consumer as consumers
from machine import errors, supervised_task

log = structlog.get_logger()

LOOK_EVERY_S = 5.0
ANSWER_LIMIT_S = 5.0


class Watchdog:
    """Looks at all consumers every few seconds."""

    def __init__(self, link: links.Link, watched: Sequence[consumers.Consumer], *, every_s: float = LOOK_EVERY_S) -> None:
        self._link = link
        self._watched = watched
        self._every_s = every_s
        self._quiet: dict[str, int] = {}
        self.loop = supervised_task.SupervisedTask("bus.watchdog", self._run)

    async def _run(self) -> None:
        while True:
            await supervised_task.pause(asyncio.Event(), self._every_s)
            session = self._link.present
            if session is None:
                self._quiet.clear()
                continue
            try:
                reason = await self._deaf(session)
            except errors.Unavailable as error:
                reason = error.message
            if reason:
                log.error("bus.deaf", reason=reason)
                self._quiet.clear()
                session.end(reason)

    async def _open(self, watched: consumers.Consumer, session: links.Session) -> None:
        try:
            await watched.open(session)
        except errors.Unavailable as error:
            log.error("bus.queue_silent", queue=watched.queue.name, reason=error.message)

    async def _deaf(self, session: links.Session) -> str:
        """What is wrong, "" if nothing is. Raises Unavailable when the broker does not answer."""
        for watched in [w for w in self._watched if w.wanted]:
            name = watched.queue.name
            if not watched.open_now:
                await self._open(watched, session)
                continue
            if watched.lost:
                return f"the consumer of {name} is forgotten"
            before = self._quiet.pop(name, -1)
            with links.wrapped(f"looking at {name}"):
                async with asyncio.timeout(ANSWER_LIMIT_S):
                    found = (await session.asking.declare_queue(name, passive=True)).declaration_result
            if not found.consumer_count and watched.wanted:
                return f"{name} has no consumer"
            if found.message_count and watched.has_room:
                if before == watched.taken:
                    return f"{found.message_count} messages wait in {name} and none comes"
                self._quiet[name] = watched.taken
        return ""
