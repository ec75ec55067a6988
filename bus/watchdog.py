"""Watchdog of the consumers: detects a deaf consumer and rebuilds its session. It also removes bindings of earlier versions,
which a node of such a version declares again.

Rule: the broker's figures count, not the library's state. A consumer is deaf when its queue has no consumer at all. It is also
deaf when messages wait, it is below its prefetch, and none arrived between two checks in a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from bus import broker_connection
from bus import consumer as consumers
from bus import topology as topologies
from machine import errors, supervised_task

log = structlog.get_logger()

CHECK_EVERY_S = 5.0
REPLY_TIMEOUT_S = 5.0


class Watchdog:
    """Checks all consumers every `every_s` seconds."""

    def __init__(
        self,
        connection: broker_connection.BrokerConnection,
        watched: Sequence[consumers.Consumer],
        *,
        every_s: float = CHECK_EVERY_S,
    ) -> None:
        self._connection = connection
        self._watched = watched
        self._every_s = every_s
        # Messages received up to the last check, for queues in which messages waited then.
        self._received_before: dict[str, int] = {}
        self.task = supervised_task.SupervisedTask("bus.watchdog", self._run)

    async def _run(self) -> None:
        while True:
            await supervised_task.pause(asyncio.Event(), self._every_s)
            session = self._connection.current
            if session is None:
                self._received_before.clear()
                continue
            try:
                reason = await self._check(session)
            except errors.Unavailable as error:
                reason = error.message
            if reason:
                log.error("bus.deaf", reason=reason)
                self._received_before.clear()
                session.end(reason)

    async def _reopen(self, watched: consumers.Consumer, session: broker_connection.BrokerSession) -> None:
        try:
            await watched.open(session)
        except errors.Unavailable as error:
            log.error("bus.queue_silent", queue=watched.queue.name, reason=error.message)

    async def _check(self, session: broker_connection.BrokerSession) -> str:
        """Find a deaf consumer; returns the reason, or "". Raises Unavailable when the broker does not answer."""
        for watched in [w for w in self._watched if w.enabled]:
            name = watched.queue.name
            if not watched.is_open:
                await self._reopen(watched, session)
                continue
            if watched.forgotten:
                return f"the consumer of {name} is forgotten"
            before = self._received_before.pop(name, -1)
            with broker_connection.translate_errors(f"checking {name}"):
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    found = (await session.declaring.declare_queue(name, passive=True)).declaration_result
            if not found.consumer_count and watched.enabled:
                return f"{name} has no consumer"
            if found.message_count and watched.below_prefetch:
                if before == watched.received:
                    return f"{found.message_count} messages wait in {name} and none comes"
                self._received_before[name] = watched.received
        await self._retire(session)
        await self._count_dead_letters(session)
        return ""

    async def _retire(self, session: broker_connection.BrokerSession) -> None:
        with broker_connection.translate_errors("removing bindings"):
            async with asyncio.timeout(REPLY_TIMEOUT_S):
                queues = [each.queue for each in self._watched if each.is_open]
                await topologies.retire(session.declaring, session.topology, queues)

    async def _count_dead_letters(self, session: broker_connection.BrokerSession) -> None:
        """Count on a channel of its own: a dead letter queue that does not answer must not end the session of all others."""
        try:
            with broker_connection.translate_errors("counting dead letters"):
                async with asyncio.timeout(REPLY_TIMEOUT_S):
                    counting = await session.unguarded_counting()
                    parked = await counting.declare_queue(session.topology.parked, passive=True)
        except errors.Unavailable as error:
            log.warning("bus.parked_not_counted", reason=error.message)
            self._connection.dead_letters.count = None
            return
        self._connection.dead_letters.count = parked.declaration_result.message_count
