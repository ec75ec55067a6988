"""The life in DBOS: one workflow of six transactional steps. Before each but the first it receives a message from outside.

Guarantees: the effects of a step happen exactly once, because its checkpoint commits with them. A workflow of a dead process
continues after the last checkpoint when the process is back. Messages are rows, and may carry a key against repeats.
`--inline` leaves out the messages.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent import futures
from typing import Any

import dbos

from bench.peers import life

CONNECTIONS = 12
SENDERS = 8


@contextlib.asynccontextmanager
async def engine(given: argparse.Namespace) -> AsyncIterator[life.Submit]:
    """Workflows on threads of this process, and a client of its own for what comes from outside."""
    url = given.database
    config: dbos.DBOSConfig = {
        "name": "life",
        "system_database_url": url,
        "sys_db_pool_size": CONNECTIONS,
        "max_executor_threads": 2 * given.lanes,
        "log_level": "ERROR",
        "enable_otlp": False,
    }
    dbos.DBOS(config=config)
    source = dbos.SQLAlchemyDatasource.create(url, engine_kwargs={"pool_size": CONNECTIONS, "max_overflow": 0})
    outside = futures.ThreadPoolExecutor(SENDERS)

    @source.transaction(isolation_level="READ COMMITTED")
    def step(recording: str, number: int, submitted_ms: float) -> None:
        connection: Any = source.sql_session().connection().connection
        with connection.cursor() as cursor:
            life.write(cursor, recording, number, submitted_ms)

    @dbos.DBOS.workflow()
    def workflow(recording: str, submitted_ms: float) -> None:
        for number in range(len(life.STEPS)):
            if number and not given.inline:
                dbos.DBOS.recv(life.STEPS[number])
            step(recording, number, submitted_ms)
            if number < life.LAST and not given.inline:
                outside.submit(client.send, recording, "", life.STEPS[number + 1])

    def start(recording: str, submitted_ms: float) -> None:
        with dbos.SetWorkflowID(recording):
            dbos.DBOS.start_workflow(workflow, recording, submitted_ms)

    async def submit(recording: str, submitted_ms: float) -> None:
        await asyncio.to_thread(start, recording, submitted_ms)

    dbos.DBOS.launch()
    client = dbos.DBOSClient(system_database_url=url, system_database_pool_size=SENDERS)

    def wait_for_outcomes() -> None:
        # A workflow writes its outcome after its last step.
        while dbos.DBOS.list_workflows(status="PENDING", load_input=False, load_output=False):
            time.sleep(life.POLL_S)

    yield submit
    await asyncio.to_thread(wait_for_outcomes)
    outside.shutdown()
    client.destroy()
    dbos.DBOS.destroy()


if __name__ == "__main__":
    life.main(engine)
