"""Intake of TRTC's callbacks: presence is written in batches, in any order and any number of times; a start misses nobody."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from events import codec, requests
from handlers import callback_intake, dispatch, trtc_events, unit_of_work
from machine import errors, model, presence
from store import connections
from store import store as stores
from store.sql import Steps
from tests import decider_harness, engines, waiting

ROOM = requests.Room(sdk_app_id=decider_harness.APP, room_id=88)
BURST = 1_000
# Statements for a batch of any size: locks, sessions, presence, and once the application.
STATEMENTS = 4


def callback(type_: str, user: str = "al", at_ms: int = engines.START_MS, room: int = 88, **data: Any) -> codec.Event:
    """The event of a TRTC callback; a repeat has the same id."""
    data = {"SdkAppId": decider_harness.APP, "RoomId": room, "EventMs": at_ms} | ({"UserId": user} if user else {}) | data
    identity = f"{type_}-{room}-{user}-{at_ms}-{data.get('Kind', '')}"
    return codec.make(type_, id=f"trtc-{identity}", time_ms=at_ms, data=data)


def published(user: str, at_ms: int = engines.START_MS, room: int = 88, kind: str = "audio") -> codec.Event:
    """A speaker switched a track on."""
    return callback("user-publishing", user, at_ms, room, Kind=kind)


@dataclass
class Count:
    """Transactions and statements of a store."""

    transactions: int = 0
    statements: int = 0


@contextlib.contextmanager
def counted(store: stores.Store) -> Iterator[Count]:
    """Count what runs on a store's fast path; one statement for each row that is sent."""
    count, run = Count(), store.connections.run

    def counting(steps: Steps[Any]) -> Steps[Any]:
        answer: Any = None
        try:
            while True:
                step = steps.send(answer)
                count.statements += len(step.rows)
                answer = yield step
        except StopIteration as end:
            return end.value

    async def counted_run(steps: Any) -> Any:
        count.transactions += 1
        return await run(lambda: counting(steps()))

    store.connections.run = counted_run  # type: ignore[method-assign]
    yield count
    store.connections.run = run  # type: ignore[method-assign]


@pytest.fixture
def intake(harness: decider_harness.Harness) -> callback_intake.CallbackIntake:
    """The intake of one node."""
    return callback_intake.CallbackIntake(harness.store.presence, harness.decider.decide)


async def take_all(intake: callback_intake.CallbackIntake, events: Sequence[codec.Event]) -> None:
    """Take callbacks that arrive at once."""
    await asyncio.gather(*(intake.take(event) for event in events))


async def publishers(store: stores.Store, room: requests.Room = ROOM) -> dict[str, tuple[str, ...]]:
    """Who publishes in a room, and what."""
    return dict(await store.decisions.read(lambda snapshot: snapshot.publishers(room)))


async def test_any_order_and_repeats_end_in_the_same_presence(store: stores.Store) -> None:
    """Callbacks of some users and the end of their room, shuffled, repeated and cut into batches of any size: what the database
    merges equals what `merged` makes of the events in the order of their time."""
    chance = random.Random(7)
    for round_ in range(30):
        room = dataclasses.replace(ROOM, room_id=round_ + 1)
        events = [
            callback(type_, user, engines.START_MS + chance.randrange(8), round_ + 1, **kind)
            for user in ("al", "bo", "cy")
            for type_, kind in chance.choices(
                [(t, {"Kind": k}) for t in ("user-publishing", "user-unpublished") for k in presence.KINDS]
                + [("user-left", {}), ("user-entered", {})],
                k=6,
            )
        ]
        if round_ % 2:
            events.append(callback("room-destroyed", "", engines.START_MS + 3, round_ + 1))
        expected: dict[str, presence.Known] = {}
        for report in (trtc_events.presence_report(event) for event in sorted(events, key=lambda event: event.time_ms)):
            assert report is not None
            if report.known:
                expected[report.user_id] = presence.merged(expected.get(report.user_id, presence.ABSENT), report.known)
        arrived = chance.sample(events * 2, len(events) * 2)
        while arrived:
            batch = [report for event in arrived[: chance.randrange(1, 6)] if (report := trtc_events.presence_report(event))]
            assert all(await store.presence.note(batch))
            del arrived[: len(batch)]
        rows = ({"user_id": user, "updated_ms": 0, **known} for user, known in expected.items())
        assert await publishers(store, room) == dict(presence.publishers(rows))


async def test_a_callback_that_is_late_for_its_room_s_end_shows_nobody(
    intake: callback_intake.CallbackIntake, harness: decider_harness.Harness
) -> None:
    """A room ends, and only then a callback from before arrives, of a user never heard of: nobody is in the room. The same in the
    order of a decision. A user of the next room under this number is there."""
    await intake.take(callback("room-destroyed", "", engines.START_MS + 5))
    await intake.take(published("al", engines.START_MS + 3))
    await harness.decider.decide(published("bo", engines.START_MS + 4))
    assert await publishers(harness.store) == {}
    await intake.take(published("cy", engines.START_MS + 6))
    assert await harness.states(await harness.start()) == {"cy/1": "Joining"}


async def test_a_burst_costs_few_statements(
    intake: callback_intake.CallbackIntake, harness: decider_harness.Harness, database: engines.Database
) -> None:
    """A thousand callbacks at once of 50 rooms that nobody records share a few commits, take few statements in each, and leave no
    row in the inbox."""
    events = [published(f"u{number}", room=number % 50 + 1) for number in range(BURST)]
    with counted(harness.store) as count:
        await take_all(intake, events)
    assert count.transactions <= BURST // callback_intake.MAX_BATCH + 1
    assert count.statements <= STATEMENTS * count.transactions
    assert database.ask("SELECT count(*) FROM presence WHERE audio") == [(BURST,)]
    assert database.ask("SELECT count(*) FROM inbox") == [(0,)]
    assert database.ask("SELECT count(*) FROM applications") == [(1,)]


async def test_a_recorded_room_s_callback_is_decided_once(
    intake: callback_intake.CallbackIntake, harness: decider_harness.Harness, database: engines.Database
) -> None:
    """In a room with an unfinished session each callback has a decision, and its repeat none; the other rooms of the batch have
    no part in it."""
    task_id = await harness.start()
    await take_all(intake, [published("al"), published("bo", room=89), published("al"), published("cy", room=90)])
    assert await harness.states(task_id) == {"al/1": "Joining"}
    assert database.ask("SELECT count(*) FROM inbox WHERE event_id LIKE 'trtc-%'") == [(1,)]
    assert await publishers(harness.store, dataclasses.replace(ROOM, room_id=89)) == {"bo": ("audio",)}


async def test_a_dismissal_of_digits_reaches_the_recorded_string_room(
    intake: callback_intake.CallbackIntake, harness: decider_harness.Harness
) -> None:
    """A dismissal that may mean two rooms is decided if a session is in either of them."""
    task_id = await harness.start(RoomId=None, StrRoomId="88")
    await intake.take(callback("room-destroyed", "", StrRoomId="88"))
    assert (await harness.session(task_id)).end_reason == "RoomDestroyed"


@pytest.fixture
async def other(database: engines.Database, clock: engines.Clock) -> AsyncIterator[decider_harness.Harness]:
    """A second node on the same database."""
    store = database.open(clock, engines.ids("04"))
    made = decider_harness.connect(store, clock)
    made.new_id = engines.ids("e2")
    made.decider = dispatch.Decider(store, unit_of_work.Context(policy=model.Policy(), new_id=engines.ids("05")))
    yield made
    await store.stop()


@pytest.mark.timeout(180)
async def test_a_start_during_a_burst_finds_every_speaker(
    intake: callback_intake.CallbackIntake, harness: decider_harness.Harness, other: decider_harness.Harness
) -> None:
    """Speakers of many rooms publish at the moment in which their rooms' sessions start, on the same node and on another: each
    session records each of them once."""
    elsewhere = callback_intake.CallbackIntake(other.store.presence, other.decider.decide)
    rooms, speakers = range(1, 41), [f"u{number}" for number in range(6)]
    chance = random.Random(3)
    work: list[Any] = [harness.start(RoomId=room) for room in rooms]
    for number, speaker in enumerate(speakers):
        node = (intake, elsewhere)[number % 2]
        work += [node.take(published(speaker, room=room)) for room in rooms]
    chance.shuffle(work)
    answers = await asyncio.gather(*work)
    for task_id in filter(None, answers):
        assert await harness.states(task_id) == {f"{speaker}/1": "Joining" for speaker in speakers}


async def test_a_crash_between_commit_and_answer_loses_and_doubles_nothing(
    harness: decider_harness.Harness, other: decider_harness.Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node dies with a burst that is committed but not answered. TRTC sends it again, to another node and in another order,
    while a session has begun: it records each speaker once, and not the one who left."""
    committed = asyncio.Event()
    note = harness.store.presence.note

    async def note_and_die(reports: Any) -> Any:
        await note(reports)
        committed.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(harness.store.presence, "note", note_and_die)
    dying = callback_intake.CallbackIntake(harness.store.presence, harness.decider.decide)
    events = [published(f"u{number}") for number in range(9)]
    events += [published("gone"), callback("user-left", "gone", engines.START_MS + 1)]
    burst = asyncio.create_task(take_all(dying, events))
    await committed.wait()
    burst.cancel()
    await asyncio.wait([burst])
    task_id = await other.start()
    again = callback_intake.CallbackIntake(other.store.presence, other.decider.decide)
    await take_all(again, events[::-1])
    assert await other.states(task_id) == {f"u{number}/1": "Joining" for number in range(9)}


async def test_a_batch_that_fails_is_decided_one_by_one(
    harness: decider_harness.Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a batch cannot be written, each of its callbacks is decided, and only those fail that cannot be decided."""

    async def refuse(reports: Any) -> Any:
        raise errors.Conflict

    async def decide(event: codec.Event) -> None:
        if event.data["UserId"] == "bad":
            raise errors.Unavailable
        await harness.decider.decide(event)

    monkeypatch.setattr(harness.store.presence, "note", refuse)
    intake = callback_intake.CallbackIntake(harness.store.presence, decide)
    taken = await asyncio.gather(*(intake.take(published(user)) for user in ("al", "bad", "bo")), return_exceptions=True)
    assert [type(each) for each in taken] == [type(None), errors.Unavailable, type(None)]
    assert await publishers(harness.store) == {"al": ("audio",), "bo": ("audio",)}


async def test_too_many_callbacks_are_refused_at_once(harness: decider_harness.Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database does not answer, a bounded number of callbacks waits, for a bounded time; further ones are refused at
    once. Afterwards callbacks are taken again."""
    answers, note = asyncio.Event(), harness.store.presence.note

    async def slow(reports: Any) -> Any:
        await answers.wait()
        return await note(reports)

    monkeypatch.setattr(harness.store.presence, "note", slow)
    monkeypatch.setattr(callback_intake, "MAX_WAITING", 5)
    intake = callback_intake.CallbackIntake(harness.store.presence, harness.decider.decide)
    waiting_ = [asyncio.create_task(intake.take(published(f"u{number}"))) for number in range(5)]
    late = asyncio.create_task(intake.take(published("late")))
    await asyncio.wait([late, *waiting_], return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(late.exception(), errors.Unavailable)
    assert not any(task.done() for task in waiting_)
    monkeypatch.setattr(callback_intake, "ANSWER_S", 0.01)
    waiting_[-1].cancel()
    await asyncio.wait([waiting_.pop()])
    with pytest.raises(errors.Unavailable):
        await intake.take(published("slow"))
    answers.set()
    await asyncio.gather(*waiting_)
    monkeypatch.setattr(callback_intake, "ANSWER_S", 30)
    await intake.take(published("after"))
    assert {"u0", "u1", "u2", "u3", "after"} <= set(await publishers(harness.store))


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_a_room_that_is_decided_holds_up_no_other(
    intake: callback_intake.CallbackIntake, harness: decider_harness.Harness
) -> None:
    """PostgreSQL: a node that stands still in the middle of a decision about one room holds up no callback about another."""
    await harness.publish("warm-up")
    async with harness.store.connections.write() as connection:
        await connections.hold_lock(connection, connections.room_lock(ROOM))
        held = asyncio.create_task(intake.take(published("al")))
        async with waiting.at_most(10):
            await take_all(intake, [published("bo", room=room) for room in range(100, 120)])
        assert not held.done()
    await held
    assert set(await publishers(harness.store)) == {"warm-up", "al"}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
async def test_bursts_and_decisions_leave_connections_for_reads(database: engines.Database, clock: engines.Clock) -> None:
    """PostgreSQL: a node with a small pool takes callbacks and decides at once, as much as it can, and then still reads."""
    store = stores.Store(connections.open_database(database.url, 3), clock=clock, keyring=engines.keyring(), pinned=True)
    harness = decider_harness.connect(store, clock)
    intake = callback_intake.CallbackIntake(store.presence, harness.decider.decide)
    try:
        for round_ in range(3):
            starts = (harness.start(RoomId=room + 1) for room in range(round_ * 80, round_ * 80 + 80))
            await asyncio.gather(*starts, take_all(intake, [published(f"u{number}", room=9_000) for number in range(20)]))
        async with waiting.at_most(5):
            await store.connections.ping()
            assert len((await harness.reading.sessions(limit=300))[0]) == 240
    finally:
        await store.stop()
