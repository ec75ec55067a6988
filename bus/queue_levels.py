"""Levels of the recorder's queues, for `recorder doctor`: messages and consumers of each, and which are missing.

Rule: passive declarations only; nothing on the broker changes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aio_pika import exceptions as amqp_errors

from bus import broker_connection
from bus import topology as topologies


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLevel:
    """One queue. `messages` counts those that are ready; both numbers are None if there is no such queue."""

    name: str
    messages: int | None = None
    consumers: int | None = None


async def read(url: str, prefix: str, timeout_s: float) -> list[QueueLevel]:
    """The queues that do not belong to a node and that some node consumes. Raises Unavailable."""
    topology = topologies.Topology(prefix)
    names = [queue.name for queue in topology.queues() if queue != topology.unheard]
    found = []
    with broker_connection.translate_errors("reading the queues"):
        async with asyncio.timeout(timeout_s):
            connection = await broker_connection.connect(url, "recorder doctor")
            try:
                for name in names:
                    try:
                        # A missing queue closes the channel.
                        async with connection.channel() as channel:
                            seen = (await channel.declare_queue(name, passive=True)).declaration_result
                    except amqp_errors.ChannelNotFoundEntity:
                        found.append(QueueLevel(name=name))
                    else:
                        found.append(QueueLevel(name=name, messages=seen.message_count, consumers=seen.consumer_count))
            finally:
                await connection.close()
    return found
