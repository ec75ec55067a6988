"""The contract of every store: claims, guarded updates, one Open session per key, and that no commit is lost."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from events import object_attributes, requests
from machine import errors, job_key, model, ports
from store import store as stores
from tests import engines, examples, transactions

pytestmark = pytest.mark.parametrize("database", engines.STORES, indirect=True)


# --- inbox ------------------------------------------------------------------------------------------------------------
async def test_an_event_is_claimed_once(store: stores.Store) -> None:
    """The first claim of an id is ours; every later one gets the first answer."""
    answers = [{"a": 1}, {"a": 2}, {}, {"a": 3}]
    for id_, first in (("e1", {"a": 1}), ("e1", {"a": 1}), ("e2", {}), ("e2", {})):
        answer = answers.pop(0)
        assert await transactions.decide(store, examples.event(id_), lambda *_, answer=answer: answer) == first
    assert await store.decisions.answered("e1") == ({"a": 1}, engines.START_MS)
    assert await store.decisions.answered("e2") == ({}, engines.START_MS)
    assert await store.decisions.answered("e3") is None


async def test_two_claims_at_once_have_one_winner(store: stores.Store) -> None:
    """Concurrent deliveries of one event are decided once, and all get the same answer."""
    decided = []

    def handler(snapshot: ports.Snapshot, tx: transactions.Transaction) -> dict[str, Any]:
        decided.append(snapshot.now_ms)
        return {"n": len(decided)}

    answers = await asyncio.gather(*(transactions.decide(store, examples.event(), handler) for _ in range(5)))
    assert answers == [{"n": 1}] * 5
    assert decided == [engines.START_MS]


async def test_a_rollback_leaves_nothing(store: stores.Store, database: engines.Database) -> None:
    """A transaction's writes before an error, the claim included, are rolled back."""

    event = examples.event()

    def handler(snapshot: ports.Snapshot, tx: transactions.Transaction) -> None:
        tx.add_session(examples.session(), examples.SECRETS)
        tx.add_recording(examples.recording())
        tx.arm(job_key.SessionKey(examples.TASK), "join", 0)
        tx.journal(job_key.SessionKey(examples.TASK), event, "", "Open", "x")
        tx.send("event", event, examples.TASK)
        tx.changes.applications.add(examples.ROOM.sdk_app_id)
        raise errors.Refused("no")

    with pytest.raises(errors.Refused):
        await transactions.decide(store, event, handler)
    assert await store.decisions.answered("e1") is None
    async with transactions.opened(store) as tx:
        assert await tx.session(examples.TASK) is None
        assert await tx.recording(job_key.RecordingKey(examples.TASK, "al", 1)) is None
        assert await tx.read("secrets", examples.TASK) == requests.Secrets()
        assert not await tx.read("callback_ms", examples.ROOM.sdk_app_id)
    assert await store.outbox.unsent() == []
    assert await store.deadlines.due() == []
    assert await store.leases.take(job_key.RecordingKey(examples.TASK, "al", 1), 1, "n", examples.LEASE_MS) is False


async def test_a_conflict_is_decided_again(store: stores.Store) -> None:
    """A decision whose row was changed concurrently is loaded and made again, and its first try leaves nothing."""
    await examples.opened(store, examples.recording())
    failures = []

    event = examples.event()

    def handler(snapshot: ports.Snapshot, tx: transactions.Transaction) -> None:
        found = snapshot.recording(job_key.RecordingKey(examples.TASK, "al", 1))
        assert found is not None
        failures.append(found.version)
        tx.journal(job_key.SessionKey(examples.TASK), event, note=f"try {len(failures)}")
        stale = dataclasses.replace(found, version=found.version - 1) if len(failures) == 1 else found
        tx.save_recording(stale, dataclasses.replace(stale, detail="x"))

    await transactions.decide(store, event, handler)
    assert len(failures) == 2
    lines = await engines.reader(store).timeline(examples.TASK)
    assert [line.note for line in lines] == ["try 2"]


# --- guarded updates --------------------------------------------------------------------------------------------------
async def test_an_update_of_a_moved_row_is_a_conflict(store: stores.Store) -> None:
    """A save from an older version, or from another state, raises Conflict and writes nothing."""
    await examples.opened(store, examples.recording())
    old = await examples.saved(store, job_key.RecordingKey(examples.TASK, "al", 1))
    moved = await examples.moved(store, old.key, state="Recording")
    assert moved.version == old.version + 1
    with pytest.raises(errors.Conflict):
        async with transactions.opened(store) as tx:
            tx.save_recording(old, dataclasses.replace(old, state="Failed"))
    lying = dataclasses.replace(moved, state="Joining")
    with pytest.raises(errors.Conflict):
        async with transactions.opened(store) as tx:
            tx.save_recording(lying, dataclasses.replace(lying, state="Failed"))
    assert (await examples.saved(store, old.key)).state == "Recording"


async def test_a_session_and_a_callback_are_guarded_too(store: stores.Store) -> None:
    """Sessions and deliveries are saved only from their loaded version."""
    await examples.opened(store)
    callback = model.Delivery(task_id=examples.TASK, revision=1, url="http://x/", body="{}", epoch=1)
    async with transactions.opened(store) as tx:
        old = await tx.session(examples.TASK)
        assert old is not None
        tx.save_session(old, dataclasses.replace(old, published=True))
        tx.add_delivery(callback)
    async with transactions.opened(store) as tx:
        tx.save_delivery(callback, dataclasses.replace(callback, failures=1))
    with pytest.raises(errors.Conflict):
        async with transactions.opened(store) as tx:
            tx.save_session(old, dataclasses.replace(old, state="Closing"))
    with pytest.raises(errors.Conflict):
        async with transactions.opened(store) as tx:
            tx.save_delivery(callback, dataclasses.replace(callback, state="failed"))


async def test_what_is_saved_comes_back(store: stores.Store) -> None:
    """Every field of a recording, session and delivery survives the database."""
    output = model.Output(duration_ms=5, size_bytes=6, crc64="7", start_ms=8, end_ms=None, gaps=((1, 2), (3, 4)))
    request = examples.request(
        room=requests.Room(sdk_app_id=4294967295, str_room_id="房间 ../%2F|~"), callback="https://x/…", mode="02",
        attributes=object_attributes.ObjectAttributes(storage_class="ARCHIVE", tagging="a=1"),
    )  # fmt: skip
    session = examples.session(
        request=request, warnings=("w1", "w2"), state="Closing", closing_ms=5, end_reason="Stopped", revision=3
    )
    full = examples.recording(
        speaker="a/b#c 说",
        mode="02",
        state="Uploading",
        stop_requested=True,
        epoch=9,
        replays=1,
        failures=3,
        present=False,
        never_seen=True,
        last_pull=True,
        publish_pending=True,
        idle_from_ms=2**53,
        stage_started_ms=4,
        ended_ms=5,
        first_packet_ms=6,
        last_packet_ms=7,
        media_ms=8,
        code="FailedCosWrite",
        detail="é\n'\"",
        output=output,
        url="https://x",
        job=model.Job(kind="upload", state="queued"),
        files_removed=True,
    )
    await examples.opened(store, full, of=session)
    async with transactions.opened(store) as tx:
        assert await tx.session(examples.TASK) == dataclasses.replace(session, live=1, uploading=1)
        assert await tx.read("recordings", examples.TASK) == [full]
        assert await tx.read("secrets", examples.TASK) == examples.SECRETS
    assert job_key.parse(str(full.key)) == job_key.RecordingKey(examples.TASK, "a/b#c 说", 1)


# --- the open key -----------------------------------------------------------------------------------------------------
async def test_one_open_session_a_key(store: stores.Store) -> None:
    """A second Open session of a key is a Conflict; other kinds of room, users and applications are other keys."""
    await examples.opened(store)
    with pytest.raises(errors.Conflict):
        await examples.opened(store, of=examples.session(examples.OTHER))
    others = [
        examples.request(room=requests.Room(sdk_app_id=examples.ROOM.sdk_app_id, str_room_id="88")),
        examples.request(user_id="rec2"),
        examples.request(room=requests.Room(sdk_app_id=2, room_id=88)),
    ]
    for number, request in enumerate(others):
        await examples.opened(store, of=examples.session("02" + str(number).zfill(24), request=request))
    async with transactions.opened(store) as tx:
        for request in (examples.request(), *others):
            there = await tx.read("sessions_in", request.room)
            (found,) = (s for s in there if s.request.user_id == request.user_id)
            assert found.request.room == request.room
        assert [s.task_id for s in await tx.read("sessions_in", examples.ROOM)] == [examples.TASK, "02" + "1".zfill(24)]


async def test_two_starts_at_once_open_one_session(store: stores.Store) -> None:
    """Concurrent starts of one key end with one session and one answer."""
    new_id = engines.ids()

    def handler(snapshot: ports.Snapshot, tx: transactions.Transaction) -> dict[str, Any]:
        found = next((s for s in snapshot.sessions_in(examples.ROOM) if s.state == "Open"), None)
        if found is None:
            found = examples.session(new_id())
            tx.add_session(found, examples.SECRETS)
        return {"TaskId": found.task_id}

    answers = await asyncio.gather(*(transactions.decide(store, examples.event(f"e{n}", "start"), handler) for n in range(5)))
    assert len({a["TaskId"] for a in answers}) == 1
    assert len((await engines.reader(store).sessions())[0]) == 1


async def test_a_closing_session_frees_its_key(store: stores.Store) -> None:
    """A start during Closing finds no Open session and may open another."""
    await examples.opened(store)
    async with transactions.opened(store) as tx:
        old = await tx.session(examples.TASK)
        assert old is not None
        tx.save_session(old, dataclasses.replace(old, state="Closing"))
    async with transactions.opened(store) as tx:
        assert [s.state for s in await tx.read("sessions_in", examples.ROOM)] == ["Closing"]
        tx.add_session(examples.session(examples.OTHER), examples.SECRETS)
    async with transactions.opened(store) as tx:
        assert [s.task_id for s in await tx.read("sessions_in", examples.ROOM)] == [examples.TASK, examples.OTHER]


async def test_an_unknown_state_is_refused(store: stores.Store) -> None:
    """The database itself refuses a state that is not in the design's table."""
    await examples.opened(store, examples.recording())
    with pytest.raises((IntegrityError, errors.Conflict)):
        await examples.moved(store, job_key.RecordingKey(examples.TASK, "al", 1), state="Paused")


# --- the whole file ---------------------------------------------------------------------------------------------------
async def test_everything_is_there_after_reopening(store: stores.Store, database: engines.Database, clock: engines.Clock) -> None:
    """A reopened database has every commit, and continues its numbering."""
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    await examples.opened(store, examples.recording())
    await transactions.claim(store, "e1")
    async with transactions.opened(store) as tx:
        tx.arm(job_key.SessionKey(examples.TASK), "idle", clock())
        tx.send("command", examples.event(), examples.TASK)
        tx.journal(job_key.SessionKey(examples.TASK), examples.event(), note="x")
    await store.leases.take(owner, 1, "n", examples.LEASE_MS)
    await store.segments.register(owner, 1, "n")
    (before,) = await store.outbox.unsent()
    await store.stop()
    again = database.open(clock, engines.ids("03"))
    try:
        await again.start()
        await again.connections.ping()
        async with transactions.opened(again) as tx:
            assert await again.decisions.answered("e1") is not None
            assert await tx.session(examples.TASK) is not None
            assert await tx.read("secrets", examples.TASK) == examples.SECRETS
        assert await again.leases.renew_all([(owner, 1)], "n", examples.LEASE_MS) == set()
        assert [s.epoch for s in await again.segments.of_recording(owner)] == [1]
        assert [d.kind for d in await again.deadlines.due()] == ["idle"]
        assert await again.outbox.unsent() == [before]
        assert [x.note for x in await engines.reader(again).timeline(examples.TASK)] == ["x"]
    finally:
        await again.stop()


async def test_stopping_twice_is_safe(store: stores.Store) -> None:
    """A store may be stopped twice."""
    await store.stop()
    await store.stop()


async def test_writers_do_not_get_in_each_other_s_way(store: stores.Store) -> None:
    """Many concurrent decisions, renewals and reads all succeed: none meets a locked database."""
    await examples.opened(store, examples.recording())
    owner = job_key.RecordingKey(examples.TASK, "al", 1)
    assert await store.leases.take(owner, 1, "n", examples.LEASE_MS)

    async def decide(n: int) -> None:
        event = examples.event(f"e{n}")

        def handler(snapshot: ports.Snapshot, tx: transactions.Transaction) -> None:
            assert snapshot.session(examples.TASK) is not None
            tx.journal(job_key.SessionKey(examples.TASK), event, note=str(n))

        await transactions.decide(store, event, handler)

    steps: list[Callable[[], Awaitable[Any]]] = []
    for n in range(20):
        steps += [
            lambda n=n: decide(n),
            lambda: store.leases.renew_all([(owner, 1)], "n", examples.LEASE_MS),
            store.outbox.unsent,
        ]
    await asyncio.gather(*(step() for step in steps))
    assert len(await engines.reader(store).timeline(examples.TASK)) == 20
