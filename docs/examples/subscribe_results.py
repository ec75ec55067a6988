"""Hears the recorder's results in a durable queue of its own and prints each of them, a line of JSON, once.

    AMQP_URL=amqp://user:password@host:5672/ python subscribe_results.py [TaskId]

Runs until it is stopped; with a TaskId, until that session's `session-finished`. What is published while it does not run waits
in the queue, so start it once before the first session: what was published before the queue was there is not in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import aio_pika

QUEUE = os.environ.get("RESULTS_QUEUE") or "lessons.results"


class Results:
    """Takes each result once. A real application keeps the ids where it keeps the results, in the same transaction."""

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self._seen: set[str] = set()
        self.finished = asyncio.Event()

    async def take(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """One delivery. Results come at least once: the same id again is the same result again."""
        event = json.loads(message.body)
        if event["id"] not in self._seen:
            sys.stdout.write(json.dumps({"type": event["type"], "data": event["data"]}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            self._seen.add(event["id"])
        # Acknowledged only now that it is safe; what dies before this is delivered again.
        await message.ack()
        if event["type"] == "session-finished" and event["data"]["TaskId"] == self._task_id:
            self.finished.set()


async def subscribe(task_id: str) -> None:
    """Declare the queue, bind it, and take what comes."""
    results = Results(task_id)
    connection = await aio_pika.connect_robust(os.environ["AMQP_URL"], heartbeat=10)
    async with connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=16)
        exchange = await channel.get_exchange(os.environ.get("AMQP_PREFIX") or "recorder")
        queue = await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
        await queue.bind(exchange, "result.#")
        await queue.consume(results.take)
        sys.stderr.write(f"Listening on {QUEUE}.\n")
        await results.finished.wait()


if __name__ == "__main__":
    asyncio.run(subscribe(sys.argv[1] if len(sys.argv) > 1 else ""))
