"""Publishes a `start` and waits for the recorder's answer.

    AMQP_URL=amqp://user:password@host:5672/ python publish_start.py request.json

`request.json` is the body of a start; `-` reads it from the standard input. The program prints the data of `session-accepted`
and ends with 0, or the data of `session-refused` and ends with 1. It ends with 2 without an answer: a message that violates
its schema is parked and gets none.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import uuid
from pathlib import Path

import aio_pika

ANSWER_LIMIT_S = 30


async def start(request: bytes) -> int:
    """Publish one start under a fresh id. A repeat under the same id gets the same answer and starts nothing."""
    event_id = str(uuid.uuid4())
    connection = await aio_pika.connect(os.environ["AMQP_URL"], heartbeat=10)
    async with connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.get_exchange(os.environ.get("AMQP_PREFIX") or "recorder")

        # Subscribe before publishing, because the answer may arrive at once.
        answered: asyncio.Future[tuple[str, str]] = asyncio.get_running_loop().create_future()

        async def receive(message: aio_pika.abc.AbstractIncomingMessage) -> None:
            if message.correlation_id == event_id and not answered.done():
                answered.set_result((str(message.routing_key), message.body.decode()))

        answers = await channel.declare_queue(exclusive=True)
        await answers.bind(exchange, "result.session-accepted")
        await answers.bind(exchange, "result.session-refused")
        await answers.consume(receive, no_ack=True)

        message = aio_pika.Message(
            request,
            message_id=event_id,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        # Returns when the broker has confirmed the message; raises if no queue takes it.
        await exchange.publish(message, "event.start", mandatory=True)
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                key, body = await answered
        except TimeoutError:
            sys.stderr.write(f"No answer to {event_id} within {ANSWER_LIMIT_S} s; was it parked?\n")
            return 2
        sys.stdout.write(json.dumps(json.loads(body)["data"], ensure_ascii=False) + "\n")
        return 0 if key == "result.session-accepted" else 1


if __name__ == "__main__":
    source = sys.argv[1] if len(sys.argv) > 1 else "-"
    body = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    sys.exit(asyncio.run(start(body)))
