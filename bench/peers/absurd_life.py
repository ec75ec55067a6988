"""The life in absurd: one task, whose six steps are checkpoints. Before each step but the first it awaits an event from outside.

Guarantees: a step runs at least once, because its checkpoint is a transaction of its own after the effects; the guarded write
makes a repeat harmless. A task of a dead worker is claimed by another one, which continues after the last checkpoint. An event is
kept under its name, so a repeated one changes nothing. `--inline` leaves out the events.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import absurd_sdk
import absurdctl
import psycopg
import psycopg_pool

from bench.peers import life

QUEUE = "lives"
# Each worker has one connection, which is busy with one statement at a time. Of 1, 2, 4, 8 and 16 workers these were the fastest.
WORKERS, WORKERS_INLINE = 1, 4
CONNECTIONS = 16
POLL_S = 0.02


class Outside:
    """The rest of the world: it submits lives, and publishes an event when the step before is committed."""

    def __init__(self, database: str) -> None:
        self._client = absurd_sdk.AsyncAbsurd(database, queue_name=QUEUE)
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, recording: str, submitted_ms: float) -> None:
        """Start one life."""
        async with self._turn:
            await self._client.spawn("life", {"recording": recording, "submitted_ms": submitted_ms}, queue=QUEUE)

    def publish_soon(self, recording: str, number: int) -> None:
        """Publish the event of a step, without waiting for it."""
        task = asyncio.create_task(self._publish(f"{recording}.{number}"))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _publish(self, event: str) -> None:
        async with self._turn:
            await self._client.emit_event(event, {}, QUEUE)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.close()


@contextlib.asynccontextmanager
async def engine(given: argparse.Namespace) -> AsyncIterator[life.Submit]:
    """Workers in this process, which poll."""
    async with await psycopg.AsyncConnection.connect(given.database, autocommit=True) as connection:
        await connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
    outside = Outside(given.database)
    count = WORKERS_INLINE if given.inline else WORKERS
    workers = [absurd_sdk.AsyncAbsurd(given.database, queue_name=QUEUE) for _ in range(count)]
    await workers[0].create_queue()
    async with psycopg_pool.AsyncConnectionPool(given.database, min_size=CONNECTIONS, max_size=CONNECTIONS, open=False) as pool:

        async def task(params: Any, context: absurd_sdk.AsyncTaskContext) -> None:
            recording = params["recording"]

            async def step(number: int) -> None:
                async with pool.connection() as connection, connection.cursor() as cursor:
                    await life.write_async(cursor, recording, number, params["submitted_ms"])

            for number, name in enumerate(life.STEPS):
                if number and not given.inline:
                    await context.await_event(f"{recording}.{number}")
                await context.step(name, lambda number=number: step(number))
                if number < life.LAST and not given.inline:
                    outside.publish_soon(recording, number + 1)

        working = []
        for number, worker in enumerate(workers):
            worker.register_task("life", queue=QUEUE)(task)
            started = worker.start_worker(f"worker-{number}", concurrency=given.lanes // count, poll_interval=POLL_S)
            working.append(asyncio.create_task(started))
        yield outside.submit
        for worker in workers:
            worker.stop_worker()
        await asyncio.gather(*working)
        for each in (outside, *workers):
            await each.close()


if __name__ == "__main__":
    life.main(engine)
