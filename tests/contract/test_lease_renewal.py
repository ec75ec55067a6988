"""Renewal of a node's leases: its cost, its order, and what it does not wait for."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import job_key, model, states
from store import tables
from tests import engines, examples, transactions, waiting
from tests.work_doubles import POLICY, Node, node
from worker import leased_job, leases

__all__ = ["node"]

HELD = 120
LEASE_MS = POLICY.lease_ms


async def held(node: Node, deliveries: int) -> None:
    """Let the node hold the leases of this many deliveries."""
    waiting_job = model.Job(kind=states.DELIVERY, state=states.QUEUED)
    async with transactions.opened(node.store) as tx:
        for revision in range(1, deliveries + 1):
            tx.add_delivery(
                model.Delivery(task_id=node.task_id, revision=revision, url="http://x/", body="{}", epoch=1, job=waiting_job)
            )
    for revision in range(1, deliveries + 1):
        owner = job_key.DeliveryKey(node.task_id, revision)
        assert await node.store.leases.take(owner, 1, "node-1", LEASE_MS)
        node.worker.leases.jobs[owner, 1] = leased_job.LeasedJob(owner=owner, epoch=1, kind=states.DELIVERY, ended=True)


async def lease_ends(node: Node) -> set[int]:
    """When the leases of the node end."""
    async with node.store.connections.read() as connection:
        return set(
            (await connection.execute(select(tables.jobs.c.lease_until_ms).where(tables.jobs.c.state == "leased"))).scalars()
        )


async def test_the_number_of_leases_does_not_raise_the_number_of_transactions(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node with a growing capture and many deliveries renews all leases and notes the progress in a few transactions."""
    capture = await node.open()
    await held(node, HELD)
    written: list[int] = []
    connections = node.store.connections
    write, run, fetch, together = connections.write, connections.run, connections.fetch, connections.together

    @asynccontextmanager
    async def counted() -> AsyncIterator[AsyncConnection]:
        written.append(1)
        async with write() as connection:
            yield connection

    async def counted_run(steps: Any) -> Any:
        written.append(1)
        return await run(steps)

    async def counted_fetch(statement: Any, parameters: Any) -> Any:
        written.append(1)
        return await fetch(statement, parameters)

    async def counted_together(statement: Any, parameters: Any) -> Any:
        written.append(1)
        return await together(statement, parameters)

    monkeypatch.setattr(connections, "write", counted)
    monkeypatch.setattr(connections, "run", counted_run)
    if connections.on_server:  # on SQLite they run by `run`
        monkeypatch.setattr(connections, "fetch", counted_fetch)
        monkeypatch.setattr(connections, "together", counted_together)
    node.clock.advance(100)
    capture.progress = dataclasses.replace(capture.progress, media_ms=1_000, last_packet_ms=node.clock())
    written.clear()

    async def renewed() -> bool:
        return await lease_ends(node) == {node.clock() + LEASE_MS}

    await waiting.until(renewed, what="all leases to be renewed")
    assert 0 < len(written) < HELD / 4
    idle_from_ms = node.clock()

    async def noted() -> bool:
        return (await node.recording()).idle_from_ms == idle_from_ms

    await waiting.until(noted, what="the capture's progress")


async def test_captures_are_renewed_first(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the database fails in the middle of a round, the leases of captures are renewed already."""
    await held_before_a_capture(node)
    monkeypatch.setattr(leases, "RENEWED_TOGETHER", 5)
    rounds: list[list[str]] = []
    renew_all = node.store.leases.renew_all

    async def first_only(jobs: Any, *rest: Any) -> Any:
        rounds.append([type(owner).__name__ for owner, _ in jobs])
        if len(rounds) > 1:
            raise OSError("the database restarts")
        return await renew_all(jobs, *rest)

    await node.worker.leases.task.stop()
    monkeypatch.setattr(node.store.leases, "renew_all", first_only)
    assert not await node.worker.leases.renew()
    assert rounds[0][0] == "RecordingKey"
    assert len(rounds) == 2


async def held_before_a_capture(node: Node) -> None:
    """Deliveries, and a capture that was taken after them."""
    await node.open()
    await held(node, 20)
    capture = next(key for key, job in node.worker.leases.jobs.items() if job.kind == states.CAPTURE)
    node.worker.leases.jobs[capture] = node.worker.leases.jobs.pop(capture)


@pytest.mark.parametrize("engine", ["postgresql"])
async def test_a_row_that_a_decision_holds_delays_no_other_renewal(tmp_path: Path, engine: str) -> None:
    """PostgreSQL: while a decision has locked one job's row, the other lease is renewed, and the locked one is not refused."""
    clock = engines.Clock()
    database = engines.fresh(engine, tmp_path)
    deciding, store = database.open(clock), database.open(clock, engines.ids("03"))
    try:
        await examples.opened(store, examples.recording(), examples.recording(speaker="bo"))
        jobs = [(job_key.RecordingKey(examples.TASK, speaker, 1), 1) for speaker in ("al", "bo")]
        for owner, epoch in jobs:
            assert await store.leases.take(owner, epoch, "n", examples.LEASE_MS)
        clock.advance(examples.LEASE_MS)
        async with deciding.connections.write() as connection, waiting.at_most(10):
            await connection.execute(select(tables.jobs).where(tables.jobs.c.owner == jobs[0][0].text).with_for_update())
            assert await store.leases.renew_all(jobs, "n", examples.LEASE_MS) == set()
        clock.advance(1)
        assert [lease.owner for lease in await store.deadlines.expired()] == [jobs[0][0]]
    finally:
        await deciding.stop()
        await store.stop()
