"""Lets the listeners of a node hear the results of all nodes as they go out: what waits in the HTTP API wakes. Imports `events`.

Rule: a hint, and no more. The queue goes with the connection, and a result that is not heard is found in the database.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from aio_pika import abc

from bus import broker_connection as links
from events import codec
from events import errors as event_errors

log = structlog.get_logger()


async def listen(session: links.Session, heard: Callable[[codec.Event], None]) -> None:
    """Call `heard` with every result that is published, for as long as the session lives."""

    async def take(message: abc.AbstractIncomingMessage) -> None:
        try:
            event = codec.decode(message.body, now_ms=time.time_ns() // 1_000_000)
        except event_errors.InvalidEvent as error:
            log.info("bus.not_heard", key=message.routing_key, reason=str(error))
            return
        heard(event)

    channel = await session.channel()
    queue = await channel.declare_queue(exclusive=True)
    await queue.bind(session.topology.exchange, "result.#")
    await queue.consume(take, no_ack=True)
