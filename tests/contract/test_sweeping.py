"""The sweeper on every engine: what was nobody's fault counts for nothing, and what is forgotten holds nothing else up."""

from __future__ import annotations

import pytest

from handlers import sweeper
from machine import model
from store import store as stores
from tests import engines, examples

POLICY = model.Policy(lease_ms=examples.LEASE_MS)
AWAY_MS = model.HOUR
OWNER = f"{examples.TASK}/al/1"


def _sweeper(store: stores.Store, clock: engines.Clock, node: str = "n") -> sweeper.Sweeper:
    return sweeper.Sweeper(store, node=node, policy=POLICY, clock=clock)


async def _types(store: stores.Store) -> list[str]:
    return [message.type for message in await store.unsent()]


async def _live(store: stores.Store, clock: engines.Clock) -> None:
    """A recording whose capture is leased, and a deadline of the session in a minute."""
    await examples.opened(store, examples.recording())
    assert await store.take_lease(OWNER, 1, "n", examples.LEASE_MS)
    async with store.transaction() as tx:
        await tx.arm(examples.TASK, "idle", clock() + model.MINUTE)


async def test_a_process_that_stood_still_blames_nobody(store: stores.Store, clock: engines.Clock) -> None:
    """After an hour of standing still (a suspended machine, a database away) neither lease nor deadline is over: both have the
    time again that they had left."""
    made = _sweeper(store, clock)
    await made._resume(clock())
    await _live(store, clock)
    await made.look()
    clock.advance(AWAY_MS)
    await made.look()
    assert await _types(store) == []
    clock.advance(examples.LEASE_MS // 2)
    await made.look()
    assert await _types(store) == []


async def test_another_nodes_signs_of_life_leave_deadlines_alone(store: stores.Store, clock: engines.Clock) -> None:
    """A node that stood still while another was alive forgives nothing: the other could have tried."""
    made = _sweeper(store, clock)
    await made._resume(clock())
    await _live(store, clock)
    clock.advance(AWAY_MS)
    await store.heartbeat("other")
    await made.look()
    assert await _types(store) == ["deadline-passed"]


async def test_nodes_that_come_back_together_forgive_once(store: stores.Store, clock: engines.Clock) -> None:
    """The second of two nodes back from the same outage finds the first's sign of life, and moves no deadline again."""
    nodes = [_sweeper(store, clock, name) for name in ("a", "b")]
    for node in nodes:
        await node._resume(clock())
    await _live(store, clock)
    clock.advance(AWAY_MS)
    for node in nodes:
        await node.look()
    clock.advance(model.MINUTE + 1)
    await store.heartbeat("a")
    await nodes[0].look()
    assert "deadline-passed" in await _types(store)


async def test_forgetting_that_fails_keeps_no_lease_from_being_judged(
    store: stores.Store, clock: engines.Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clean-up that raises is tried again later; the next round looks at leases as ever."""

    async def fails(_: int) -> None:
        raise OSError("no room")

    monkeypatch.setattr(store, "forget_inbox", fails)
    made = _sweeper(store, clock)
    await made._resume(clock())
    await _live(store, clock)
    with pytest.raises(OSError, match="no room"):
        await made.look()
    await store.heartbeat("other")
    clock.advance(examples.LEASE_MS + 1)
    await made.round()
    assert await _types(store) == ["worker-lost"]
