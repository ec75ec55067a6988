"""The contract of every store: outbox, relays, journal, results; secrets and presence."""

from __future__ import annotations

import asyncio

import pytest

from events import codec, requests
from machine import errors, job_key, model
from store import store as stores
from tests import engines, examples, transactions

pytestmark = pytest.mark.parametrize("database", engines.STORES, indirect=True)


# --- outbox and journal -----------------------------------------------------------------------------------------------
async def test_the_outbox_keeps_the_order_and_forgets_what_is_sent(store: stores.Store) -> None:
    """Messages are read in write order, whole, until they are marked; a dead letter is not read again."""
    async with transactions.opened(store) as tx:
        tx.send("event", examples.event("a"), examples.TASK)
        tx.send("command", examples.event("b"), examples.TASK)
    await store.outbox.send("result", examples.event("c"))
    first = await store.outbox.unsent()
    assert [codec.decode(m.body, now_ms=0).id for m in first] == ["a", "b", "c"]
    assert [m.channel for m in first] == ["event", "command", "result"]
    assert [m.seq for m in await store.outbox.unsent(limit=2)] == [m.seq for m in first[:2]]
    await store.outbox.mark_sent(first[1].seq)
    await store.outbox.mark_sent(first[0].seq, parked="unknown type")
    assert [m.seq for m in await store.outbox.unsent()] == [first[2].seq]
    assert first[0].seq < first[1].seq < first[2].seq


async def test_a_commit_rings_the_bell(store: stores.Store) -> None:
    """`changed` is set by a commit, and not by a rollback."""
    with pytest.raises(errors.Refused):
        async with transactions.opened(store):
            raise errors.Refused
    assert not store.changed.is_set()
    async with transactions.opened(store):
        pass
    assert store.changed.is_set()


async def test_the_journal_is_read_in_order(store: stores.Store, clock: engines.Clock) -> None:
    """A session's timeline has its own lines only, oldest first."""
    async with transactions.opened(store) as tx:
        tx.journal(job_key.SessionKey(examples.TASK), examples.event("a", "start"), "", "Open", "one")
        tx.journal(job_key.SessionKey(examples.OTHER), examples.event("a", "start"), "", "Open", "other")
    clock.advance(10)
    async with transactions.opened(store) as tx:
        tx.journal(job_key.RecordingKey(examples.TASK, "al", 1), examples.event("b"), "Joining", "Failed", "two")
    lines = await engines.reader(store).timeline(examples.TASK)
    assert [(x.at_ms - engines.START_MS, x.event_type, x.to_state, x.note) for x in lines] == [
        (0, "start", "Open", "one"),
        (10, "stop", "Failed", "two"),
    ]


async def test_old_ids_are_forgotten_and_results_are_not(store: stores.Store, clock: engines.Clock) -> None:
    """Old claims and sent commands are deleted; unsent messages, dead letters and results stay."""
    await transactions.claim(store, "old")
    async with transactions.opened(store) as tx:
        for channel in ("command", "event", "result", "command", "command"):
            tx.send(channel, examples.event())
    seqs = [m.seq for m in await store.outbox.unsent()]
    for seq in seqs[:3]:
        await store.outbox.mark_sent(seq)
    await store.outbox.mark_sent(seqs[3], parked="why")
    clock.advance(1_000)
    await transactions.claim(store, "new")
    await store.retention.delete_messages(clock())
    assert [m.seq for m in await store.outbox.unsent()] == [seqs[4]]
    assert await store.decisions.answered("new") is not None
    assert await store.decisions.answered("old") is None


async def test_a_revision_exists_once(store: stores.Store) -> None:
    """A second result under one (TaskId, Revision) is a Conflict, whatever its body."""
    await examples.opened(store)
    async with transactions.opened(store) as tx:
        tx.add_result(examples.TASK, 1, '{"a":1}')
        tx.add_result(examples.TASK, 2, '{"a":2}')
    with pytest.raises(errors.Conflict):
        async with transactions.opened(store) as tx:
            tx.add_result(examples.TASK, 1, '{"a":1}')
    assert await engines.reader(store).results(examples.TASK) == [{"a": 1}, {"a": 2}]


async def test_two_relays_never_get_the_same_message(store: stores.Store) -> None:
    """A message claimed by one relay is not given to another; each message goes to one of them, in order."""
    for number in range(12):
        await store.outbox.send("event", examples.event(f"e{number}"))
    held = await asyncio.gather(*(store.outbox.claim(5, 10_000) for _ in range(4)))
    seqs = [m.seq for messages in held for m in messages]
    assert len(seqs) == len(set(seqs)) == 12
    assert all([m.seq for m in messages] == sorted(m.seq for m in messages) for messages in held)
    assert await store.outbox.claim(5, 10_000) == []


async def test_what_a_dead_relay_held_comes_again(store: stores.Store, clock: engines.Clock) -> None:
    """An expired claim is free again; a sent message is never claimed."""
    for number in range(3):
        await store.outbox.send("event", examples.event(f"e{number}"))
    first = await store.outbox.claim(10, 10_000)
    await store.outbox.mark_all_sent([first[0].seq])
    await store.outbox.mark_all_sent([])
    clock.advance(9_999)
    assert await store.outbox.claim(10, 10_000) == []
    clock.advance(2)
    assert await store.outbox.claim(10, 10_000) == first[1:]
    await store.outbox.mark_all_sent([m.seq for m in first])
    clock.advance(60_000)
    assert await store.outbox.claim(10, 10_000) == []
    assert await store.outbox.unsent() == []


async def test_a_message_may_be_for_one_node(store: stores.Store) -> None:
    """A message keeps its target node."""
    async with transactions.opened(store) as tx:
        tx.send("command", examples.event("a"), examples.TASK, node="n7")
        tx.send("command", examples.event("b"), examples.TASK)
    assert [m.node for m in await store.outbox.unsent()] == ["n7", ""]


# --- secrets and presence ---------------------------------------------------------------------------------------------
async def test_secrets_are_replaced_and_wiped(store: stores.Store) -> None:
    """The newest secrets are kept; after wiping there are none."""
    await examples.opened(store)
    fresh = requests.Secrets(user_sig="new")
    async with transactions.opened(store) as tx:
        tx.put_secrets(examples.TASK, fresh)
    async with transactions.opened(store) as tx:
        assert await tx.read("secrets", examples.TASK) == fresh
        tx.wipe_secrets(examples.TASK)
    async with transactions.opened(store) as tx:
        assert await tx.read("secrets", examples.TASK) == requests.Secrets()
        assert await tx.read("secrets", examples.OTHER) == requests.Secrets()


async def test_presence_is_per_room_and_has_an_age(store: stores.Store, clock: engines.Clock) -> None:
    """Presence is kept per kind of room, with the time at which it was last heard of, until the room is gone. A report of nothing
    renews that time and nothing else."""
    twin = requests.Room(sdk_app_id=examples.ROOM.sdk_app_id, str_room_id="88")
    began_ms = clock()
    async with transactions.opened(store) as tx:
        blank = dict(await tx.read("presence", examples.ROOM, "al"))
        tx.put_presence(examples.ROOM, "al", blank | {"audio": True, "audio_ms": 7})
        tx.put_presence(examples.ROOM, "bo", blank | {"video": True, "video_ms": 7, "audio": True, "audio_ms": 7})
        tx.put_presence(examples.ROOM, "cy", blank | {"left_ms": 9})
        tx.put_presence(twin, "al", blank | {"video": True, "video_ms": 7})
    async with transactions.opened(store) as tx:
        assert await tx.read("presence", examples.ROOM, "al") == blank | {"audio": True, "audio_ms": 7}
        both = [("al", ("audio",)), ("bo", ("audio", "video"))]
        assert await tx.read("publishers", examples.ROOM) == both
        assert await tx.read("publishers", twin) == [("al", ("video",))]
    clock.advance(12 * model.HOUR)
    async with transactions.opened(store) as tx:
        tx.put_presence(examples.ROOM, "al", blank)
        tx.put_presence(examples.ROOM, "cy", blank)
    async with transactions.opened(store) as tx:
        found = await tx.read("publishers", examples.ROOM)
        assert found == both
        assert [kinds.heard_ms for _, kinds in found] == [clock(), began_ms]


async def test_an_application_is_known_after_its_first_callback(store: stores.Store) -> None:
    """An application has callbacks once one was received, and no other application."""
    async with transactions.opened(store) as tx:
        assert not await tx.read("callback_ms", 7)
        tx.changes.applications.add(7)
    for _ in range(2):
        async with transactions.opened(store) as tx:
            assert await tx.read("callback_ms", 7) == engines.START_MS
            assert not await tx.read("callback_ms", 8)
            tx.changes.applications.add(7)
