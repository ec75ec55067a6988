"""Nodes on RabbitMQ for the tests of the bus: started together, with messages to publish and waits for the broker."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bus import broker_connection
from bus import rabbit as rabbit_bus
from events import codec
from store import store as stores
from tests import buses, engines, rabbit, transactions, waiting

TASK = buses.TASK
BARE = json.dumps({"TaskId": TASK}).encode()


class RealClock(engines.Clock):
    """Real time, because a claim left on the outbox must expire."""

    def __call__(self) -> int:
        return time.time_ns() // 1_000_000


@pytest.fixture
def database(tmp_path: Path) -> engines.Database:
    """The engine of the database does not matter: the broker is under test."""
    return engines.fresh("sqlite", tmp_path)


@pytest.fixture
def clock() -> engines.Clock:
    return RealClock()


@pytest.fixture
def prefix() -> str:
    return rabbit.shared().prefix()


@asynccontextmanager
async def running(*made: rabbit_bus.RabbitBus) -> AsyncIterator[None]:
    """Start these nodes and wait until they are connected; stop them at the end."""
    for each in made:
        await each.start()
    try:
        await waiting.until(lambda: not any(each.problems() for each in made), timeout_s=30, what="all nodes to be connected")
        yield
    finally:
        for each in made:
            await each.stop()


def stop(id_: str) -> codec.Event:
    return codec.make("stop", id=id_, time_ms=engines.START_MS, data={"TaskId": TASK})


async def send_many(store: stores.Store, ids: list[str]) -> None:
    async with transactions.opened(store) as tx:
        for id_ in ids:
            tx.send("event", stop(id_), TASK)


async def emptied(store: stores.Store) -> None:
    """Wait until every message is published."""

    async def empty() -> bool:
        return not await store.outbox.unsent()

    await waiting.until(empty, timeout_s=30, what="all to be published")


async def connected_anew(bus: rabbit_bus.RabbitBus, old: broker_connection.BrokerSession | None) -> None:
    await waiting.until(lambda: bus.connection.current not in (None, old), timeout_s=30, what="another session")
