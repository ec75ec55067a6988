"""The life in PgQueuer: each step is a job, enqueued in the transaction of the step before.

Guarantees: a job runs at least once; the guarded write makes a repeat harmless; the next job commits with the step. A job whose
worker is dead is taken by another one when its heartbeat is old. The end of a job is buffered and logged apart from its effects.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import asyncpg
import pgqueuer
from pgqueuer import db, models, queries

from bench.peers import life

# Of 8, 16 and 32 connections the fastest.
CONNECTIONS = 8
BATCH = 32


@contextlib.asynccontextmanager
async def engine(given: argparse.Namespace) -> AsyncIterator[life.Submit]:
    """A worker in this process, with a connection of its own."""
    async with (
        asyncpg.create_pool(given.database, min_size=CONNECTIONS, max_size=CONNECTIONS) as pool,
        asyncpg.create_pool(given.database, min_size=2, max_size=4) as own,
    ):
        worker = pgqueuer.PgQueuer.from_asyncpg_pool(own)
        await queries.Queries(db.AsyncpgPoolDriver(own)).install()
        outside = queries.Queries(db.AsyncpgPoolDriver(pool))

        @worker.entrypoint("step")
        async def step(job: models.Job) -> None:
            recording, number, submitted_ms = json.loads(job.payload or b"")
            async with pool.acquire() as connection, connection.transaction():
                await life.write_asyncpg(connection, recording, number, submitted_ms)
                if number < life.LAST:
                    following = json.dumps([recording, number + 1, submitted_ms]).encode()
                    await queries.Queries(db.AsyncpgDriver(connection)).enqueue("step", following)

        async def submit(recording: str, submitted_ms: float) -> None:
            await outside.enqueue("step", json.dumps([recording, 0, submitted_ms]).encode())

        working = asyncio.create_task(worker.run(batch_size=BATCH, max_concurrent_tasks=2 * given.lanes))
        yield submit
        worker.shutdown.set()
        await working


if __name__ == "__main__":
    life.main(engine)
