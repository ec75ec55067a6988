"""Backends of the real service, one kind per engine: a file of its own, or a database and a prefix on the broker.

Rule: no test leaves data in shared servers.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import aio_pika

from bus import topology
from tests import engines, postgres, rabbit

EMBEDDED, DISTRIBUTED = NAMES = ("embedded", "distributed")
CLUSTER_TOKEN = "cluster-token"


@dataclass(slots=True)
class Backend:
    """Settings of one service on one engine. `database` is a URL for queries past the service."""

    engine: str
    database: str
    settings: dict[str, str] = field(default_factory=dict)

    async def remove(self, log: Path) -> None:
        """Delete the data of a stopped service from the servers; `log` (JSON lines) names its node."""
        if self.engine == DISTRIBUTED:
            await _forget(self.settings["AMQP_PREFIX"], _nodes(log))
            await asyncio.to_thread(postgres.shared().drop, self.database)


def embedded(data: Path) -> Backend:
    """SQLite in the service's own folder: no setting at all."""
    return Backend(engine=EMBEDDED, database=f"sqlite:///{data / 'recorder.db'}")


def distributed() -> Backend:
    """PostgreSQL with the current schema, and RabbitMQ. Call from the main thread: the servers end with the thread."""
    broker = rabbit.shared()
    url = engines.fresh("postgresql", Path()).url
    settings = {"DATABASE_URL": url, "AMQP_URL": broker.url, "AMQP_PREFIX": broker.prefix(), "CLUSTER_TOKEN": CLUSTER_TOKEN}
    settings |= {"SECRET_KEYS": engines.SECRET_KEYS}
    return Backend(engine=DISTRIBUTED, database=url, settings=settings)


def make(engine: str, data: Path) -> Backend:
    """The backend of a service that keeps its data in `data`."""
    return embedded(data) if engine == EMBEDDED else distributed()


def _nodes(log: Path) -> set[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return {str(json.loads(line)["node"]) for line in lines if '"service.started"' in line}


async def _forget(prefix: str, nodes: set[str]) -> None:
    names = topology.Topology(prefix)
    own = (queue for node in nodes for queue in names.node(node))
    queues = [names.parked, *(queue.name for queue in (*names.queues(), *names.retries, *own))]
    exchanges = {queue.exchange for queue in (*names.queues(), *names.retries)}
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        for queue in queues:
            await channel.queue_delete(queue)
        for exchange in (*exchanges, names.exchange, names.parked, names.retried):
            await channel.exchange_delete(exchange)
