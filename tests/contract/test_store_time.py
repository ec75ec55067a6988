"""The contract of every store: jobs, leases and epochs; deadlines and downtime."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from machine import capture_progress, errors, job_key, model
from store import store as stores
from tests import engines, examples, transactions

pytestmark = pytest.mark.parametrize("database", engines.STORES, indirect=True)


# --- jobs, leases, epochs ---------------------------------------------------------------------------------------------
async def test_a_lease_is_taken_once(store: stores.Store) -> None:
    """Of several nodes that want a queued job, one gets it; the holder is known."""
    await examples.opened(store, examples.recording())
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    taken = await asyncio.gather(*(store.leases.take(owner, 1, f"n{k}", examples.LEASE_MS) for k in range(4)))
    assert sorted(taken) == [False, False, False, True]
    node = f"n{taken.index(True)}"
    assert await store.leases.is_held(owner, 1, node)
    assert not await store.leases.is_held(owner, 1, "other")
    assert (await examples.saved(store, owner)).job == model.Job(kind="capture", state="leased", node=node)
    assert [(x.owner, x.epoch, x.kind, x.node) for x in await store.leases.of_node(node)] == [(owner, 1, "capture", node)]


async def test_an_older_epoch_gets_no_lease(store: stores.Store) -> None:
    """A superseded epoch, one that never was, and a waiting job give no lease."""
    await examples.opened(store, examples.recording())
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    await examples.moved(store, owner, epoch=2, job=model.Job(kind="capture", state="queued"))
    assert not await store.leases.take(owner, 1, "n", examples.LEASE_MS)
    assert not await store.leases.take(owner, 3, "n", examples.LEASE_MS)
    assert not await store.leases.take(job_key.RecordingKey(examples.OTHER, "nobody", 1), 1, "n", examples.LEASE_MS)
    await examples.moved(store, owner, epoch=3, job=model.Job(kind="capture", state="waiting"))
    assert not await store.leases.take(owner, 3, "n", examples.LEASE_MS)
    await examples.moved(store, owner, job=model.Job(kind="capture", state="queued"))
    assert await store.leases.take(owner, 3, "n", examples.LEASE_MS)


@pytest.mark.parametrize(
    "end",
    [
        pytest.param({"job": None}, id="the job ended"),
        pytest.param({"job": None, "epoch": 2}, id="the job ended under a new epoch"),
        pytest.param({"job": model.Job(kind="transcode", state="queued"), "epoch": 2}, id="the next step"),
        pytest.param({"job": model.Job(kind="capture", state="queued"), "epoch": 4}, id="epochs were left out"),
    ],
)
async def test_a_lease_is_refused_after_the_end(store: stores.Store, end: dict[str, Any]) -> None:
    """Once its job has ended or was superseded, a lease can be neither renewed nor held, and does not expire."""
    await examples.opened(store, examples.recording())
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    assert await store.leases.take(owner, 1, "n", examples.LEASE_MS)
    assert await store.leases.renew_all([(owner, 1)], "n", examples.LEASE_MS) == set()
    assert await store.leases.renew_all([(owner, 1)], "other", examples.LEASE_MS) == {(owner, 1)}
    await examples.moved(store, owner, **end)
    assert await store.leases.renew_all([(owner, 1)], "n", examples.LEASE_MS) == {(owner, 1)}
    assert not await store.leases.is_held(owner, 1, "n")
    assert not await store.leases.take(owner, 1, "n", examples.LEASE_MS)
    assert await store.leases.of_node("n") == []


async def test_a_lease_makes_a_concurrent_decision_conflict(store: stores.Store) -> None:
    """A decision that saw the job queued must be made again when a worker took the lease meanwhile."""
    await examples.opened(store, examples.recording())
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    seen = await examples.saved(store, owner)
    assert await store.leases.take(owner, 1, "n", examples.LEASE_MS)
    with pytest.raises(errors.Conflict):
        async with transactions.opened(store) as tx:
            tx.save_recording(seen, dataclasses.replace(seen, state="Failed", job=None, epoch=2))
    assert await store.leases.is_held(owner, 1, "n")


async def test_a_lease_of_a_callback_makes_a_concurrent_decision_conflict(store: stores.Store) -> None:
    """The same for the delivery of a result."""
    await examples.opened(store)
    callback = model.Delivery(
        task_id=examples.TASK, revision=1, url="http://x/…", body="{}", epoch=1, job=model.Job(kind="callback", state="queued")
    )
    async with transactions.opened(store) as tx:
        tx.add_delivery(callback)
    async with transactions.opened(store) as tx:
        found = await tx.read("delivery", callback.key)
        assert dataclasses.replace(found, body=callback.body) == callback
    assert await store.leases.take(callback.key, 1, "n", examples.LEASE_MS)
    assert not await store.leases.take(callback.key, 1, "m", examples.LEASE_MS)
    with pytest.raises(errors.Conflict):
        async with transactions.opened(store) as tx:
            tx.save_delivery(callback, dataclasses.replace(callback, state="cancelled", job=None))


async def test_leases_end_by_time_and_renewals_move_that(store: stores.Store, clock: engines.Clock) -> None:
    """A lease expires after its time without a renewal, not before; only expired ones are returned."""
    await examples.opened(store, examples.recording(), examples.recording(speaker="bo"))
    for speaker in ("al", "bo"):
        assert await store.leases.take(job_key.RecordingKey(examples.TASK, speaker, 1), 1, "n", examples.LEASE_MS)
    clock.advance(20_000)
    renewed = [(job_key.RecordingKey(examples.TASK, "al", 1), 1)]
    assert await store.leases.renew_all(renewed, "n", examples.LEASE_MS) == set()
    clock.advance(10_001)
    assert [x.owner for x in await store.deadlines.expired()] == [job_key.RecordingKey(examples.TASK, "bo", 1)]
    clock.advance(20_000)
    assert len(await store.deadlines.expired()) == 2
    assert await store.leases.of_node("elsewhere") == []


async def test_a_renewal_notes_media_for_recording_and_session(store: stores.Store, clock: engines.Clock) -> None:
    """The time of the last packet moves the start of idle time, forwards only, and disturbs no decision."""
    await examples.opened(store, examples.recording())
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    assert await store.leases.take(owner, 1, "n", examples.LEASE_MS)
    seen = await examples.saved(store, owner)
    for last_ms in (clock() + 5_000, clock() + 2_000):
        await store.segments.note_progress({(owner, 1): capture_progress.CaptureProgress(last_packet_ms=last_ms)})
    async with transactions.opened(store) as tx:
        saved = tx.save_recording(seen, dataclasses.replace(seen, detail="a concurrent decision"))
        session = await tx.session(examples.TASK)
    assert saved.version == seen.version + 1
    assert session is not None
    assert session.idle_from_ms == clock() + 5_000
    assert (await examples.saved(store, owner)).idle_from_ms == clock() + 5_000


async def test_media_of_a_superseded_epoch_moves_no_idle_time(store: stores.Store, clock: engines.Clock) -> None:
    """A worker that wakes from a freeze still has media to note: it writes nothing."""
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    await examples.opened(store, examples.recording(epoch=2))
    async with transactions.opened(store) as tx:
        before = await tx.session(examples.TASK)
    await store.segments.note_progress({(owner, 1): capture_progress.CaptureProgress(last_packet_ms=clock() + 5_000)})
    async with transactions.opened(store) as tx:
        assert await tx.session(examples.TASK) == before
    assert (await examples.saved(store, owner)).idle_from_ms < clock() + 5_000


# --- deadlines --------------------------------------------------------------------------------------------------------
async def test_a_deadline_armed_anew_has_a_new_serial(store: stores.Store, clock: engines.Clock) -> None:
    """Arming again replaces: one deadline, a new serial and a new time; the old serial is void."""
    async with transactions.opened(store) as tx:
        tx.arm(job_key.SessionKey(examples.TASK), "idle", clock() - 2)
    (first,) = await store.deadlines.due()
    async with transactions.opened(store) as tx:
        tx.arm(job_key.SessionKey(examples.TASK), "idle", clock() - 1)
    (second,) = await store.deadlines.due()
    assert first.serial != second.serial
    async with transactions.opened(store) as tx:
        assert await tx.read("deadline", job_key.SessionKey(examples.TASK), "idle") == second.serial
        tx.arm(job_key.SessionKey(examples.TASK), "idle", clock() + 9, once=True)
    assert await store.deadlines.due() == [second]
    async with transactions.opened(store) as tx:
        tx.disarm(job_key.SessionKey(examples.TASK), "idle")
    async with transactions.opened(store) as tx:
        assert await tx.read("deadline", job_key.SessionKey(examples.TASK), "idle") == ""
    assert await store.deadlines.due() == []


async def test_deadlines_are_due_in_order_and_not_before(store: stores.Store, clock: engines.Clock) -> None:
    """Overdue deadlines are returned, oldest first, up to the limit; disarmed and future ones are not."""
    async with transactions.opened(store) as tx:
        for kind, after_ms in (("join", 30), ("idle", 10), ("max-duration", 20), ("linger", 1_000), ("retry", 5)):
            tx.arm(job_key.SessionKey(examples.TASK), kind, clock() + after_ms)
        tx.disarm(job_key.SessionKey(examples.TASK), "retry")
        tx.disarm(job_key.SessionKey(examples.TASK), "keep")
    assert await store.deadlines.due() == []
    clock.advance(30)
    assert [d.kind for d in await store.deadlines.due()] == ["idle", "max-duration", "join"]
    assert [d.kind for d in await store.deadlines.due(limit=1)] == ["idle"]


async def test_downtime_is_forgiven(store: stores.Store, clock: engines.Clock) -> None:
    """Join, idle and linger deadlines move by the downtime, and so does the start of idle time; the others keep their time."""
    await examples.opened(
        store,
        examples.recording(idle_from_ms=clock()),
        examples.recording(speaker="bo", state="Done", idle_from_ms=clock(), job=None),
    )
    async with transactions.opened(store) as tx:
        for kind in ("join", "idle", "linger", "max-duration", "result-wait", "retry", "keep"):
            tx.arm(job_key.SessionKey(examples.TASK), kind, clock() + 1_000)
    await store.nodes.heartbeat("a")
    clock.advance(60_000)
    assert await store.nodes.heartbeat("a", over_ms=59_999) == 60_000
    assert {d.kind for d in await store.deadlines.due()} == {"max-duration", "result-wait", "retry", "keep"}
    clock.advance(1_000)
    assert len(await store.deadlines.due()) == 7
    async with transactions.opened(store) as tx:
        session = await tx.session(examples.TASK)
        assert session is not None
        assert session.idle_from_ms == engines.START_MS + 60_000
        assert {r.speaker: r.idle_from_ms - engines.START_MS for r in await tx.read("recordings", examples.TASK)} == {
            "al": 60_000,
            "bo": 0,
        }


async def test_the_last_heartbeat_of_any_node_counts(store: stores.Store, clock: engines.Clock) -> None:
    """A new database has no downtime; later, downtime is the time since the newest heartbeat of any node, if longer than the
    tolerance."""
    assert await store.nodes.heartbeat("a", over_ms=0) == 0
    clock.advance(5_000)
    await store.nodes.heartbeat("b")
    await store.nodes.heartbeat("b")
    assert await store.nodes.heartbeat("a", over_ms=0) == 0
    clock.advance(1_000)
    assert await store.nodes.heartbeat("a", over_ms=1_000) == 0
    clock.advance(1_000)
    assert await store.nodes.heartbeat("a", over_ms=999) == 1_000
