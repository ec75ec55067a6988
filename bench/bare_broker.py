"""The bare loop over RabbitMQ: consume, write the same rows in the same batches, publish with confirmations. No logic.

Rule: the driver is that of `lives.OverRabbit`. Lives are closed loops in the same process, each event is published with a
confirmation, and a life ends when its result arrives. Queues and arguments are those of the recorder, under another prefix.
Messages are acknowledged after the commit. The outbox rows are marked as sent in the transaction of a later batch.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import aio_pika
import asyncpg
from aio_pika import abc

from bench import bare, lives, replay, write_log
from bus import rabbit as rabbit_bus
from bus import topology as topologies

_MARK = "UPDATE outbox SET sent_ms = $1 WHERE task_id = $2 AND type = $3"


class ReplayBroker:
    """Rows of whole lives, written for messages."""

    def __init__(self, pool: asyncpg.Pool[Any], broker: str, steps: Sequence[write_log.Step]) -> None:
        self._pool = pool
        self._broker = broker
        self._steps = steps
        self._writes = [step.writes("${}") for step in steps]
        self._topology = topologies.Topology("bare")
        self._numbers = itertools.count()
        self._received: asyncio.Queue[abc.AbstractIncomingMessage] = asyncio.Queue()
        self._committing: dict[str, asyncio.Future[None]] = {}
        self._expecting: dict[str, asyncio.Future[None]] = {}
        self._to_mark: list[tuple[int, str, str]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._done = 0

    @classmethod
    async def open(cls, url: str, broker: str, steps: Sequence[write_log.Step]) -> ReplayBroker:
        """Create the tables and the queues, and connect."""
        await replay.create_tables(url)
        made = cls(await bare.connect_pool(url), broker, steps)
        await made._connect()
        return made

    async def _connect(self) -> None:
        self._driver, self._node = await aio_pika.connect(self._broker), await aio_pika.connect(self._broker)
        self._channels = [await self._driver.channel(on_return_raises=True), await self._node.channel(on_return_raises=True)]
        channel = self._channels[1]
        await topologies.declare(channel, self._topology)
        await topologies.declare_queues(channel, self._topology, self._topology.node("n1"))
        self._exchanges = [await each.get_exchange(self._topology.exchange, ensure=False) for each in self._channels]
        await channel.set_qos(prefetch_count=rabbit_bus.MACHINES_PREFETCH)
        for queue in (self._topology.requests, self._topology.machines):
            await (await channel.get_queue(queue.name, ensure=False)).consume(self._received.put)
        results = await channel.declare_queue(exclusive=True)
        await results.bind(self._topology.exchange, "result.#")
        await results.consume(self._on_result, no_ack=True)

    async def run(self, seconds: float, batch: int) -> tuple[int, float]:
        """(events, seconds)."""
        self._done = 0
        writers = [asyncio.create_task(self._write(batch)) for _ in range(replay.writers(batch))]
        counted = await lives.in_window(self._life, replay.IN_FLIGHT, seconds, lambda: self._done)
        for each in writers:
            each.cancel()
        await asyncio.gather(*writers, *self._tasks, return_exceptions=True)
        await lives.purge(self._channels[0], self._topology)
        return counted

    async def close(self) -> None:
        """Close everything."""
        for connection in (self._driver, self._node):
            await connection.close()
        await self._pool.close()

    async def _life(self) -> None:
        number = next(self._numbers)
        life = write_log.Life.numbered(number)
        result = self._expecting[str(number)] = asyncio.get_running_loop().create_future()
        for at, step in enumerate(self._steps):
            committed = self._committing[f"{number}.{at}"] = asyncio.get_running_loop().create_future()
            await self._publish(0, f"event.{step.type}", life.fill(step.body), f"{number}.{at}")
            await committed
            self._done += 1
        await result

    async def _publish(self, by: int, key: str, body: str, id_: str) -> None:
        message = aio_pika.Message(body.encode(), message_id=id_, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await self._exchanges[by].publish(message, key, mandatory=not key.startswith("result."))

    async def _on_result(self, message: abc.AbstractIncomingMessage) -> None:
        if message.routing_key == "result.session-finished" and message.message_id is not None:
            self._expecting.pop(message.message_id).set_result(None)

    async def _write(self, most: int) -> None:
        """Write batches of what has arrived, at most so many events in each."""
        async with self._pool.acquire() as connection:
            while True:
                batch = [await self._received.get()]
                while len(batch) < most and not self._received.empty():
                    batch.append(self._received.get_nowait())
                await self._commit(connection, batch)

    async def _commit(self, connection: Any, batch: Sequence[abc.AbstractIncomingMessage]) -> None:
        at_step: dict[int, list[write_log.Life]] = defaultdict(list)
        for message in batch:
            number, _, at = (message.message_id or "").partition(".")
            at_step[int(at)].append(write_log.Life.numbered(int(number)))
        marks, self._to_mark = self._to_mark, []
        async with connection.transaction():
            await replay.write_rows(connection, [(self._writes[at], cohort) for at, cohort in at_step.items()])
            if marks:
                await connection.executemany(_MARK, marks)
        for message in batch:
            await message.ack()
            self._committing.pop(message.message_id or "").set_result(None)
            task = asyncio.create_task(self._send(message.message_id or ""))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _send(self, id_: str) -> None:
        """Publish the messages of one step, and have their rows marked as sent."""
        number, _, at = id_.partition(".")
        life, messages = write_log.Life.numbered(int(number)), self._steps[int(at)].messages
        await asyncio.gather(*(self._publish(1, message.key, life.fill(message.body), number) for message in messages))
        now_ms, task_id = lives.now_ms(), life.fill(self._steps[0].task_id)
        self._to_mark += [(now_ms, task_id, message.type) for message in messages]
