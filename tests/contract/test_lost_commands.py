"""Commands and deadlines that were lost are issued again: the broker's queue purged, the outbox's rows gone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import aio_pika
import pytest
from sqlalchemy import delete, insert, update

from bus import topology as topologies
from events import codec
from handlers import sweeper
from machine import database_clock, due_work, errors, job_key, model
from store import store as stores
from store import tables
from tests import buses, engines, examples, rabbit, transactions, waiting, work_doubles
from tests.work_doubles import Node, node

__all__ = ["node"]

POLICY = model.Policy(lease_ms=examples.LEASE_MS)
ROUNDS = 20 * model.MINUTE // sweeper.SEARCH_QUEUED_MS
RECORDINGS = [job_key.RecordingKey(examples.TASK, name, 1) for name in ("al", "bo", "cy")]


async def lose_messages(store: stores.Store) -> None:
    """Lose all messages of the outbox."""
    async with store.connections.write() as connection:
        await connection.execute(delete(tables.outbox))


async def connected(store: stores.Store, clock: engines.Clock, name: str = "n") -> sweeper.Sweeper:
    """A sweeper that has been connected for one lease."""
    made = sweeper.Sweeper(store, node=name, policy=POLICY, clock=database_clock.DatabaseClock(clock, clock))
    await made.run_once()
    for _ in range(examples.LEASE_MS // sweeper.HEARTBEAT_MS + 1):
        clock.advance(sweeper.HEARTBEAT_MS)
        await made.run_once()
    return made


async def commands(store: stores.Store) -> list[codec.Event]:
    """The commands of the outbox, which are taken out of it."""
    found = [m for m in await store.outbox.unsent(1_000) if m.channel == "command"]
    await store.outbox.mark_all_sent([m.seq for m in found])
    return [codec.decode(m.body, now_ms=engines.START_MS) for m in found]


@pytest.mark.parametrize("kind", ["capture", "transcode", "upload"])
async def test_a_queued_job_gets_its_command_again(store: stores.Store, clock: engines.Clock, kind: str) -> None:
    """After a minute, under the same epoch and for the same node; then after growing pauses, until somebody takes it."""
    made = await connected(store, clock)
    job = model.Job(kind=kind, state="queued", node="n7")
    await examples.opened(store, examples.recording(epoch=4, job=job))
    await lose_messages(store)
    queued_ms, times = clock(), []
    for _ in range(ROUNDS):
        clock.advance(sweeper.SEARCH_QUEUED_MS)
        await made.run_once()
        for message in await store.outbox.unsent():
            assert message.node == "n7"
        for command in await commands(store):
            times.append(clock() - queued_ms)
            assert (command.type, command.data) == (f"start-{kind}", RECORDINGS[0].fields() | {"Epoch": 4})
    assert times[0] >= due_work.REISSUE_MS
    assert times[0] <= due_work.REISSUE_MS + 5 * sweeper.SEARCH_QUEUED_MS
    assert 4 <= len(times) <= 8
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses == sorted(pauses)
    assert await store.leases.take(RECORDINGS[0], 4, "n7", examples.LEASE_MS)
    clock.advance(model.HOUR)
    assert await store.deadlines.queued() == []


async def test_a_delivery_gets_its_command_again(store: stores.Store, clock: engines.Clock) -> None:
    """The delivery of a result as well; one that is cancelled gets none."""
    made = await connected(store, clock)
    job = model.Job(kind="callback", state="queued")
    wanted, cancelled = (
        model.Delivery(task_id=examples.TASK, revision=n, url="https://x", body="{}", epoch=2, job=job) for n in (1, 2)
    )
    await examples.opened(store)
    async with transactions.opened(store) as tx:
        tx.add_delivery(wanted)
        tx.add_delivery(cancelled)
    async with transactions.opened(store) as tx:
        tx.save_delivery(cancelled, model.changed(cancelled, state="cancelled", job=None))
    clock.advance(due_work.REISSUE_MS + sweeper.SEARCH_QUEUED_MS)
    for _ in range(examples.LEASE_MS // sweeper.HEARTBEAT_MS + 3):
        await made.run_once()
        clock.advance(sweeper.HEARTBEAT_MS)
    (command,) = await commands(store)
    assert (command.type, command.data) == ("send-callback", wanted.key.fields() | {"Epoch": 2})


async def test_nodes_issue_a_command_once(store: stores.Store, clock: engines.Clock) -> None:
    """What one sweeper has issued again, another one leaves."""
    nodes = [await connected(store, clock, name) for name in ("a", "b", "c")]
    await examples.opened(store, *(examples.recording(speaker=key.speaker) for key in RECORDINGS))
    clock.advance(due_work.REISSUE_MS)
    for made in nodes:
        await made.run_once()
    clock.advance(sweeper.HEARTBEAT_MS)
    for _ in range(examples.LEASE_MS // sweeper.HEARTBEAT_MS):
        for made in nodes:
            await made.run_once()
        clock.advance(sweeper.HEARTBEAT_MS)
    assert sorted(c.subject for c in await commands(store)) == [key.text for key in RECORDINGS]


async def test_a_taken_job_is_judged_by_its_lease(store: stores.Store, clock: engines.Clock) -> None:
    """The time of the next command does not delay the end of a lease."""
    await examples.opened(store, examples.recording())
    assert await store.leases.take(RECORDINGS[0], 1, "n", 1_000)
    clock.advance(1_001)
    assert [lease.owner for lease in await store.deadlines.expired()] == [RECORDINGS[0]]


async def test_a_job_that_an_older_version_queued(store: stores.Store, clock: engines.Clock) -> None:
    """Its row does not say since when it is queued: that counts from the first look at it."""
    async with store.connections.write() as connection:
        row = {"owner": RECORDINGS[0].text, "epoch": 3, "kind": "upload", "state": "queued", "node": "", "lease_until_ms": 0}
        await connection.execute(insert(tables.jobs).values(row))
    assert await store.deadlines.queued() == []
    clock.advance(due_work.REISSUE_MS)
    assert [(job.owner, job.epoch, job.kind) for job in await store.deadlines.queued()] == [(RECORDINGS[0], 3, "upload")]


@pytest.fixture(params=buses.NAMES)
def workshop(
    request: pytest.FixtureRequest, database: engines.Database, store: stores.Store, clock: engines.Clock
) -> buses.Workshop:
    """Makes buses of each kind."""
    prefix = rabbit.shared().prefix() if request.param == "rabbitmq" else ""
    return buses.Workshop(request.param, database, store, clock, prefix)


async def _purge(workshop: buses.Workshop, store: stores.Store, clock: engines.Clock) -> None:
    """Let the bus have what the outbox holds, and lose it there."""
    if workshop.engine == "local":
        await lose_messages(store)
        return
    nobody = buses.Hands()
    relay = buses.node(
        store, clock, workshop.prefix, on_event=nobody.on_event, on_command=nobody.on_command, name="api", roles=("api",)
    )
    await relay.start()

    async def sent() -> bool:
        return not await store.outbox.unsent()

    await waiting.until(sent, timeout_s=30, what="the command to be in the queue")
    await relay.stop()
    names = topologies.Topology(workshop.prefix)
    async with await aio_pika.connect(rabbit.shared().url) as connection, connection.channel() as channel:
        for queue in names.queues():
            await (await channel.get_queue(queue.name, ensure=False)).purge()


async def test_a_purged_queue(workshop: buses.Workshop, store: stores.Store, clock: engines.Clock) -> None:
    """A command that was in the queue when it was purged reaches a worker, once it is issued again."""
    made = await connected(store, clock)
    await examples.opened(store, examples.recording())
    data = RECORDINGS[0].fields() | {"Epoch": 1}
    lost = codec.make("start-capture", id="first", time_ms=clock(), data=data, subject=RECORDINGS[0].text)
    await store.outbox.send("command", lost, examples.TASK)
    await _purge(workshop, store, clock)
    hands = buses.Hands()
    bus = workshop.make(hands.on_event, hands.on_command)
    await bus.start()
    try:
        for _ in range(2 * due_work.REISSUE_MS // sweeper.HEARTBEAT_MS):
            clock.advance(sweeper.HEARTBEAT_MS)
            await made.run_once()
        await waiting.until(lambda: hands.commands, timeout_s=30, what="the command")
    finally:
        await bus.stop()
    assert set(hands.commands) == {f"again.{RECORDINGS[0].text}.1"}


async def test_a_lost_stop(node: Node) -> None:
    """A capture whose `stop-capture` was lost ends all the same, as its row says so."""
    capture = await node.open()
    capture.media(5_000, node.clock)
    await node.relayed("capture-started")
    await node.say("stop", TaskId=node.task_id)
    for message in await node.store.outbox.unsent():
        if message.type == "stop-capture":
            await node.store.outbox.mark_sent(message.seq)
    await waiting.until(lambda: capture.stopped, what="the capture to end")
    await node.relayed("session-finished")
    assert (await node.recording()).state == "Done"


async def test_a_lost_stop_beside_a_conflict(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The progress of captures loses a deadlock in every round: it waits, and the stop that was lost is seen all the same."""
    capture = await node.open()
    capture.media(5_000, node.clock)
    await node.relayed("capture-started")
    conflicts: list[int] = []

    async def lost(growing: Mapping[Any, Any]) -> None:
        conflicts.append(len(growing))
        raise errors.Conflict("PostgreSQL rolled this transaction back in favor of a concurrent one")

    monkeypatch.setattr(node.store.segments, "note_progress", lost)
    node.clock.advance(1_000)
    capture.progress = dataclasses.replace(capture.progress, media_ms=6_000, last_packet_ms=node.clock())
    await waiting.until(lambda: conflicts, what="a lost deadlock")
    await node.say("stop", TaskId=node.task_id)
    await lose_messages(node.store)
    await waiting.until(lambda: capture.stopped, what="the capture to end")


async def test_a_stop_of_another_epoch(node: Node) -> None:
    """The row of a later epoch ends no capture of an earlier one: its lease does."""
    captured = await node.open()
    recording = await node.recording()
    held: list[tuple[Any, int]] = [(recording.key, recording.epoch)]
    assert await node.store.leases.to_stop(held) == set()
    async with node.store.connections.write() as connection:
        await connection.execute(update(tables.recordings).values(stop_requested=True, epoch=recording.epoch + 1))
    assert await node.store.leases.to_stop(held) == set()
    assert not captured.stopped
    assert work_doubles.POLICY.lease_ms < model.MINUTE
