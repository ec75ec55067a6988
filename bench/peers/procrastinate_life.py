"""The life in procrastinate: each step is a job, deferred in the transaction of the step before.

Guarantees: a job runs at least once; the guarded write makes a repeat harmless; the next job commits with the step. A job of a
dead worker is run again only if the application does so itself (`get_stalled_jobs`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator

import procrastinate
import psycopg_pool

from bench.peers import life

CONNECTIONS = 16


@contextlib.asynccontextmanager
async def engine(given: argparse.Namespace) -> AsyncIterator[life.Submit]:
    """A worker in this process, which takes jobs by LISTEN/NOTIFY."""
    connector = procrastinate.PsycopgConnector(conninfo=given.database, min_size=CONNECTIONS, max_size=CONNECTIONS)
    app = procrastinate.App(connector=connector)
    pool = psycopg_pool.AsyncConnectionPool(given.database, min_size=CONNECTIONS, max_size=CONNECTIONS, open=False)

    @app.task(name="step")
    async def step(recording: str, number: int, submitted_ms: float) -> None:
        async with pool.connection() as connection, connection.cursor() as cursor:
            await life.write_async(cursor, recording, number, submitted_ms)
            if number < life.LAST:
                following = step.configure(connection=connection)
                await following.defer_async(recording=recording, number=number + 1, submitted_ms=submitted_ms)

    async def submit(recording: str, submitted_ms: float) -> None:
        await step.defer_async(recording=recording, number=0, submitted_ms=submitted_ms)

    async with app.open_async(), pool:
        await app.schema_manager.apply_schema_async()
        working = asyncio.create_task(
            app.run_worker_async(concurrency=given.lanes, install_signal_handlers=False, listen_notify=True)
        )
        yield submit
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


if __name__ == "__main__":
    life.main(engine)
