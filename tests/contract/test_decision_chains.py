"""Chains of decisions: many events of one session at once share commits, and leave what they leave one after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from events import codec
from machine import errors, model
from store import rows
from store import store as stores
from tests import decider_harness, engines, transactions

EVENTS, FEW = 200, 10
RECORDINGS = 40
SPEAKERS = ("al", "bo", "cy")
# What is compared. Numbers of rows and ids of messages depend on how often a decision was repeated; jobs that have ended are
# history; versions count writes.
COMPARED = (
    "SELECT task_id, state, closing_ms, finished_ms, end_reason, revision, idle_from_ms, published, live, uploading, present"
    " FROM sessions ORDER BY 1",
    "SELECT id, state, stop_requested, epoch, attempt, tries, present, awaited, last_pull, called, idle_from_ms, ended_ms,"
    " media_ms, code, detail, url, files_removed, evicted FROM recordings ORDER BY 1",
    "SELECT recording_id, epoch, media_ms, size_bytes, first_packet_ms, last_packet_ms, reason FROM segments ORDER BY 1, 2",
    "SELECT owner, epoch, kind, state, node FROM jobs WHERE state <> 'ended' ORDER BY 1, 2",
    # Serials are derived from ids; that of the first session is fixed.
    "SELECT owner, kind, at_ms, CASE WHEN owner LIKE '01000000000000000000000001%' THEN serial END FROM deadlines ORDER BY 1, 2",
    "SELECT room, user_id, audio, audio_ms, video, video_ms, left_ms FROM presence ORDER BY 1, 2",
    "SELECT task_id, revision, body FROM results ORDER BY 1, 2",
    "SELECT task_id, revision, state, epoch, tries, detail FROM callbacks ORDER BY 1, 2",
    "SELECT task_id, kind FROM secrets ORDER BY 1, 2",
    "SELECT sdk_app_id, callback_ms FROM applications ORDER BY 1",
    "SELECT event_id FROM inbox ORDER BY 1",
)
IN_ORDER = (
    "SELECT task_id, event_type, owner, from_state, to_state, note FROM journal ORDER BY task_id, seq",
    "SELECT task_id, channel, type, node FROM outbox ORDER BY task_id, seq",
)


def counting(store: stores.Store) -> list[int]:
    """Gets the number of decisions of each transaction."""
    made: list[int] = []
    run_batch = store.decisions._run_batch

    async def counted(batch: Any) -> None:
        made.append(len(batch))
        await run_batch(batch)

    store.decisions._run_batch = counted  # type: ignore[method-assign]
    return made


def exit_of(task_id: str, number: int, epoch: int) -> codec.Event:
    """The end of one run."""
    data = {"TaskId": task_id, "Speaker": "al", "N": 1, "Epoch": epoch, "Job": "capture", "Reason": "eof", "MediaMs": 10}
    return codec.make("ffmpeg-exit", id=f"exit-{number}", time_ms=engines.START_MS, data=data | {"SizeBytes": 1})


async def test_a_burst_of_one_session_shares_transactions(harness: decider_harness.Harness) -> None:
    """Hundreds of events of one session at once take a few transactions; another session's event waits for none but the first."""
    task_id = await harness.start(SubscribeUserIds=["al"])
    other = await harness.start(RoomId=89)
    batches, order = counting(harness.store), list[str]()

    async def decide(event: codec.Event) -> None:
        await harness.decider.decide(event)
        order.append(event.id)

    events = [exit_of(task_id, number, 1 + number // 10) for number in range(EVENTS)]
    stop = codec.make("stop", id="stop", time_ms=engines.START_MS, data={"TaskId": other})
    await asyncio.gather(*(decide(event) for event in (*events, stop)))
    assert len(batches) <= FEW
    assert order.index("stop") <= EVENTS // 2
    assert [id_ for id_ in order if id_ != "stop"] == [event.id for event in events]


async def test_one_that_fails_costs_the_rest_of_its_session_nothing(store: stores.Store) -> None:
    """Of the events of one session, every third one fails: the others are decided, and each caller gets what is its own."""
    batches, seen = counting(store), list[int]()

    def deciding(number: int) -> Callable[..., dict[str, Any]]:
        def decide(snapshot: Any, tx: transactions.Transaction) -> dict[str, Any]:
            if number % 3 == 1:
                raise errors.Unavailable("not now")
            seen.append(number)
            tx.add_result("t", number + 1, "{}")
            return {"number": number}

        return decide

    events = [codec.Event(id=f"e{n}", type="stop", time_ms=engines.START_MS, data={"TaskId": "t"}) for n in range(12)]
    deciding_all = (transactions.decide(store, event, deciding(number)) for number, event in enumerate(events))
    answers = await asyncio.gather(*deciding_all, return_exceptions=True)
    assert [number for number, each in enumerate(answers) if isinstance(each, errors.Unavailable)] == [1, 4, 7, 10]
    assert seen == [0, 2, 3, 5, 6, 8, 9, 11]
    assert len(batches) <= 2
    assert await store.decisions.answered("e1") is None


def history(chance: random.Random, task_id: str) -> list[codec.Event]:
    """Events of one session as workers, TRTC and users send them, in any order; many are stale or repeated."""
    made = []
    for number in range(chance.randrange(2, 40)):
        speaker, epoch = chance.choice(SPEAKERS), chance.randrange(1, 5)
        about = {"TaskId": task_id, "Speaker": speaker, "N": chance.randrange(1, 3), "Epoch": epoch}
        at_ms = engines.START_MS + chance.randrange(-2_000, 5_000)
        exited = {"Job": "capture", "Reason": chance.choice(["eof", "stopped", "stalled"]), "MediaMs": chance.choice([0, 900])}
        exited |= {"SizeBytes": 9, "LastPacketMs": at_ms}
        output = decider_harness.OUTPUT | {"Epoch": epoch}
        type_, data = chance.choice(
            [
                ("ffmpeg-exit", about | exited),
                ("ffmpeg-exit", about | exited),
                ("capture-started", about | {"FirstPacketMs": at_ms}),
                ("ffmpeg-exit", about | {"Job": "transcode", "Reason": "ok", "Output": output}),
                ("upload-finished", about | {"SizeBytes": 9, "Crc64": "1", "Url": "https://cos/1"}),
                ("upload-failed", about | {"Reason": "refused", "Detail": "AccessDenied", "Retry": True}),
                ("worker-lost", {"Owner": f"{task_id}/{speaker}/1", "Epoch": epoch, "Node": "n1", "MediaMs": 500}),
                ("callback-failed", {"TaskId": task_id, "Revision": 1, "Epoch": 1, "Reason": "status", "Retry": True}),
                ("stop", {"TaskId": task_id}) if not chance.randrange(8) else ("capture-started", about),
            ]
        )
        made.append(codec.make(type_, id=f"e{number}", time_ms=at_ms, data=data))
    return made


def of_the_room(chance: random.Random) -> list[codec.Event]:
    """Callbacks of one room, starts and stops in it."""
    made = []
    for number in range(chance.randrange(2, 40)):
        at_ms = engines.START_MS + chance.randrange(-2_000, 5_000)
        about = {"SdkAppId": decider_harness.APP, "RoomId": 88, "UserId": chance.choice(SPEAKERS), "EventMs": at_ms}
        start = decider_harness.START | {"Mode": "02", "Callback": "https://example.com/done"}
        type_, data = chance.choice(
            [
                ("user-publishing", about | {"Kind": chance.choice(["audio", "video"])}),
                ("user-publishing", about | {"Kind": "audio"}),
                ("user-unpublished", about | {"Kind": "audio"}),
                ("user-left", about | {"Reason": 1}),
                ("start", start),
                ("stop", {"SdkAppId": decider_harness.APP, "RoomId": 88, "UserId": "rec"}),
                ("room-destroyed", about | {"UserId": ""}) if not chance.randrange(4) else ("user-entered", about),
            ]
        )
        made.append(codec.make(type_, id=f"r{number}", time_ms=at_ms, data=data))
    return made


async def left_by(engine: str, folder: Path, seed: int, together: bool) -> list[str]:
    """What the events of a seed leave in a database of their own."""
    clock, chance = engines.Clock(), random.Random(seed)
    database = engines.fresh(engine, folder)
    async with decider_harness.opened(database, clock, "01") as harness:
        task_id = await harness.start(RoomId=89, SubscribeUserIds=list(SPEAKERS), Callback="https://example.com/done")
        for speaker in chance.sample(SPEAKERS, 2):
            await harness.take(f"{task_id}/{speaker}/1")
        for events in (history(chance, task_id), of_the_room(chance)):
            deciding = [harness.decider.decide(event) for event in events]
            if together:
                await asyncio.gather(*deciding, return_exceptions=True)
            else:
                for each in deciding:
                    await asyncio.gather(each, return_exceptions=True)
    rows = [repr(row) for query in (*COMPARED, *IN_ORDER) for row in database.ask(query)]
    # A decision that is repeated takes new ids, so those of sessions differ, and their order does not.
    for number, (task_id,) in enumerate(database.ask("SELECT task_id FROM sessions ORDER BY 1")):
        rows = [row.replace(task_id, f"session-{number}") for row in rows]
    return rows


@pytest.mark.parametrize("engine", engines.NAMES)
@pytest.mark.parametrize("seed", range(12))
async def test_together_they_leave_what_they_leave_one_after_the_other(tmp_path: Path, engine: str, seed: int) -> None:
    """Any events of one session and of one room: rows, timeline and messages are the same, in the same order."""
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    for folder in (alone, shared):
        folder.mkdir()
    assert await left_by(engine, shared, seed, together=True) == await left_by(engine, alone, seed, together=False)


async def test_files_that_expire_together_read_few_rows(
    harness: decider_harness.Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KEEP_FAILED passes for forty failed recordings of a session at once. The rows that are read grow with their number, not
    with its square, and the secrets are wiped."""
    task_id = await harness.start()
    for number in range(RECORDINGS):
        await harness.publish(f"s{number}")
    await harness.say("stop", TaskId=task_id)
    assert set((await harness.states(task_id)).values()) == {"Failed"}
    read: list[Any] = []
    recording = rows.recording

    def counted(row: Any) -> model.Recording:
        read.append(row)
        return recording(row)

    harness.clock.advance(model.Policy().keep_failed_ms)
    due = [each for each in await harness.store.deadlines.due(1_000) if each.kind == "keep"]
    assert len(due) == RECORDINGS
    monkeypatch.setattr(rows, "recording", counted)
    passed = [{"Owner": str(each.owner), "Kind": each.kind, "Serial": each.serial} for each in due]
    await asyncio.gather(*(harness.say("deadline-passed", **each) for each in passed))
    assert len(read) <= 5 * RECORDINGS
    assert "secrets wiped" in await harness.notes(task_id)
