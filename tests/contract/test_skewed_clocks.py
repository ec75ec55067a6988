"""Clocks that are wrong. Nodes whose machine's clock is off or steps lose nothing, and tell it. A database whose clock is set
moves what waits along."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from sqlalchemy import event, insert

from events import codec
from handlers import sweeper
from machine import database_clock, job_key, model
from store import connections, tables
from store import store as stores
from tests import engines, examples, transactions

POLICY = model.Policy(lease_ms=examples.LEASE_MS)
OWNER = job_key.RecordingKey(examples.TASK, "al", 1)
SESSION = job_key.SessionKey(examples.TASK)
SKEWS_MS = [-model.HOUR, -40_000, 1_000, model.HOUR]
# Longer than any pause of a busy machine.
LONG_MS = 10 * model.MINUTE
TOLD_WITHIN_MS = 10_000
LOCK_ORDER = ("sessions", "recordings", "jobs", "deadlines")
LOCKED = re.compile(r"^UPDATE (\w+)|^SELECT .*?FROM (\w+).*FOR UPDATE", re.DOTALL)


@pytest.fixture(params=SKEWS_MS)
def skew_ms(request: pytest.FixtureRequest) -> int:
    """How far the node's clock is ahead."""
    return int(request.param)


@pytest.fixture
async def wrong(database: engines.Database, skew_ms: int) -> AsyncIterator[stores.Store]:
    """The store of a node whose clock is off. Its statements take the database's own time."""
    clock = lambda: database_clock.unix_ms() + skew_ms  # noqa: E731
    made = stores.Store(connections.open_database(database.url), clock=clock, keyring=engines.keyring())
    yield made
    await made.stop()


@pytest.fixture
async def right(database: engines.Database) -> AsyncIterator[stores.Store]:
    """The store of another node, whose clock is right."""
    made = stores.Store(connections.open_database(database.url), clock=database_clock.unix_ms, keyring=engines.keyring())
    yield made
    await made.stop()


async def test_leases(wrong: stores.Store, right: stores.Store) -> None:
    """A lease lasts as long as it should: it neither ends at once nor stays."""
    await examples.opened(wrong, examples.recording(), examples.recording(speaker="bo"))
    other = job_key.RecordingKey(examples.TASK, "bo", 1)
    assert await wrong.leases.take(OWNER, 1, "off", LONG_MS)
    assert await wrong.leases.take(other, 1, "off", -1)
    for judge in (right, wrong):
        assert [lease.owner for lease in await judge.deadlines.expired()] == [other]
    assert await wrong.leases.renew_all([(OWNER, 1), (other, 1)], "off", LONG_MS) == set()
    assert await right.deadlines.expired() == await wrong.deadlines.expired() == []
    assert await right.leases.renew_all([(OWNER, 1)], "off", -1) == set()
    for judge in (right, wrong):
        assert [lease.owner for lease in await judge.deadlines.expired()] == [OWNER]


async def test_claims(wrong: stores.Store, right: stores.Store) -> None:
    """A claim on the outbox holds as long as it should, and so does the pause before a retry."""
    for id_ in ("e1", "e2", "e3"):
        await wrong.outbox.send("event", codec.make("stop", id=id_, time_ms=0, data={"TaskId": examples.TASK}))
    held, over, late = await wrong.outbox.claim(3, LONG_MS)
    await wrong.outbox.release([over.seq, late.seq])
    assert [message.seq for message in await wrong.outbox.claim(1, -1)] == [over.seq]
    await wrong.outbox.postpone({late.seq: LONG_MS})
    assert [message.seq for message in await right.outbox.due(9)] == [over.seq]
    assert [message.seq for message in await right.outbox.claim(9, LONG_MS)] == [over.seq]
    assert held.seq not in {message.seq for message in await wrong.outbox.claim(9, LONG_MS)}


async def test_decisions_and_deadlines(wrong: stores.Store, right: stores.Store) -> None:
    """A decision sees the database's time, and a deadline passes by it."""
    seen: list[int] = []
    before_ms = await right.nodes.now_ms()

    def handler(snapshot: Any, tx: transactions.Transaction) -> None:
        seen.append(snapshot.now_ms)
        tx.arm(SESSION, "retry", snapshot.now_ms)
        tx.arm(SESSION, "idle", snapshot.now_ms + LONG_MS)

    await transactions.decide(wrong, examples.event(), handler)
    assert before_ms <= seen[0] <= await right.nodes.now_ms()
    for judge in (right, wrong):
        assert [deadline.kind for deadline in await judge.deadlines.due()] == ["retry"]
        assert [deadline.kind for deadline in await judge.deadlines.due(ahead_ms=LONG_MS)] == ["retry", "idle"]


async def test_heartbeats(wrong: stores.Store, database: engines.Database, skew_ms: int) -> None:
    """Heartbeats of a node whose clock is off look like no downtime, to itself and to others; what its clock is off by is in
    its row."""
    clock = database_clock.DatabaseClock(lambda: database_clock.unix_ms() + skew_ms)
    off = sweeper.Sweeper(wrong, node="off", policy=POLICY, clock=clock)
    right = sweeper.Sweeper(wrong, node="right", policy=POLICY, clock=database_clock.DatabaseClock())
    async with transactions.opened(wrong) as tx:
        tx.arm(SESSION, "idle", 1)
    for node in (off, right, off, right):
        await node._beat()
    assert database.ask("SELECT at_ms FROM deadlines") == [(1,)]
    told = dict(database.ask("SELECT node, skew_ms FROM nodes"))
    assert abs(told["off"] - skew_ms) < 500
    assert abs(told["right"]) < 500
    assert bool(clock.warnings()) == (abs(clock.skew_ms) >= database_clock.OFF_MS)


# --- clocks that are set ----------------------------------------------------------------------------------------------


class Machines:
    """A database and two nodes, each with a clock that a test sets; spans are true."""

    def __init__(self, store: stores.Store, clock: engines.Clock) -> None:
        self.clock = clock
        self.passed = engines.Clock()
        self.machine, self.other = engines.Clock(), engines.Clock()
        node = database_clock.DatabaseClock(self.machine, self.passed)
        other = database_clock.DatabaseClock(self.other, self.passed)
        self.nodes = [sweeper.Sweeper(store, node=n, policy=POLICY, clock=c) for n, c in (("a", node), ("b", other))]

    def advance(self, ms: int) -> None:
        """Let `ms` pass on all clocks."""
        for each in (self.clock, self.passed, self.machine, self.other):
            each.advance(ms)

    async def rounds(self, count: int) -> None:
        """Let that many heartbeats' time pass, with a round of each node after each."""
        for _ in range(count):
            self.advance(sweeper.HEARTBEAT_MS)
            for node in self.nodes:
                await node.run_once()


@pytest.fixture
async def machines(store: stores.Store, clock: engines.Clock) -> Machines:
    """Connected for more than a lease."""
    made = Machines(store, clock)
    await made.rounds(POLICY.lease_ms // sweeper.HEARTBEAT_MS + 2)
    return made


async def _said(store: stores.Store) -> list[str]:
    found = await store.outbox.unsent(1_000)
    await store.outbox.mark_all_sent([message.seq for message in found])
    return [message.type for message in found]


@pytest.mark.parametrize("step_ms", [-model.HOUR, -600_000, model.HOUR])
async def test_a_machine_whose_clock_is_set(
    machines: Machines, store: stores.Store, database: engines.Database, step_ms: int
) -> None:
    """Its heartbeats go on, nothing is moved, and what is due is published. The log reports each step once, within ten seconds,
    and so does the node's row."""
    async with transactions.opened(store) as tx:
        tx.arm(SESSION, "idle", machines.clock() + model.MINUTE)
    for times in (1, 2):
        machines.machine.advance(step_ms)
        with structlog.testing.capture_logs() as lines:
            await machines.rounds(TOLD_WITHIN_MS // sweeper.HEARTBEAT_MS)
        told = [(line["node"], line["skew_ms"]) for line in lines if line["event"] == "node.clock_off"]
        assert told == [("a", times * step_ms)]
        assert dict(database.ask("SELECT node, skew_ms FROM nodes")) == {"a": times * step_ms, "b": 0}
    assert dict(database.ask("SELECT node, seen_ms FROM nodes"))["a"] == machines.clock()
    assert await _said(store) == []
    await machines.rounds(model.MINUTE // sweeper.HEARTBEAT_MS)
    assert await _said(store) == ["deadline-passed"]


@pytest.mark.parametrize("step_ms", [-model.HOUR, -600_000, -10_000])
async def test_a_database_whose_clock_is_set_back(machines: Machines, store: stores.Store, step_ms: int) -> None:
    """Whatever waits for a time moves back with it, once: retries and idle times come when they should, leases end when they
    should, and claims too."""
    await examples.opened(store, examples.recording(idle_from_ms=machines.clock()))
    assert await store.leases.take(OWNER, 1, "gone", POLICY.lease_ms)
    async with transactions.opened(store) as tx:
        tx.arm(SESSION, "idle", machines.clock() + model.MINUTE)
        tx.arm(OWNER, "retry", machines.clock() + 6_000)
    await store.outbox.send("event", examples.event())
    await store.outbox.claim(1, 12_000)
    machines.clock.advance(step_ms)
    await machines.rounds(1)
    assert (await examples.saved(store, OWNER)).idle_from_ms <= machines.clock()
    assert await _types(store) == ["stop"]
    await machines.rounds(3)
    assert await _types(store) == ["stop", "deadline-passed"]
    await machines.rounds(4)
    assert "stop" in [message.type for message in await store.outbox.claim(1, 0)]
    await _said(store)
    await machines.rounds(POLICY.lease_ms // sweeper.HEARTBEAT_MS)
    assert "worker-lost" in await _said(store)
    await machines.rounds(model.MINUTE // sweeper.HEARTBEAT_MS)
    assert "deadline-passed" in await _said(store)


async def test_a_clock_set_back_locks_rows_in_the_order_of_decisions(machines: Machines, store: stores.Store) -> None:
    """What moves with the clock is locked table by table in the order that `store/connections.py` states, so that two of these
    never wait for each other."""
    await examples.opened(store, examples.recording())
    statements: list[str] = []
    engine = store.connections.engine.sync_engine
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    machines.clock.advance(-model.HOUR)
    assert await store.nodes.heartbeat("a", over_ms=sweeper.DOWNTIME_MS) < 0
    locked = [match[1] or match[2] for match in map(LOCKED.match, statements) if match]
    assert set(locked) == {*LOCK_ORDER, "outbox", "nodes"}
    in_order = [table for table in locked if table in LOCK_ORDER]
    assert in_order == sorted(in_order, key=LOCK_ORDER.index)


async def _types(store: stores.Store) -> list[str]:
    return [message.type for message in await store.outbox.unsent(1_000)]


async def test_a_database_whose_clock_is_set_forward(machines: Machines, store: stores.Store) -> None:
    """No lease of a living worker ends, and idle times stay as long as they were."""
    await examples.opened(store, examples.recording())
    assert await store.leases.take(OWNER, 1, "lives", POLICY.lease_ms)
    async with transactions.opened(store) as tx:
        tx.arm(SESSION, "idle", machines.clock() + model.MINUTE)
    machines.clock.advance(model.HOUR)
    for node in machines.nodes:
        await node.run_once()
    assert await _said(store) == []
    await machines.rounds(1)
    assert await store.leases.renew_all([(OWNER, 1)], "lives", POLICY.lease_ms) == set()
    await machines.rounds(4)
    assert await _said(store) == []
    await machines.rounds(model.MINUTE // sweeper.HEARTBEAT_MS)
    assert set(await _said(store)) == {"deadline-passed", "worker-lost"}


async def test_a_node_of_an_older_version_ahead(machines: Machines, store: stores.Store, database: engines.Database) -> None:
    """It writes its heartbeats by its own clock, an hour ahead: that moves nothing."""
    async with transactions.opened(store) as tx:
        tx.arm(SESSION, "idle", machines.clock() + model.MINUTE)
    armed = database.ask("SELECT at_ms FROM deadlines")
    async with store.connections.write() as connection:
        await connection.execute(insert(tables.nodes).values(node="old", url="", seen_ms=machines.clock() + model.HOUR))
    await machines.rounds(3)
    assert database.ask("SELECT at_ms FROM deadlines") == armed
