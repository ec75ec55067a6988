"""Scale, on each engine: many speakers, uploads, sessions and deliveries at a time, with outcomes and counts instead of times."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import text

from events import codec
from machine import due_work, job_key, model, states, uploaded_object
from store import store as stores
from tests import decider_harness, engines, examples, history, long_life, statement_meter, transactions, waiting, work_doubles
from worker import command_handlers

SPEAKERS = 500
# Ten times the slots of a large worker. Each upload needs a connection of the pool of 6 before it hangs.
UPLOADS = 80
SESSIONS = 200
PULLS = 1_000


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> statement_meter.Meter:
    """A meter of all stores of the test."""
    return statement_meter.Meter(monkeypatch)


async def capturing(store: stores.Store, speakers: int, task_id: str = examples.TASK, user: str = "rec") -> list[model.Recording]:
    """An Open session whose speakers are all captured by one node."""
    job = model.Job(kind=states.CAPTURE, state=states.LEASED, node="n1")
    values = [examples.recording(task_id, f"s{n}", job=job, present=True, state=states.RECORDING) for n in range(speakers)]
    await examples.opened(store, *values, of=examples.session(task_id, request=examples.request(user_id=user, subscribe=())))
    async with store.connections.write(limited=False) as connection:
        columns = "recording_id, epoch, node, registered_ms, media_ms, size_bytes, reason, task_id"
        made = f"SELECT id, 1, 'n1', {engines.START_MS}, 0, 0, '', task_id FROM recordings WHERE task_id = '{task_id}'"
        await connection.execute(text(f"INSERT INTO segments ({columns}) {made}"))
    return values


@pytest.mark.timeout(120)
async def test_a_start_in_a_full_room_is_one_batch_of_rows(
    database: engines.Database, clock: engines.Clock, meter: statement_meter.Meter
) -> None:
    """A start opens a recording for each of 500 speakers. The statements read as much more as there are more speakers."""
    found: list[statement_meter.Work] = []
    for prefix, speakers in (("01", 50), ("02", SPEAKERS)):
        room = f"{speakers}"
        async with decider_harness.opened(database, clock, prefix) as harness:
            await history.add_users(harness.store, clock(), speakers, room=room)
        start = {"RoomId": speakers}
        found.append(await statement_meter.work(meter, database, clock, f"{prefix}A", lambda h, s=start: h.start(**s)))
    few, many = found
    opened = f"SELECT count(*) FROM recordings WHERE task_id = '{'02A'.ljust(25, '0')}1'"
    assert await asyncio.to_thread(database.ask, opened) == [(SPEAKERS,)]
    # A read and a write of each kind of row, however many speakers there are.
    assert many.steps <= few.steps + 5, found
    assert many.reads <= 15 * few.reads, found


async def test_an_exit_after_many_pulls_of_others_reads_no_more(
    database: engines.Database, clock: engines.Clock, meter: statement_meter.Meter
) -> None:
    """A stream ends in a session where three other speakers had thousands of pulls: whether a pull evicted it costs the same."""
    found: list[statement_meter.Work] = []
    for number, pulls in enumerate((10, PULLS), 1):
        clock.advance(model.HOUR)
        task_id = f"0{number}".ljust(26, "0")
        async with decider_harness.opened(database, clock, f"0{number}") as harness:
            values = await capturing(harness.store, 4, task_id, f"rec{number}")
            for other in values[1:]:
                await history.add_pulls(harness.store, other.key, pulls, media_ms=900)
            await history.analyze(harness.store)
        ended = {"Job": "capture", "Reason": "eof", "MediaMs": 5_000, "SizeBytes": 9, "LastPacketMs": clock(), "FirstPacketMs": 1}

        async def end(harness: decider_harness.Harness, value: model.Recording = values[0]) -> None:
            await harness.outcome("ffmpeg-exit", value.key.text, 1, **ended)  # noqa: B023 - called in this round

        found.append(await statement_meter.work(meter, database, clock, f"0{number}A", end))
    assert found[1].steps == found[0].steps
    assert found[1].reads <= 1.5 * found[0].reads + 20, found


async def test_a_quota_is_counted_without_the_sessions_that_ended(
    database: engines.Database, clock: engines.Clock, meter: statement_meter.Meter
) -> None:
    """A key has started thousands of sessions, whose audit lines remain. Its next start reads what its first one read."""
    async with decider_harness.opened(database, clock, "0A") as harness:
        life = long_life.Life(harness)
        await life.run()
    found: list[statement_meter.Work] = []
    before = 0
    for number, sessions in enumerate((10, 3_000), 1):
        async with decider_harness.opened(database, clock, f"0{number}") as harness:
            await history.copy_session(harness.store, life.task_id, sessions, before + 1)
            await history.analyze(harness.store)
        before = sessions
        found.append(await _start(number, meter, database, clock))
    assert found[1].steps == found[0].steps
    assert found[1].reads <= 1.5 * found[0].reads + 20, found


async def _start(
    number: int, meter: statement_meter.Meter, database: engines.Database, clock: engines.Clock
) -> statement_meter.Work:
    """The work of a start in the room of this number, with a key that has its own quota."""
    data = decider_harness.START | {"RoomId": number}
    event = codec.make("start", id=f"start-{number}", time_ms=clock(), data=data)
    return await statement_meter.work(
        meter, database, clock, f"0{number}A", lambda harness: harness.decider.decide(event, long_life.KEY)
    )


async def test_a_quota_is_counted_without_the_sessions_of_other_keys(
    database: engines.Database, clock: engines.Clock, meter: statement_meter.Meter
) -> None:
    """Another key has thousands of Open sessions elsewhere. A start with a key that has its own quota reads what it does beside
    ten of them."""
    found: list[statement_meter.Work] = []
    before = 0
    other = model.Caller(name="others", key_id="k2", quota=0, operates=False)
    for number, sessions in enumerate((10, 5_000), 1):
        async with decider_harness.opened(database, clock, f"0{number}") as harness:
            begun = decider_harness.START | {"RoomId": 1_000, "UserId": f"rec{number}"}
            opened = await harness.decider.decide(codec.make("start", id=f"other-{number}", time_ms=clock(), data=begun), other)
            await history.copy_open_session(harness.store, opened["TaskId"], sessions, before + 1)
            await history.analyze(harness.store)
        before = sessions
        found.append(await _start(number, meter, database, clock))
    of_others = "SELECT count(*) FROM sessions WHERE state = 'Open' AND key_id = 'k2'"
    assert (await asyncio.to_thread(database.ask, of_others))[0][0] >= 5_000
    assert found[1].steps == found[0].steps
    assert found[1].reads <= 1.5 * found[0].reads + 50, found


async def test_revisions_wait_for_each_other_while_uploads_end(
    harness: decider_harness.Harness, database: engines.Database, clock: engines.Clock, meter: statement_meter.Meter
) -> None:
    """RESULT_WAIT passes with 80 uploads pending, which then end within 8 s. They share few revisions, and the last one has
    all files. No decision reads the body of another revision."""
    store = harness.store
    job = model.Job(kind=states.UPLOAD, state=states.LEASED, node="n1")
    known = {"job": job, "state": states.UPLOADING, "stop_requested": True, "output": model.Output(duration_ms=1, size_bytes=1)}
    values = [examples.recording(speaker=f"s{n}", stage_started_ms=clock(), **known) for n in range(UPLOADS)]
    request = examples.request(callback=long_life.URL)
    closing = examples.session(request=request, state=states.CLOSING, closing_ms=clock(), end_reason=states.STOPPED)
    await examples.opened(store, *values, of=closing)
    async with transactions.opened(store) as tx:
        tx.arm(closing.key, "result-wait", clock())
    await harness.wait(0)
    for value in values:
        clock.advance(100)
        await harness.outcome("upload-finished", value.key.text, 1, SizeBytes=1, Crc64="1", Url="https://cos/x")
        await harness.wait(0)
    await harness.wait(10_000)
    bodies = await asyncio.to_thread(database.ask, "SELECT body FROM results ORDER BY revision")
    assert 2 <= len(bodies) <= 2 + UPLOADS * 100 // model.Policy().revise_every_ms + 1
    assert [entry["Code"] for entry in json.loads(bodies[-1][0])["Files"]] == [states.SUCCESS] * UPLOADS
    assert [d.state for d in await harness.deliveries(closing.task_id)][-2:] == ["cancelled", "pending"]
    assert [t for t, (decided, _) in meter.executed.items() if decided and t.startswith("SELECT") and "callbacks.body" in t] == []


async def _avoid_scans(harness: decider_harness.Harness) -> None:
    """Let PostgreSQL scan a table only where no index serves: it scans small ones, and then the reads tell their size."""
    if harness.store.connections.on_server:
        avoid = "EXECUTE format('ALTER DATABASE %I SET enable_seqscan = off', current_database())"
        async with harness.store.connections.write() as connection:
            await connection.execute(text(f"DO $$ BEGIN {avoid}; END $$"))


async def end_sessions(harness: decider_harness.Harness, task_ids: list[str]) -> None:
    """Destroy the room of these sessions; their jobs end side by side, up to the upload of each."""
    await harness.trtc("room-destroyed")
    owners = [f"{task_id}/s0/1" for task_id in task_ids]
    ended = {"Job": "capture", "Reason": "stopped", "MediaMs": 5_000, "SizeBytes": 9}
    await asyncio.gather(*(harness.outcome("ffmpeg-exit", owner, 1, **ended) for owner in owners))
    await asyncio.gather(*(harness.take(owner) for owner in owners))
    good = {"Job": "transcode", "Reason": "ok", "Output": decider_harness.OUTPUT}
    await asyncio.gather(*(harness.outcome("ffmpeg-exit", owner, 2, **good) for owner in owners))
    await asyncio.gather(*(harness.take(owner) for owner in owners))
    stored = {"SizeBytes": 9, "Crc64": "1", "Url": "https://cos/x"}
    await asyncio.gather(*(harness.outcome("upload-finished", owner, 3, **stored) for owner in owners))


@pytest.mark.timeout(120)
async def test_many_sessions_end_at_once(database: engines.Database, clock: engines.Clock, meter: statement_meter.Meter) -> None:
    """The room of 20 sessions and then of 200 is destroyed, and their captures end at the same moment. Each session gets its own
    result, and costs no more among many."""
    found: list[statement_meter.Work] = []
    for number, sessions in enumerate((20, SESSIONS), 1):
        task_ids = [f"0{number}{n:024d}" for n in range(sessions)]
        async with decider_harness.opened(database, clock, f"0{number}") as harness:
            for task_id in task_ids:
                await capturing(harness.store, 1, task_id, f"rec-{task_id}")
            await _avoid_scans(harness)
        act = lambda harness, ended=task_ids: end_sessions(harness, ended)  # noqa: E731 - one argument of a call
        found.append(await statement_meter.work(meter, database, clock, f"0{number}A", act))
    ended = 20 + SESSIONS
    assert await asyncio.to_thread(database.ask, "SELECT state, count(*) FROM sessions GROUP BY state") == [("Finished", ended)]
    assert await asyncio.to_thread(database.ask, "SELECT count(DISTINCT task_id), count(*) FROM results") == [(ended, ended)]
    few, many = found
    assert many.steps <= SESSIONS / 20 * few.steps + 20, found
    # PostgreSQL may read some rows by another index than the best one.
    assert many.reads <= 1.5 * SESSIONS / 20 * few.reads + 5_000, found


async def test_open_sessions_of_others_cost_nothing(
    database: engines.Database, clock: engines.Clock, meter: statement_meter.Meter
) -> None:
    """A session lives next to 5,000 others that are Open, in its room or elsewhere, as it does next to ten."""
    found: list[statement_meter.Work] = []
    before = 0
    for number, sessions in enumerate((10, 5_000), 1):
        async with decider_harness.opened(database, clock, f"0{number}") as harness:
            opened = await harness.start(UserId=f"rec{number}", RoomId=1)
            await harness.publish()
            clock.advance(1_000)
            await history.copy_open_session(harness.store, opened, sessions, before + 1)
            await history.analyze(harness.store)
        before = sessions

        async def live(harness: decider_harness.Harness) -> None:
            owner = f"{await harness.start()}/al/1"
            await harness.publish()
            await harness.capture(owner, reason="eof")
            clock.advance(1_000)
            due = await harness.store.deadlines.due()
            assert [(each.owner.text, each.kind) for each in due] == [(owner, "retry")]
            await harness.say("stop", TaskId=owner[:26])
            await harness.recorded(owner)

        found.append(await statement_meter.work(meter, database, clock, f"0{number}A", live))
    assert found[1].steps == found[0].steps
    assert found[1].reads <= 1.5 * found[0].reads + 50, found


async def test_results_wait_for_no_delivery_of_others(
    database: engines.Database, clock: engines.Clock, meter: statement_meter.Meter
) -> None:
    """A result is made and delivered next to 10,000 deliveries that wait, as it is next to ten."""
    async with decider_harness.opened(database, clock, "0A") as harness:
        copied = await harness.start(Callback=long_life.URL)
        await harness.publish()
        await harness.say("stop", TaskId=copied)
    found: list[statement_meter.Work] = []
    before = 0
    for number, deliveries in enumerate((10, 10_000), 1):
        clock.advance(model.HOUR)
        async with decider_harness.opened(database, clock, f"0{number}") as harness:
            await history.copy_session(harness.store, copied, deliveries, before + 1)
            await history.analyze(harness.store)
        before = deliveries

        async def finish(harness: decider_harness.Harness) -> None:
            task_id = await harness.start(Callback=long_life.URL)
            await harness.say("stop", TaskId=task_id)
            key = job_key.DeliveryKey(task_id, 1)
            assert await harness.store.leases.take(key, 1, "n1", decider_harness.LEASE_MS)
            assert await harness.store.assignments.delivery(key)
            await harness.store.leases.renew_all([(key, 1)], "n1", decider_harness.LEASE_MS)
            await harness.say("callback-finished", **key.fields(), Epoch=1)

        found.append(await statement_meter.work(meter, database, clock, f"0{number}A", finish))
    pending = "SELECT count(*) FROM callbacks WHERE state = 'pending'"
    assert (await asyncio.to_thread(database.ask, pending))[0][0] >= 10_000
    assert found[1].steps == found[0].steps
    assert found[1].reads <= 1.5 * found[0].reads + 50, found


async def test_a_bucket_that_accepts_and_never_answers(store: stores.Store, clock: engines.Clock) -> None:
    """The uploads of one user hang for ever. Their leases stay, and another user's recording is captured, stored and reported."""
    node = work_doubles.Node(store, clock)
    upload, hanging = node.work.upload, []

    async def hang(job: due_work.Assignment, *rest: Any) -> uploaded_object.UploadedObject:
        if job.recording.task_id != examples.TASK:
            return await upload(job, *rest)
        hanging.append(job)
        return await asyncio.Event().wait()  # type: ignore[return-value]

    node.work.upload = hang  # type: ignore[method-assign]
    known = {"job": model.Job(kind=states.UPLOAD, state=states.QUEUED), "state": states.UPLOADING, "stop_requested": True}
    values = [examples.recording(speaker=f"s{n}", **known) for n in range(UPLOADS)]
    await examples.opened(store, *values, of=examples.session(request=examples.request(user_id="another", subscribe=("s0",))))
    await node.worker.start()
    try:
        for value in values:
            data = {**value.key.fields(), "Epoch": 1}
            command = codec.make("start-upload", id=value.key.text, time_ms=clock(), data=data)
            await command_handlers.handle(node.worker, command)
        await waiting.until(lambda: len(hanging) == UPLOADS, what="the uploads")
        capture = await node.open()
        capture.media(900, clock)
        await node.say("stop", TaskId=node.task_id)
        await node.relayed("upload-finished")
        clock.advance(node.policy.lease_ms - 1)
        held = await waiting.until(lambda: _renewed(store, clock() + 1), what="the renewals")
        assert len(held) == UPLOADS
    finally:
        await node.worker.stop()


async def _renewed(store: stores.Store, until_ms: int) -> list[Any]:
    """The leases, once all of them end after this time."""
    async with store.connections.read() as connection:
        rows = (await connection.execute(text("SELECT lease_until_ms FROM jobs WHERE state = 'leased'"))).all()
    return list(rows) if all(row.lease_until_ms > until_ms for row in rows) else []
