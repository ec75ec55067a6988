"""The life in Celery on RabbitMQ: each step is a task, published after the transaction of the step before.

Guarantees: a task runs at least once, because it is acknowledged after its end; the guarded write makes a repeat harmless. The
next task is published with a confirmation, in no transaction with the step: a crash in between leaves it to the redelivered task.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator

import celery
import psycopg_pool

from bench.peers import life

# Threads, because the default pool of processes reached less than half of their rate on two cores.
CONCURRENCY = 16
DATABASE, BROKER = "LIFE_DATABASE", "LIFE_BROKER"

app = celery.Celery("life", broker=os.environ.get(BROKER))
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    task_default_queue="life",
    task_default_queue_type="quorum",
    task_default_exchange_type="topic",
    worker_prefetch_multiplier=16,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    worker_send_task_events=False,
)
_pool = psycopg_pool.ConnectionPool(os.environ.get(DATABASE, ""), min_size=1, max_size=CONCURRENCY, open=False)


@app.task(name="step")
def step(recording: str, number: int, submitted_ms: float) -> None:
    """One step of a life."""
    _pool.open()
    with _pool.connection() as connection, connection.cursor() as cursor:
        life.write(cursor, recording, number, submitted_ms)
    if number < life.LAST:
        step.delay(recording, number + 1, submitted_ms)


@contextlib.asynccontextmanager
async def engine(given: argparse.Namespace) -> AsyncIterator[life.Submit]:
    """A worker in a process of its own, with threads."""
    environment = os.environ | {DATABASE: given.database, BROKER: given.broker}
    app.conf.broker_url = given.broker
    command = [sys.executable, "-m", "celery", "-A", "bench.peers.celery_life", "worker", "--pool", "threads"]
    command += ["--concurrency", str(CONCURRENCY), "--without-gossip", "--without-mingle", "--loglevel", "ERROR"]
    worker = await asyncio.to_thread(subprocess.Popen, command, env=environment, stdout=subprocess.DEVNULL)

    async def submit(recording: str, submitted_ms: float) -> None:
        await asyncio.to_thread(step.delay, recording, 0, submitted_ms)

    try:
        yield submit
    finally:
        worker.terminate()
        await asyncio.to_thread(worker.wait, 30)


if __name__ == "__main__":
    life.main(engine)
