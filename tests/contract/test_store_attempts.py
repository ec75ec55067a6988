"""Counts of messages' tries, and workers' spare capacity, on each engine."""

from __future__ import annotations

import asyncio

from machine import model
from store import store as stores
from tests import engines


async def test_tries_are_counted_by_message(store: stores.Store, clock: engines.Clock) -> None:
    """Each message has its own count; one try can be taken back, all can be dropped, and old counts are."""
    kept = store.attempts
    assert await kept.count("m1") == 0
    assert [await kept.add("m1"), await kept.add("m1"), await kept.add("m2")] == [1, 2, 1]
    await kept.take_back("m1")
    await kept.take_back("m2")
    await kept.take_back("m2")
    await kept.take_back("m3")
    assert [await kept.count(m) for m in ("m1", "m2", "m3")] == [1, 0, 0]
    await kept.forget("m1")
    assert await kept.count("m1") == 0
    clock.advance(1_000)
    await kept.add("young")
    await store.retention.delete_messages(clock())
    assert [await kept.count(m) for m in ("m2", "young")] == [0, 1]


async def test_tries_counted_at_once_are_all_counted(store: stores.Store) -> None:
    """Two concurrent tries of one message count two."""
    assert sorted(await asyncio.gather(*(store.attempts.add("m1") for _ in range(8)))) == list(range(1, 9))


async def test_workers_that_live_tell_their_room(store: stores.Store, clock: engines.Clock) -> None:
    """Only live workers have spare capacity; the newest report counts."""
    room = model.SpareCapacity(free_bytes=10, needed_bytes=20, busy="full")
    await store.nodes.heartbeat("old", spare=room)
    clock.advance(1_000)
    await store.nodes.heartbeat("api")
    await store.nodes.heartbeat("w1", spare=room)
    await store.nodes.heartbeat("w2", spare=model.SpareCapacity(free_bytes=2**40, needed_bytes=0))
    await store.nodes.heartbeat("w3", spare=model.SpareCapacity(free_bytes=None, needed_bytes=0, busy="its spool cannot be read"))
    await store.nodes.heartbeat("w1", spare=model.SpareCapacity(free_bytes=11, needed_bytes=20))
    found = await store.nodes.spare_capacities(clock())
    said = [(r.free_bytes, r.needed_bytes, r.busy) for r in found]
    assert said == [(11, 20, ""), (2**40, 0, ""), (None, 0, "its spool cannot be read")]
