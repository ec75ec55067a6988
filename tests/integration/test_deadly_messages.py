"""A message that kills the process that handles it, on each engine: one process with SQLite, two nodes with PostgreSQL and
RabbitMQ.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from events import codec
from store import store as stores
from tests import buses, deadly_node, engines, rabbit, transactions, waiting

ROOT = Path(__file__).parents[2]
# Smaller than the real limits (tests/unit/test_delivery_policy.py compares those), in the same order: a message handled together
# with a deadly one is counted until it is handled alone, and must not be parked before.
ALONE_FROM, TRIES = 1, 3
TIED = ("setpriv", "--pdeathsig", "KILL", "--")
KINDS = {"sqlite": ("local", ("alone",)), "postgresql": ("rabbitmq", ("n1", "n2"))}


class Node:
    """One process that is restarted whenever it dies."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self._plan = plan
        self._process: asyncio.subprocess.Process | None = None
        self.deaths = 0

    async def live(self) -> None:
        """Start, and restart after each death, until this is cancelled."""
        try:
            while True:
                command = (*TIED, sys.executable, "-m", "tests.deadly_node", json.dumps(self._plan))
                self._process = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
                assert await self._process.wait() == -signal.SIGKILL
                self.deaths += 1
        finally:
            if self._process is not None and self._process.returncode is None:
                self._process.kill()
                await self._process.wait()


@pytest.fixture
def workshop(database: engines.Database, store: stores.Store, clock: engines.Clock) -> buses.Workshop:
    """The bus of the database's engine, to read the dead letters."""
    kind, _ = KINDS[database.engine]
    return buses.Workshop(kind, database, store, clock, rabbit.shared().prefix() if kind == "rabbitmq" else "")


@pytest.mark.timeout(90)
async def test_a_message_that_kills_every_process_is_parked(
    workshop: buses.Workshop, store: stores.Store, tmp_path: Path
) -> None:
    """A message that kills every process with -9, on any node, is parked after the allowed attempts, and other messages are
    handled."""
    database, prefix = workshop.database, workshop.prefix
    plan = {"Engine": database.engine, "Url": database.url, "Path": str(database.path), "Prefix": prefix, "Tries": TRIES}
    plan |= {"Alone": ALONE_FROM, "Folder": str(tmp_path), "Amqp": rabbit.shared().url if prefix else ""}
    nodes = [Node(plan | {"Name": name}) for name in KINDS[database.engine][1]]
    others = {f"e{number}" for number in range(5)}
    async with transactions.opened(store) as tx:
        for id_ in (deadly_node.DEADLY, *sorted(others)):
            tx.send("event", codec.make("stop", id=id_, time_ms=0, data={"TaskId": buses.TASK}), buses.TASK)
    if prefix:
        await _publish_all(workshop, store)
    lives = [asyncio.create_task(node.live()) for node in nodes]

    def over() -> bool:
        assert not any(life.done() for life in lives)
        counted = database.ask("SELECT * FROM attempts")
        return not counted and sum(node.deaths for node in nodes) >= TRIES and {p.name for p in tmp_path.iterdir()} >= others

    await waiting.until(over, timeout_s=60, every_s=0.2, what="the message to be parked")
    reasons = await workshop.parked()
    for life in lives:
        life.cancel()
    await asyncio.gather(*lives, return_exceptions=True)
    assert ["never ended" in reason for reason in reasons] == [True]
    # RabbitMQ's bus does not count the very first delivery; the local bus counts the messages that it finds at its start.
    assert sum(node.deaths for node in nodes) == TRIES + bool(prefix)


async def _publish_all(workshop: buses.Workshop, store: stores.Store) -> None:
    """Publish all messages, so that no relay dies between the broker's confirmation and our mark: that would be a second copy."""
    hands = buses.Hands()
    relaying = buses.node(
        store, workshop.clock, workshop.prefix, on_event=hands.on_event, on_command=hands.on_command, name="n0", roles=["api"]
    )
    await relaying.start()

    async def empty() -> bool:
        return not await store.outbox.unsent()

    await waiting.until(empty, timeout_s=20, what="all to be published")
    await relaying.stop()
