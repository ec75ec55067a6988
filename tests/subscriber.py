"""An application that subscribes to results, as docs/subscribe.md describes, and writes every delivery to a file, one line of
JSON each.

Rule: it knows only the broker: a durable queue of its own that exists before the first session, acknowledged only after the
write, and a reconnect whenever the broker returns.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import aio_pika
from aio_pika import abc, exceptions

from bus import topology
from tests import waiting

HEARTBEAT_S = 10
AT_ONCE = 16
GONE = (*exceptions.CONNECTION_EXCEPTIONS, exceptions.ChannelInvalidStateError)


class Subscriber:
    """Consumes `result.#` of the recorder under `prefix` into the file `path`: {"Key", "Id", "Body"} of each delivery."""

    def __init__(self, url: str, prefix: str, path: Path) -> None:
        self._url = url
        self._topology = topology.Topology(prefix)
        self._name = f"{prefix}.heard"
        self._connection: abc.AbstractRobustConnection | None = None
        self.path = path
        self.came_back = 0

    async def start(self) -> None:
        """Declare the queue, and start consuming. The exchange may not exist yet: nodes declare it the same."""
        self.path.touch()
        connection = self._connection = await aio_pika.connect_robust(self._url, heartbeat=HEARTBEAT_S)
        connection.reconnect_callbacks.add(self._back)
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=AT_ONCE)
        await topology.declare(channel, self._topology)
        queue = await channel.declare_queue(self._name, durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(self._topology.exchange, "result.#")
        await queue.consume(self._take)

    async def stop(self) -> None:
        """Consume the rest: messages in the queue, and unacknowledged ones. Then delete the queue."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        await connection.close()
        async with await aio_pika.connect(self._url) as last, last.channel() as channel:

            async def unheld() -> bool:
                told = await channel.declare_queue(self._name, passive=True)
                return not told.declaration_result.consumer_count

            await waiting.until(unheld, what=f"nobody to consume {self._name}", every_s=0.1)
            queue = await channel.get_queue(self._name, ensure=False)
            while (message := await queue.get(fail=False)) is not None:
                await self._take(message)
            await channel.queue_delete(self._name)

    async def _take(self, message: abc.AbstractIncomingMessage) -> None:
        heard = {"Key": message.routing_key, "Id": message.message_id, "Body": message.body.decode()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(heard, ensure_ascii=False) + "\n")
        # After a lost connection a message is redelivered, which a subscriber has to expect.
        with contextlib.suppress(*GONE):
            await message.ack()

    def _back(self, *_: object) -> None:
        self.came_back += 1
