"""A process that freezes inside a transaction (PostgreSQL): its locks are released for the other nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import select, update

from machine import errors
from store import server_access, tables
from store import store as stores
from tests import engines, examples, transactions, waiting

IDLE_MS = 400


@pytest.fixture
async def two_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[stores.Store]]:
    """Two stores on one database with a short limit for idle transactions."""
    monkeypatch.setattr(server_access, "IDLE_IN_TRANSACTION_MS", IDLE_MS)
    database = engines.fresh("postgresql", tmp_path)
    opened = [database.open(engines.Clock()) for _ in range(2)]
    yield opened
    for store in opened:
        await store.stop()


async def test_locks_of_a_frozen_transaction_are_released(two_nodes: list[stores.Store]) -> None:
    """The other node decides the row within seconds, and the write of the frozen one is refused."""
    asleep, awake = two_nodes
    await examples.opened(awake, examples.recording())

    async def decide(by: stores.Store, end_reason: str, meanwhile: Callable[[], Awaitable[None]] | None = None) -> None:
        table = tables.sessions
        async with by.connections.write() as connection:
            await connection.execute(select(table).where(table.c.task_id == examples.TASK).with_for_update())
            if meanwhile is not None:
                async with waiting.at_most(10):
                    await meanwhile()
            await connection.execute(update(table).where(table.c.task_id == examples.TASK).values(end_reason=end_reason))

    with pytest.raises(errors.DatabaseUnavailable):
        await decide(asleep, "MaxDuration", lambda: decide(awake, "Stopped"))
    async with transactions.opened(awake) as tx:
        after = await tx.session(examples.TASK)
    assert after is not None
    assert after.end_reason == "Stopped"
