"""Admission of a start on a cluster, by its workers' spare capacity, on each engine."""

from __future__ import annotations

import asyncio

import pytest

from handlers import admission
from machine import errors, model
from store import store as stores
from tests import engines
from tests.work_doubles import measured
from worker import capacity, cpu_usage

ALIVE_MS = 60_000
FULL = model.SpareCapacity(free_bytes=3 << 20, needed_bytes=9 << 20)
ROOMY = model.SpareCapacity(free_bytes=9 << 20, needed_bytes=3 << 20)


@pytest.fixture
def door(store: stores.Store, clock: engines.Clock) -> admission.Admission:
    return admission.Admission(store, clock=clock, alive_ms=ALIVE_MS)


async def test_refused_where_no_living_worker_has_room(
    door: admission.Admission, store: stores.Store, clock: engines.Clock
) -> None:
    """One worker with spare capacity is enough; a dead one does not count; without one the refusal names the missing space."""
    await store.nodes.heartbeat("api")
    await store.nodes.heartbeat("w1", spare=FULL)
    await store.nodes.heartbeat("w2", spare=ROOMY)
    assert await door.check() == ()
    clock.advance(ALIVE_MS + 1)
    await store.nodes.heartbeat("w1", spare=FULL)
    with pytest.raises(errors.InsufficientSpace, match="the best has 3 MiB free, and 9 MiB are needed"):
        await door.check()


def _unreadable() -> model.SpareCapacity:
    """The spare capacity of a worker with an unreadable spool."""

    def gone() -> int:
        raise errors.Unavailable("The spool folder /s cannot be read: Stale file handle.")

    limits = capacity.CaptureLimits(captures=0, cpu=0, load=0, free_bytes=lambda: 0)
    live = cpu_usage.LiveCpu(dict, cpus=1)
    return capacity.Capacity(
        limits,
        slots={},
        pause=_nothing,
        resume=_nothing,
        running=lambda _: 0,
        freed=asyncio.Event(),
        live=live,
        measure=measured,
        free_bytes=gone,
        load=lambda: 0.0,
    ).spare()


async def _nothing(_: str) -> None:
    """Neither pause nor resume a bus."""


async def test_a_spool_that_cannot_be_read_is_not_a_full_one(door: admission.Admission, store: stores.Store) -> None:
    """If no spool is readable, a start is retryable, with the reason; otherwise the readable spools decide alone."""
    await store.nodes.heartbeat("w1", spare=_unreadable())
    with pytest.raises(errors.Unavailable, match="/s cannot be read: Stale file handle") as refused:
        await door.check()
    assert refused.value.retry
    await store.nodes.heartbeat("w2", spare=FULL)
    with pytest.raises(errors.InsufficientSpace, match="has 3 MiB free, and 9 MiB are needed"):
        await door.check()
    await store.nodes.heartbeat("w2", spare=ROOMY)
    assert await door.check() == ()


async def test_what_only_makes_captures_wait_is_a_warning(door: admission.Admission, store: stores.Store) -> None:
    """Without a worker, or with busy workers only, a start is accepted with a warning."""
    assert "No worker is alive" in (await door.check())[0]
    busy = model.SpareCapacity(free_bytes=9 << 20, needed_bytes=3 << 20, busy="2 captures run, MAX_CAPTURES is 2")
    await store.nodes.heartbeat("w1", spare=busy)
    assert "MAX_CAPTURES is 2" in (await door.check())[0]
    await store.nodes.heartbeat("w2", spare=ROOMY)
    assert await door.check() == ()
