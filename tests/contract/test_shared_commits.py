"""Writes that wait at the same moment share a commit; none of them waits for another, and none is made twice; on each engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from machine import job_key
from store import group_commit, server_connections, tables
from store import store as stores
from tests import engines, examples, waiting

TAKES = 40


def owner(number: int) -> job_key.RecordingKey:
    return job_key.RecordingKey(examples.TASK, f"s{number}", 1)


async def take(store: stores.Store, number: int, node: str = "n") -> bool:
    return await store.leases.take(owner(number), 1, node, examples.LEASE_MS)


async def queued(store: stores.Store, count: int) -> None:
    """A session with so many queued captures."""
    await examples.opened(store, *(examples.recording(speaker=f"s{number}") for number in range(count)))


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Gets an entry for each transaction of the paths that every event takes."""
    made: list[str] = []
    of_file, of_server = group_commit.GroupCommit._commit, server_connections.ServerConnections._connection

    def on_file(group: group_commit.GroupCommit, work: Any) -> Any:
        made.append("sqlite")
        return of_file(group, work)

    def on_server(connections: server_connections.ServerConnections) -> Any:
        made.append("postgresql")
        return of_server(connections)

    monkeypatch.setattr(group_commit.GroupCommit, "_commit", on_file)
    monkeypatch.setattr(server_connections.ServerConnections, "_connection", on_server)
    return made


async def test_leases_that_are_taken_together_share_a_commit(store: stores.Store, commits: list[str]) -> None:
    """Forty jobs are taken at once: all of them, in a few commits; who comes later gets none."""
    await queued(store, TAKES)
    commits.clear()
    assert all(await asyncio.gather(*(take(store, number) for number in range(TAKES))))
    assert len(commits) <= 3
    assert not any(await asyncio.gather(*(take(store, number, "other") for number in range(TAKES))))


async def test_segments_and_outcomes_that_are_written_together_share_a_commit(store: stores.Store, commits: list[str]) -> None:
    """Workers register thirty segments and publish thirty outcomes at once."""
    await queued(store, 30)
    commits.clear()
    events = [examples.event(f"e{number}") for number in range(30)]
    registering = [store.segments.register(owner(number), 1, "n") for number in range(30)]
    await asyncio.gather(*registering, *(store.outbox.send("event", event) for event in events))
    assert len(commits) <= 4
    assert len(await store.outbox.unsent()) == 30
    assert [len(await store.segments.of_recording(owner(number))) for number in range(30)] == [1] * 30


async def test_one_job_is_taken_once(store: stores.Store) -> None:
    """A command that is delivered ten times at once is taken once, and so is another job."""
    await queued(store, 2)
    taken = await asyncio.gather(*(take(store, number % 2) for number in range(20)))
    assert (sum(taken[0::2]), sum(taken[1::2])) == (1, 1)


@pytest.mark.parametrize("engine", ["postgresql"])
async def test_a_job_whose_owner_is_locked_delays_no_other(tmp_path: Path, engine: str) -> None:
    """PostgreSQL: a decision has locked one recording. All other jobs are taken meanwhile, and this one afterwards."""
    clock = engines.Clock()
    database = engines.fresh(engine, tmp_path)
    deciding, store = database.open(clock), database.open(clock, engines.ids("03"))
    try:
        await queued(store, 5)
        async with deciding.connections.write() as connection, waiting.at_most(20):
            locked = select(tables.recordings.c.id).where(tables.recordings.c.id == owner(0).text).with_for_update()
            await connection.execute(locked)
            takes = [asyncio.create_task(take(store, number)) for number in range(5)]
            assert await asyncio.gather(*takes[1:]) == [True] * 4
            assert not takes[0].done()
        assert await takes[0]
    finally:
        await deciding.stop()
        await store.stop()
