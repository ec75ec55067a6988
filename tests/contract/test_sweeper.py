"""The sweeper on every engine: downtime does not count, and cleanup blocks nothing else."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import insert

from events import codec
from handlers import sweeper
from machine import database_clock, job_key, model
from store import store as stores
from store import tables
from tests import engines, examples, transactions, waiting

POLICY = model.Policy(lease_ms=examples.LEASE_MS)
AWAY_MS = model.HOUR
OWNER = job_key.RecordingKey(examples.TASK, "al", 1)


def _sweeper(store: stores.Store, clock: engines.Clock, node: str = "n", **more: Any) -> sweeper.Sweeper:
    return sweeper.Sweeper(store, node=node, policy=POLICY, clock=database_clock.DatabaseClock(clock, clock), **more)


async def _types(store: stores.Store) -> list[str]:
    return [message.type for message in await store.outbox.unsent()]


async def _live(store: stores.Store, clock: engines.Clock) -> None:
    """A recording whose capture is leased, and a deadline of the session in a minute."""
    await examples.opened(store, examples.recording())
    assert await store.leases.take(OWNER, 1, "n", examples.LEASE_MS)
    async with transactions.opened(store) as tx:
        tx.arm(job_key.SessionKey(examples.TASK), "idle", clock() + model.MINUTE)


async def test_a_process_that_stood_still_blames_nobody(store: stores.Store, clock: engines.Clock) -> None:
    """After an hour of standstill (a suspended machine, a database away) neither lease nor deadline expires: both have their
    remaining time."""
    made = _sweeper(store, clock)
    await made.run_once()
    await _live(store, clock)
    await made.run_once()
    clock.advance(AWAY_MS)
    await made.run_once()
    assert await _types(store) == []
    clock.advance(examples.LEASE_MS // 2)
    await made.run_once()
    assert await _types(store) == []


STANDSTILLS = ["before the sign of life", "after the sign of life", "before the deadlines", "after the deadlines"]


def _stand_still(monkeypatch: pytest.MonkeyPatch, part: Any, name: str, when: str, then: Callable[[], None]) -> None:
    """Let the time of `then` pass within the next call of this method of the store, before or after the database answered."""
    real = getattr(part, name)
    left = [then]

    async def slow(*args: Any, **more: Any) -> Any:
        passing = left.pop() if left else None
        if passing and when == "before":
            passing()
        answer = await real(*args, **more)
        if passing and when == "after":
            passing()
        return answer

    monkeypatch.setattr(part, name, slow)


@pytest.mark.parametrize("where", STANDSTILLS)
async def test_standing_still_inside_a_round(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """At any point of a round, a standstill or a wait for the database expires nothing: the time is given back once to all nodes
    together, and then the deadline comes when it should."""
    others = [_sweeper(store, clock, name) for name in ("a", "b")]
    made = _sweeper(store, clock)
    await made.run_once()
    await _live(store, clock)
    clock.advance(sweeper.HEARTBEAT_MS)
    when, _, what = where.partition(" the ")
    part, name = (store.nodes, "heartbeat") if what == "sign of life" else (store.deadlines, "due")
    _stand_still(monkeypatch, part, name, when, lambda: clock.advance(AWAY_MS))
    await made.run_once()
    for node in (made, *others, made):
        await node.run_once()
    assert await _types(store) == []
    from_ms = clock()
    while "deadline-passed" not in await _types(store):
        clock.advance(sweeper.HEARTBEAT_MS)
        await made.run_once()
    assert 58_000 <= clock() - from_ms <= 60_000


async def test_a_database_that_is_always_slow_holds_no_retry_up(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if every round takes longer than a node may be silent, deadlines that no downtime moves are published."""
    made = _sweeper(store, clock)
    await _live(store, clock)
    async with transactions.opened(store) as tx:
        tx.arm(OWNER, "retry", clock())
    real = store.deadlines.due

    async def slow(*args: Any, **more: Any) -> Any:
        clock.advance(AWAY_MS)
        return await real(*args, **more)

    monkeypatch.setattr(store.deadlines, "due", slow)
    await made.run_once()
    (said,) = await store.outbox.unsent()
    assert b'"retry"' in said.body


async def test_another_nodes_signs_of_life_leave_deadlines_alone(store: stores.Store, clock: engines.Clock) -> None:
    """A node that froze while another was alive extends nothing: the other could have tried."""
    made = _sweeper(store, clock)
    await made.run_once()
    await _live(store, clock)
    clock.advance(AWAY_MS)
    await store.nodes.heartbeat("other")
    await made.run_once()
    assert await _types(store) == ["deadline-passed"]


async def test_nodes_that_come_back_together_forgive_once(store: stores.Store, clock: engines.Clock) -> None:
    """The second of two nodes back from the same outage finds the first's heartbeat, and moves no deadline again."""
    nodes = [_sweeper(store, clock, name) for name in ("a", "b")]
    for node in nodes:
        await node.run_once()
    await _live(store, clock)
    clock.advance(AWAY_MS)
    for node in nodes:
        await node.run_once()
    clock.advance(model.MINUTE + 1)
    await store.nodes.heartbeat("a")
    await nodes[0].run_once()
    assert "deadline-passed" in await _types(store)


async def test_forgetting_that_fails_keeps_no_lease_from_being_judged(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cleanup runs beside the rounds. While it hangs, and after it has failed, the rounds check leases as usual."""
    tried, fails = asyncio.Event(), asyncio.Event()

    async def hangs(_: int) -> None:
        tried.set()
        await fails.wait()
        raise OSError("no room")

    monkeypatch.setattr(store.retention, "delete_messages", hangs)
    made = _sweeper(store, clock)
    await made._beat()
    await _live(store, clock)
    made.cleaning.start()
    await tried.wait()
    for _ in range(examples.LEASE_MS // sweeper.HEARTBEAT_MS + 1):
        clock.advance(sweeper.HEARTBEAT_MS)
        await made.run_once()
        fails.set()
    assert await _types(store) == ["worker-lost"]
    assert made.cleaning.failed is not None
    assert not made.cleaning.failed.done()
    await made.cleaning.stop()


# --- rows whose event nobody handles ----------------------------------------------------------------------------------
LOST = 130


async def _arm(store: stores.Store, at_ms: int, *keys: job_key.OwnerKey) -> None:
    async with transactions.opened(store) as tx:
        for key in keys:
            tx.arm(key, "retry", at_ms)


async def _published(store: stores.Store) -> list[str]:
    """The ids of the unsent events, which then count as sent: nobody handles them."""
    messages = await store.outbox.unsent(1_000)
    await store.outbox.mark_all_sent([m.seq for m in messages])
    return [codec.decode(m.body, now_ms=0).id for m in messages]


async def test_rows_whose_event_was_lost_hide_no_other(store: stores.Store, clock: engines.Clock) -> None:
    """However many deadlines wait for a lost event, the next one that passes is published in its own round."""
    made = _sweeper(store, clock)
    await _arm(store, clock(), *(job_key.RecordingKey(examples.TASK, f"s{n}", 1) for n in range(LOST)))
    for _ in range(3):
        await made.run_once()
    assert len(set(await _published(store))) == LOST
    clock.advance(sweeper.HEARTBEAT_MS)
    await _arm(store, clock(), OWNER)
    await made.run_once()
    assert len(await _published(store)) == 1


async def test_a_lost_event_is_published_again_under_its_id(store: stores.Store, clock: engines.Clock) -> None:
    """Not in every round: the pause grows. A deadline that is armed again meanwhile passes at its own time."""
    made = _sweeper(store, clock)
    await _live(store, clock)
    await _arm(store, clock(), OWNER)
    times: dict[str, list[int]] = {}
    until_ms = clock() + 10 * model.MINUTE
    while clock() < until_ms:
        await made.run_once()
        for id_ in await _published(store):
            times.setdefault(id_, []).append(clock())
        clock.advance(sweeper.HEARTBEAT_MS)
    assert len(times) == 3  # the two deadlines and the lease
    for each in times.values():
        pauses = [after - before for before, after in itertools.pairwise(each)]
        assert len(pauses) >= 2
        assert sorted(pauses) == pauses
        assert pauses[-1] >= 2 * pauses[0]
    await _arm(store, clock(), OWNER)
    await made.run_once()
    (id_,) = set(await _published(store)) - set(times)


async def test_a_row_that_cannot_be_read_ends_no_sweep(store: stores.Store, clock: engines.Clock) -> None:
    """It is logged and set aside: neither deadlines nor leases of others wait for it."""
    made = _sweeper(store, clock)
    await made.run_once()
    await _live(store, clock)
    async with store.connections.write() as connection:
        for text in ("no/number/x", "#x", "long" * 10, "broken", f"{examples.TASK}/al/0"):
            row = {"owner": text, "kind": "retry", "at_ms": clock() - 1, "serial": text}
            await connection.execute(insert(tables.deadlines).values(row))
            job = {"owner": text, "epoch": 1, "kind": "capture", "state": "leased", "node": "n", "lease_until_ms": clock() - 1}
            await connection.execute(insert(tables.jobs).values(job))
    await _arm(store, clock(), OWNER)
    for _ in range(examples.LEASE_MS // sweeper.HEARTBEAT_MS + 2):
        await made.run_once()
        clock.advance(sweeper.HEARTBEAT_MS)
    assert {id_.partition(".")[0] for id_ in await _published(store)} == {"deadline", "lost"}


async def test_nodes_publish_an_overdue_row_once(store: stores.Store, clock: engines.Clock) -> None:
    """What one node has published, another one leaves."""
    nodes = [_sweeper(store, clock, name) for name in ("a", "b", "c")]
    await _arm(store, clock(), *(job_key.RecordingKey(examples.TASK, f"s{n}", 1) for n in range(20)))
    await asyncio.gather(*(node.run_once() for node in nodes))
    await asyncio.gather(*(node.run_once() for node in nodes))
    assert len(await _published(store)) == 20


async def test_an_idle_sweeper_reads_once_a_second(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing is due, its pauses are a second and more, and differ. A deadline that it knows ends a pause in time, and
    so does a transaction of this process."""
    made = _sweeper(store, clock)
    pauses_ms = []
    for _ in range(8):
        await made.run_once()
        pauses_ms.append(made._rest_ms())
    assert 1_000 <= min(pauses_ms) <= max(pauses_ms) <= 2_000
    assert len(set(pauses_ms)) > 1
    monkeypatch.setattr(sweeper, "IDLE_MS", model.HOUR)
    await made.run_once()
    store.armed.clear()
    pause = asyncio.create_task(made._pause())
    await _arm(store, clock() + 400, OWNER)
    async with waiting.at_most(20):
        await pause
    await made.run_once()
    assert made._rest_ms() == 400


async def test_a_failed_round_is_followed_by_the_next(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database fails in two rounds: the sweep goes on, and publishes what was due meanwhile. It judges leases only after it
    has been connected for a lease again."""
    monkeypatch.setattr(sweeper, "RETRY_MS", 10)
    monkeypatch.setattr(sweeper, "IDLE_MS", 10)
    made = _sweeper(store, clock)
    await made.run_once()
    clock.advance(sweeper.HEARTBEAT_MS)
    await _live(store, clock)
    await _arm(store, clock(), OWNER)
    for _ in range(examples.LEASE_MS // sweeper.HEARTBEAT_MS + 1):
        await made._beat()
        clock.advance(sweeper.HEARTBEAT_MS)
    failed = 0
    real = store.deadlines.due

    async def fails_twice(*args: Any, **more: Any) -> Any:
        nonlocal failed
        failed += 1
        if failed <= 2:
            raise OSError("the database restarts")
        return await real(*args, **more)

    monkeypatch.setattr(store.deadlines, "due", fails_twice)
    await made.start()
    ended = made.sweep.failed
    assert ended is not None
    try:
        await waiting.until(lambda: failed > 3 or ended.done(), what="the rounds after the failed ones")
        assert not ended.done()
        assert await _types(store) == ["deadline-passed"]
        for _ in range(examples.LEASE_MS // sweeper.HEARTBEAT_MS + 1):
            clock.advance(sweeper.HEARTBEAT_MS)
            await waiting.until(lambda: made._beat_ms == clock(), what="the next heartbeat")
        await waiting.until(lambda: _said(store, "worker-lost"), what="the end of the lease")
    finally:
        await made.stop()


async def _said(store: stores.Store, type_: str) -> bool:
    return type_ in await _types(store)


@pytest.mark.parametrize(("left", "at_once"), [(sweeper.BATCH, True), (1, True), (0, False)])
async def test_a_full_batch_is_continued_at_once(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch, left: int, at_once: bool
) -> None:
    """Also if another node published a part of it meanwhile. If that node published all of it, its rounds continue."""
    made, other = _sweeper(store, clock), _sweeper(store, clock, "other")
    await _arm(store, clock(), *(job_key.RecordingKey(examples.TASK, f"s{n}", 1) for n in range(sweeper.BATCH)))
    publish = store.deadlines.publish

    async def late(messages: Any, **more: Any) -> int:
        await publish([(item, other._message(item)) for item, _ in messages[left:]], **more)
        return int(await publish(messages, **more))

    monkeypatch.setattr(store.deadlines, "publish", late)
    await made.run_once()
    assert len(await _published(store)) == sweeper.BATCH
    assert (made._rest_ms() == sweeper.MIN_PAUSE_MS) == at_once
