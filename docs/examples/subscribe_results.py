"""Subscribes to the recorder's results with a durable queue and prints each of them once, as a line of JSON.

    AMQP_URL=amqp://user:password@host:5672/ python subscribe_results.py [TaskId]

It runs until it is stopped, or with a TaskId until that session's `session-finished`. Results wait in the queue while it does
not run. Start it once before the first session, because the queue has no result from before it was declared.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import aio_pika

QUEUE = os.environ.get("RESULTS_QUEUE") or "lessons.results"


class Results:
    """Handles each result once. A real application stores the ids with the results, in the same transaction."""

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self._seen: set[str] = set()
        self.finished = asyncio.Event()

    async def take(self, message: aio_pika.abc.AbstractIncomingMessage) -> None:
        """Handle one message. Results arrive at least once: a repeated id is the same result."""
        event = json.loads(message.body)
        if event["id"] not in self._seen:
            sys.stdout.write(json.dumps({"type": event["type"], "data": event["data"]}, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            self._seen.add(event["id"])
        # Acknowledge only now: after a crash before this line, the broker delivers the message again.
        await message.ack()
        if event["type"] == "session-finished" and event["data"]["TaskId"] == self._task_id:
            self.finished.set()


async def subscribe(task_id: str) -> None:
    """Declare the queue, bind it, and handle its messages."""
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
