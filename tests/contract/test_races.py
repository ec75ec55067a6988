"""Races of two nodes over one session: each has a store of its own on one database, on every engine.

The numbers are those of PostgreSQL, where transactions really run in parallel. SQLite admits one writer at a time, even of two
processes: fewer things can go wrong, and each commit is durable, so a tenth of them has to do.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import structlog

from events import codec, requests
from handlers import dispatch, unit_of_work
from machine import errors, job_key, model, states
from tests import decider_harness, engines, transactions, waiting

SPEAKERS = ("al", "bo")
RACES = {"postgresql": 500, "sqlite": 50}
AT_ONCE = 5
ENDED_MS = 5_000
OUTPUT = model.Output(
    duration_ms=ENDED_MS, size_bytes=9, crc64="1", start_ms=engines.START_MS, end_ms=engines.START_MS + ENDED_MS
)
COMPARED = {"SizeBytes": 9, "Crc64": "1"}


@pytest.fixture
async def nodes(database: engines.Database, clock: engines.Clock) -> AsyncIterator[list[decider_harness.Harness]]:
    """Two nodes of one recorder, with ids of their own."""
    stores = [database.open(clock, engines.ids(f"0{number}")) for number in (3, 4)]
    made = [decider_harness.connect(store, clock) for store in stores]
    for number, harness in enumerate(made):
        harness.new_id = engines.ids(f"e{number}")
        context = unit_of_work.Context(policy=model.Policy(), new_id=engines.ids(f"0{number + 5}"))
        harness.decider = dispatch.Decider(harness.store, context)
    yield made
    for store in stores:
        await store.stop()


def uploading(number: int) -> tuple[model.Session, list[model.Recording]]:
    """A closing session whose two recordings are uploading, one on each node."""
    room = requests.Room(sdk_app_id=decider_harness.APP, room_id=number + 1)
    request = requests.StartRequest(
        room=room, user_id="rec", region="ap-shanghai", bucket="b-12345", path="p", callback="http://x/"
    )
    task_id = f"01{number:024d}"
    session = model.Session(
        task_id=task_id,
        request=request,
        state=states.CLOSING,
        opened_ms=engines.START_MS,
        closing_ms=engines.START_MS,
        end_reason="Stopped",
        published=True,
    )
    recordings = [
        model.Recording(
            task_id=task_id,
            speaker=speaker,
            n=1,
            state=states.UPLOADING,
            epoch=3,
            opened_ms=engines.START_MS,
            media_ms=ENDED_MS,
            output=OUTPUT,
            job=model.Job(kind=states.UPLOAD, state=states.LEASED, node=f"n{index}"),
        )
        for index, speaker in enumerate(SPEAKERS)
    ]
    return session, recordings


async def persisted(say: Callable[[], Awaitable[Any]]) -> Any:
    """Decide with retries, as a bus does with temporary failures."""
    async with waiting.at_most(30):
        while True:
            try:
                return await say()
            except errors.RecorderError as error:
                if not error.retry:
                    raise


def ended(harness: decider_harness.Harness, value: model.Recording, *, good: bool) -> Callable[[], Awaitable[Any]]:
    """The event that ends an upload, well or badly."""
    said: dict[str, Any] = {"TaskId": value.task_id, "Speaker": value.speaker, "N": 1, "Epoch": 3}
    said |= COMPARED | {"Url": "https://cos/x"} if good else {"Reason": "refused", "Detail": "AccessDenied", "Retry": False}
    event = codec.make("upload-finished" if good else "upload-failed", id=f"{value.key}.3", time_ms=harness.clock(), data=said)
    return lambda: harness.decider.decide(event)


@pytest.mark.timeout(180)
async def test_the_last_two_recordings_end_at_once(nodes: list[decider_harness.Harness], database: engines.Database) -> None:
    """Both recordings of a session end at the same moment on two nodes, every third time one of them badly: each session finishes
    once, with one result of Revision 1 that has both files."""
    numbers = range(RACES[database.engine])
    sessions = [uploading(number) for number in numbers]
    async with transactions.opened(nodes[0].store) as tx:
        for session, recordings in sessions:
            tx.add_session(session, requests.Secrets())
            for recording in recordings:
                tx.add_recording(recording)
    for first in range(0, len(numbers), AT_ONCE):
        batch = [
            persisted(ended(harness, recording, good=bool((number + index) % 3)))
            for number in numbers[first : first + AT_ONCE]
            for index, (harness, recording) in enumerate(zip(nodes, sessions[number][1], strict=True))
        ]
        await asyncio.gather(*batch)
    assert database.ask("SELECT state, revision, count(*) FROM sessions GROUP BY state, revision") == [
        (states.FINISHED, 1, len(numbers))
    ]
    assert database.ask("SELECT revision, count(*), count(DISTINCT task_id) FROM results GROUP BY revision") == [
        (1, len(numbers), len(numbers))
    ]
    sent = "SELECT count(*), count(DISTINCT task_id) FROM outbox WHERE type = "
    assert database.ask(f"{sent}'session-finished'") == [(len(numbers), len(numbers))]
    assert database.ask(f"{sent}'send-callback'") == [(len(numbers), len(numbers))]
    for (body,) in database.ask("SELECT body FROM results"):
        assert sorted(entry["UserId"] for entry in json.loads(body)["Files"]) == list(SPEAKERS)


async def test_two_starts_of_one_key_at_once(nodes: list[decider_harness.Harness], database: engines.Database) -> None:
    """The same start, twice each on two nodes, gives one session: all get its TaskId, and one of them opened it."""
    for room in range(RACES[database.engine] // 10):
        starts = [harness.say("start", **decider_harness.START | {"RoomId": room + 1}) for harness in nodes for _ in range(2)]
        answers = await asyncio.gather(*starts)
        assert len({answer["TaskId"] for answer in answers}) == 1
        assert sorted(answer["Repeated"] for answer in answers) == [False, True, True, True]
    rooms = RACES[database.engine] // 10
    assert database.ask("SELECT count(*), count(DISTINCT room) FROM sessions") == [(rooms, rooms)]


async def test_a_start_and_the_first_words_of_a_speaker_at_once(
    nodes: list[decider_harness.Harness], database: engines.Database
) -> None:
    """A room opens, a speaker enables camera and microphone, and a session starts, all at the same moment on two nodes: in any
    order of the decisions, the speaker is recorded once."""
    rooms = range(1, RACES[database.engine] // 2 + 1)
    first, second = nodes
    for room in rooms:
        said = [second.publish(RoomId=room, Kind="video"), first.start(RoomId=room, Mode="00"), second.publish(RoomId=room)]
        await asyncio.gather(*(said[room % 3 :] + said[: room % 3]))
    recorded = "SELECT count(*), count(DISTINCT room) FROM recordings JOIN sessions USING (task_id)"
    assert database.ask(recorded) == [(len(rooms), len(rooms))]
    present = "SELECT count(*) FROM presence WHERE audio AND video"
    assert database.ask(present) == [(len(rooms),)]


async def test_a_lease_and_a_stop_at_once(nodes: list[decider_harness.Harness], database: engines.Database) -> None:
    """A worker takes a capture while another node stops the session. If the lease was first, the capture is asked to stop, and
    its end ends the recording. If the stop was first, no lease is given, and the recording has ended. Never both, and never
    neither."""
    first, second = nodes

    async def take(owner: str, looks: int) -> bool:
        await later(second, looks)
        return bool(await persisted(lambda: second.store.leases.take(job_key.parse(owner), 1, "n2", decider_harness.LEASE_MS)))

    for room in range(RACES[database.engine] // 10):
        task_id = await first.start(RoomId=room + 1)
        await first.publish(RoomId=room + 1)
        owner = f"{task_id}/al/1"
        taken, _ = await asyncio.gather(take(owner, room % 6), first.say("stop", TaskId=task_id))
        value, commands = await second.recording(owner), await asked(second, owner)
        if taken:
            assert (value.state, value.stop_requested, value.capture) == (states.JOINING, True, "leased")
            assert commands == [("start-capture", 1), ("stop-capture", 1)]
            await second.outcome("ffmpeg-exit", owner, 1, Job="capture", Reason="stopped", MediaMs=0, SizeBytes=0)
        else:
            assert commands == [("start-capture", 1)]
        value = await first.recording(owner)
        assert (value.state, value.capture) == (states.FAILED, "none")
        assert (await first.session(task_id)).state == states.FINISHED


async def test_a_stop_and_a_replay_of_a_failed_capture_at_once(
    nodes: list[decider_harness.Harness], database: engines.Database
) -> None:
    """A session is stopped on one node while a replay on another retries a failed capture: either the replay comes first and its
    recording is stopped with the others, or it is refused. Nothing captures for a closed session."""
    first, second = nodes
    for room in range(1, RACES[database.engine] // 50 + 1):
        task_id = await first.start(RoomId=room, SubscribeUserIds=["al"])
        await first.capture(f"{task_id}/al/1", media_ms=0, reason="refused-for-good")
        replay = unless_refused(second.say("replay", TaskId=task_id, From="joining"))
        answer, _ = await asyncio.gather(replay, first.say("stop", TaskId=task_id))
        assert (await first.session(task_id)).state == states.FINISHED
        assert await first.states(task_id) == {"al/1": "Failed"} | ({"al/2": "Failed"} if answer is not None else {})


async def test_the_end_of_keep_failed_and_a_replay_at_once(
    nodes: list[decider_harness.Harness], database: engines.Database
) -> None:
    """KEEP_FAILED of one recording passes while another of its session is replayed with fresh secrets: the secrets stay."""
    first, second = nodes
    numbers = range(RACES[database.engine] // 10)
    failed = [ended_badly(number) for number in numbers]
    async with transactions.opened(first.store) as tx:
        for session, recordings in failed:
            tx.add_session(session, requests.Secrets(user_sig="MARK-old"))
            for recording in recordings:
                tx.add_recording(recording)
            tx.arm(recordings[0].key, "keep", 0)
    over = {deadline.owner: deadline.serial for deadline in await first.store.deadlines.due(len(failed))}

    async def keep_is_over(owner: job_key.RecordingKey, looks: int) -> None:
        await later(first, looks)
        await first.say("deadline-passed", Owner=str(owner), Kind="keep", Serial=over[owner])

    for number, (session, (al, bo)) in zip(numbers, failed, strict=True):
        fresh = second.say("replay", TaskId=session.task_id, Speaker=bo.speaker, UserSig="MARK-fresh")
        await asyncio.gather(keep_is_over(al.key, number % 10), fresh)
        async with transactions.opened(first.store) as tx:
            assert (await tx.read("secrets", session.task_id)).user_sig == "MARK-fresh"


async def test_what_ends_a_segment_at_once(nodes: list[decider_harness.Harness], database: engines.Database) -> None:
    """A node scans its leftovers while its last event before the crash and a renewal's note are decided elsewhere: the segment
    keeps the most media that any of them reported."""
    first, second = nodes
    for number in range(RACES[database.engine] // 25):
        owner = f"{await first.start(RoomId=number + 1, SubscribeUserIds=['al'])}/al/1"
        await first.take(owner)
        said = {"SizeBytes": 9, "LastPacketMs": first.clock()}

        async def note(owner: str = owner, looks: int = number % 5) -> None:
            await later(second, looks)
            await second.store.segments.update(job_key.parse(owner), 1, {"media_ms": 5_000, "size_bytes": 5, "last_packet_ms": 1})

        await asyncio.gather(
            first.outcome("ffmpeg-exit", owner, 1, Job="capture", Reason="eof", MediaMs=10_000, **said),
            second.say("worker-lost", Owner=owner, Epoch=1, Node="n1", MediaMs=9_000, **said),
            note(),
        )
        segment = (await first.store.segments.of_recording(job_key.parse(owner)))[0]
        assert (segment.media_ms, segment.last_packet_ms) == (10_000, first.clock())


async def test_deadlines_and_downtime_stand_in_no_stops_way(
    nodes: list[decider_harness.Harness], database: engines.Database
) -> None:
    """Sessions are stopped on one node while another publishes their deadlines, or extends them by downtime: neither waits for a
    lock that the other holds, which PostgreSQL would resolve after a second by refusing one of them."""
    first, second = nodes
    clock = first.clock
    with structlog.testing.capture_logs() as lines:
        for number in range(RACES[database.engine] // 50):
            tasks = [await first.start(RoomId=room) for room in range(1, 5)]
            await first.store.nodes.heartbeat("n1")
            clock.advance(model.HOUR)
            over = {str(d.owner): d for d in await first.store.deadlines.due() if d.kind == ("idle", "join")[number % 2]}
            deadline = over[tasks[0]]
            said = first.say("deadline-passed", Owner=str(deadline.owner), Kind=deadline.kind, Serial=deadline.serial)
            stops = [second.say("stop", TaskId=task_id) for task_id in tasks]
            forgiven, *_ = await asyncio.gather(first.store.nodes.heartbeat("n2", over_ms=model.MINUTE), said, *stops)
            assert forgiven == model.HOUR
    assert [line["reason"] for line in lines if line["event"] == "decisions.repeated"] == []


def ended_badly(number: int) -> tuple[model.Session, list[model.Recording]]:
    """A finished session whose two recordings failed longer ago than KEEP_FAILED."""
    session, recordings = uploading(number)
    session = dataclasses.replace(session, state=states.FINISHED, finished_ms=1, revision=1)
    ended = {"state": states.FAILED, "code": states.FAILURE_OF[states.UPLOADING], "ended_ms": 1, "job": None}
    return session, [model.changed(recording, **ended) for recording in recordings]


async def unless_refused(replay: Awaitable[dict[str, Any]]) -> dict[str, Any] | None:
    """The answer; None if it was refused."""
    try:
        return await replay
    except errors.Refused:
        return None


async def later(harness: decider_harness.Harness, looks: int) -> None:
    """A lease scan takes as long as a statement or two of a decision: so the next step falls between other statements of it."""
    for _ in range(looks):
        await harness.store.leases.is_held(job_key.RecordingKey("nobody", "al", 1), 1, "n")


async def asked(harness: decider_harness.Harness, owner: str) -> list[tuple[str, int]]:
    """(type, epoch) of the commands to a recording, which are marked sent."""
    messages = await harness.store.outbox.claim(1_000, 0)
    await harness.store.outbox.mark_all_sent([m.seq for m in messages])
    events = [codec.decode(m.body, now_ms=0) for m in messages if m.channel == "command"]
    return [(e.type, e.data["Epoch"]) for e in events if e.subject == owner]
