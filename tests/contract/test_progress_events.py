"""Events of a recording's progress: one row in the outbox for each change, in the transaction of the change, on each engine."""

from __future__ import annotations

import json
from typing import Any

import pytest

from config import parsers
from events import codec
from machine import job_key, model, progress
from store import store as stores
from tests import decider_harness, engines, transactions

SECOND = model.SECOND


@pytest.fixture
def harness(store: stores.Store, clock: engines.Clock) -> decider_harness.Harness:
    """A service that publishes every kind of progress."""
    return decider_harness.connect(store, clock, policy=model.Policy(progress_events=parsers.PROGRESS_EVENTS))


async def _told(harness: decider_harness.Harness) -> list[tuple[str, dict[str, Any]]]:
    return [(m.type, dict(m.data)) for m in await harness.messages("result") if m.type in parsers.PROGRESS_EVENTS]


async def _types(harness: decider_harness.Harness) -> list[str]:
    return [type_.removeprefix("recording-") for type_, _ in await _told(harness)]


async def test_a_stream_that_breaks_and_comes_back(harness: decider_harness.Harness, clock: engines.Clock) -> None:
    """Started with the first media, interrupted with the reason of the run's end, resumed with media; each under the recording,
    with its time, the media so far and UserData. Runs without media in between add nothing."""
    task_id = await harness.start(UserData={"lesson": 7})
    await harness.publish()
    owner, began_ms = f"{task_id}/al/1", clock()
    await harness.capture(owner, reason="eof", Detail="The server ended the stream.", LastPacketMs=began_ms + 4 * SECOND)
    for _ in range(3):
        await harness.wait(30 * SECOND)
        await harness.capture(owner, media_ms=0, reason="no-media")
    await harness.wait(30 * SECOND)
    back_ms = clock()
    epoch = await harness.take(owner)
    await harness.outcome("capture-started", owner, epoch, FirstPacketMs=back_ms)
    about = {"TaskId": task_id, "SdkAppId": str(decider_harness.APP), "RoomId": "88", "StrRoomId": "", "UserId": "rec"}
    about |= {"Speaker": "al", "N": 1, "UserData": {"lesson": 7}}
    found = [(type_, data) for type_, data in await _told(harness) if type_ != progress.PROGRESS]
    ended = {"Reason": "eof", "Detail": "The server ended the stream."}
    assert found == [
        (progress.STARTED, about | {"Time": codec.iso(began_ms), "MediaSeconds": 0}),
        (progress.INTERRUPTED, about | {"Time": codec.iso(began_ms + 4 * SECOND), "MediaSeconds": 5, **ended}),
        (progress.RESUMED, about | {"Time": codec.iso(back_ms), "MediaSeconds": 5}),
    ]
    assert {m.subject for m in await harness.messages("result") if m.type == progress.STARTED} == {owner}


async def test_a_repeated_outcome_is_reported_once(harness: decider_harness.Harness) -> None:
    """A worker's outcome that arrives twice under its id, or late under an older epoch, reports nothing again."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    epoch = await harness.take(owner)
    began = {"TaskId": task_id, "Speaker": "al", "N": 1, "Epoch": epoch}
    for id_ in ("c1", "c1", "c2"):
        await harness.say("capture-started", id_, **began)
    ended = began | {"Job": "capture", "Reason": "stalled", "MediaMs": 9}
    for id_ in ("x1", "x1", "x2"):
        await harness.say("ffmpeg-exit", id_, **ended)
    await harness.say("capture-started", "c3", **began)
    assert await _types(harness) == ["started", "interrupted"]


async def test_a_lost_worker_and_another_track(harness: decider_harness.Harness) -> None:
    """A lost worker interrupts. A run that ends because another track began does not, unless the next one brings nothing."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    epoch = await harness.take(owner)
    await harness.outcome("capture-started", owner, epoch)
    await harness.say("worker-lost", Owner=owner, Epoch=epoch, Node="n1", MediaMs=20_000, LastPacketMs=harness.clock())
    await harness.capture(owner, reason="new-track")
    await harness.capture(owner, reason="new-track")
    assert await _types(harness) == ["started", "interrupted", "resumed"]
    assert (await _told(harness))[1][1]["Reason"] == "worker-lost"
    await harness.capture(owner, media_ms=0, reason="eof")
    assert (await _types(harness))[3:] == ["interrupted"]


async def test_a_start_that_was_not_reported(harness: decider_harness.Harness) -> None:
    """If the end of a run reveals its media, the recording started and is interrupted in one decision; if it also ends the
    recording, it only started. A recording without media reports nothing."""
    task_id = await harness.start()
    for speaker in ("al", "bo", "cy"):
        await harness.publish(speaker)
    for speaker, media_ms in (("al", 5_000), ("cy", 0)):
        owner = f"{task_id}/{speaker}/1"
        epoch = await harness.take(owner)
        await harness.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="eof", MediaMs=media_ms)
    epoch = await harness.take(f"{task_id}/bo/1")
    await harness.say("stop", TaskId=task_id)
    await harness.outcome("ffmpeg-exit", f"{task_id}/bo/1", epoch, Job="capture", Reason="stopped", MediaMs=5_000)
    found = [(type_.removeprefix("recording-"), data["Speaker"]) for type_, data in await _told(harness)]
    assert found == [("started", "al"), ("interrupted", "al"), ("started", "bo")]


async def test_progress_comes_at_its_interval(harness: decider_harness.Harness) -> None:
    """Every 60 s while the recording captures, with the media that the running capture has reported; none after its end."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    epoch = await harness.take(owner)
    await harness.outcome("capture-started", owner, epoch)
    await harness.store.segments.update(job_key.parse_recording(owner), epoch, {"media_ms": 58_500})
    await harness.wait(130 * SECOND)
    found = [data for type_, data in await _told(harness) if type_ == progress.PROGRESS]
    assert [data["MediaSeconds"] for data in found] == [58.5, 58.5]
    await harness.say("stop", TaskId=task_id)
    await harness.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", MediaMs=60_000)
    await harness.wait(300 * SECOND)
    assert await _types(harness) == ["started", "progress", "progress"]


async def test_nothing_is_published_unasked(store: stores.Store, clock: engines.Clock) -> None:
    """Without PROGRESS_EVENTS a recording writes the rows that it wrote before, and arms no deadline more."""
    harness = decider_harness.connect(store, clock)
    task_id = await harness.start()
    await harness.publish()
    await harness.capture(f"{task_id}/al/1", reason="eof")
    assert [m.type for m in await harness.messages("result")] == ["session-accepted"]
    async with harness.store.connections.read() as connection:
        kinds = (await connection.exec_driver_sql("SELECT kind FROM deadlines")).scalars().all()
    assert progress.DEADLINE not in kinds


ASKS = {"Callback": "https://x.example/a?key=MARK", "CallbackEvents": ["recording-interrupted", "recording-progress"]}


async def _posts(harness: decider_harness.Harness, task_id: str) -> list[model.Delivery]:
    """The deliveries whose commands were issued, each once, in order."""
    found = []
    for message in await harness.messages("command"):
        if message.type == "send-callback" and message.data["TaskId"] == task_id:
            async with transactions.opened(harness.store) as tx:
                found.append(await tx.read("delivery", job_key.DeliveryKey.of(message.data)))
    return found


async def test_a_callback_gets_the_events_that_its_start_named(store: stores.Store, clock: engines.Clock) -> None:
    """A start may ask for events that the service does not publish otherwise: they are published and posted, each under a number
    of its own with its type. The others are not; a session that did not ask gets none."""
    harness = decider_harness.connect(store, clock)
    other = await harness.start(UserId="rec2", Callback="https://x.example/b")
    task_id = await harness.start(**ASKS)
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.capture(owner, reason="eof")
    await harness.wait(61 * SECOND)
    assert set(await _types(harness)) == {"interrupted", "progress"}
    assert {m.subject for m in await harness.messages("result") if m.type in parsers.PROGRESS_EVENTS} == {owner}
    keys = [each.key.text for each in await _posts(harness, task_id)]
    assert keys == [f"{task_id}#{model.EVENTS_FROM + n}" for n in range(1, len(keys) + 1)]
    async with store.connections.read() as connection:
        rows = (await connection.exec_driver_sql("SELECT body FROM callbacks ORDER BY revision")).scalars().all()
    told = await _told(harness)
    assert [json.loads(row) for row in rows] == [{"Type": type_, **data} for type_, data in told]
    assert await _posts(harness, other) == []


async def test_the_result_replaces_events_that_were_not_accepted(store: stores.Store, clock: engines.Clock) -> None:
    """An event is retried as a result is. When the result comes, the receiver need not see the events before it any more; they
    are no deliveries of the result."""
    harness = decider_harness.connect(store, clock)
    task_id = await harness.start(**ASKS)
    await harness.publish()
    owner = f"{task_id}/al/1"
    await harness.capture(owner, reason="eof")
    first = job_key.DeliveryKey(task_id, model.EVENTS_FROM + 1)
    assert await store.leases.take(first, 1, "n1", 30_000)
    await harness.say("callback-failed", **first.fields(), Epoch=1, Reason="status", Retry=True)
    await harness.wait(6 * SECOND)
    assert [(each.key, each.epoch) for each in await _posts(harness, task_id)][-1] == (first, 2)
    await harness.say("stop", TaskId=task_id)
    await harness.recorded(owner)
    async with transactions.opened(store) as tx:
        event = await tx.read("delivery", first)
    assert event.state == "cancelled"
    assert [(each.revision, each.state) for each in await harness.deliveries(task_id)] == [(1, "pending")]
