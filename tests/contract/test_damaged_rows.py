"""Rows that were deleted or damaged by hand: they end the decisions and answers that need them, and no others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog
from sqlalchemy import text

from events import codec
from machine import model
from store import queries
from tests import buses, decider_harness, engines, rabbit, waiting


async def _change(harness: decider_harness.Harness, statement: str, **values: str) -> None:
    """Change the database past the store."""
    async with harness.store.connections.write() as connection:
        await connection.execute(text(statement), values)


async def _captured(harness: decider_harness.Harness, room: int, *speakers: str) -> str:
    """A closing session whose recordings are to be transcoded. Returns its id."""
    task_id = await harness.start(RoomId=room)
    for speaker in speakers:
        await harness.publish(speaker, RoomId=room)
        await harness.capture(f"{task_id}/{speaker}/1", reason="eof")
    await harness.say("stop", TaskId=task_id)
    return task_id


async def test_a_deleted_recording_holds_up_no_result(harness: decider_harness.Harness) -> None:
    """Its session finishes with the other recordings when RESULT_WAIT is over, and another session at once."""
    task_id = await _captured(harness, 1, "al", "bo")
    other = await _captured(harness, 2, "al")
    epoch = await harness.take(f"{task_id}/bo/1")
    await _change(harness, "DELETE FROM recordings WHERE id = :id", id=f"{task_id}/bo/1")
    assert [row.task_id for row in await harness.reading.unreadable()] == [task_id]
    await harness.outcome("ffmpeg-exit", f"{task_id}/bo/1", epoch, Job="transcode", Reason="ok", Output=decider_harness.OUTPUT)
    await harness.recorded(f"{task_id}/al/1")
    await harness.recorded(f"{other}/al/1")
    assert (await harness.session(other)).revision == 1
    await harness.wait(15 * model.MINUTE)
    assert (await harness.session(task_id)).state == "Finished"
    (result,) = await harness.reading.results(task_id)
    assert [f["Code"] for f in result["Files"]] == ["Success"]
    assert await harness.reading.unreadable() == []


async def test_a_decision_during_the_search_is_no_damage(
    harness: decider_harness.Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recording that is opened between two statements of the search leaves no wrong count behind."""
    await harness.start()
    read, speakers = queries.SessionQueries._all, iter(("al", "bo", "cy"))

    async def and_publish(reading: queries.SessionQueries, query: Any) -> list[dict[str, Any]]:
        rows = await read(reading, query)
        await harness.publish(next(speakers))
        return rows

    monkeypatch.setattr(queries.SessionQueries, "_all", and_publish)
    assert await harness.reading.unreadable() == []
    assert next(speakers, "") != "al"


DAMAGES = ["UPDATE sessions SET request = '{' WHERE task_id = :id", "UPDATE sessions SET warnings = '7' WHERE task_id = :id"]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_damaged_session_stops_no_other(harness: decider_harness.Harness, damage: str) -> None:
    """Three sessions of one room, the second one's row damaged: the others are decided and listed; the damaged one is logged, is
    found by `unreadable`, and works again after its repair."""
    first, damaged, last = [await harness.start(UserId=f"rec{number}") for number in range(3)]
    column = damage.split()[3]
    ((before,),) = await _rows(harness, f"SELECT {column} FROM sessions WHERE task_id = '{damaged}'")
    await _change(harness, damage, id=damaged)
    with structlog.testing.capture_logs() as lines:
        await harness.publish()
        assert [s.task_id for s in (await harness.reading.sessions())[0]] == [last, first]
        assert [s.task_id for s in (await harness.reading.sessions(limit=1, before=last))[0]] == [first]
        assert [(row.table, row.id) for row in await harness.reading.unreadable()] == [("sessions", damaged)]
    assert {line["row_id"] for line in lines if line["event"] == "row.unreadable"} == {damaged}
    for task_id in (first, last):
        assert await harness.states(task_id) == {"al/1": "Joining"}
    outcomes = await asyncio.gather(
        *(harness.say("stop", TaskId=task_id) for task_id in (first, damaged, last)), return_exceptions=True
    )
    assert [isinstance(outcome, RuntimeError) for outcome in outcomes] == [False, True, False]
    await _change(harness, f"UPDATE sessions SET {column} = :before WHERE task_id = :id", before=before, id=damaged)
    assert (await harness.say("stop", TaskId=damaged))["State"] == "Finished"


async def test_a_damaged_recording_stops_no_other(harness: decider_harness.Harness) -> None:
    """The recordings of other sessions end while the row of one is damaged; the list and its session are shown without it."""
    task_id = await _captured(harness, 1, "al", "bo")
    other = await _captured(harness, 2, "al")
    for owner in (f"{task_id}/al/1", f"{other}/al/1"):
        await harness.transcode(owner)
    await _change(harness, "UPDATE recordings SET output = '{}' WHERE id = :id", id=f"{task_id}/al/1")
    await harness.upload(f"{other}/al/1")
    assert (await harness.session(other)).state == "Finished"
    with pytest.raises(RuntimeError, match="cannot be read"):
        await harness.say("replay", TaskId=task_id)
    parts = await harness.reading.parts([task_id, other])
    assert [[r.key.text for r in parts[id_].recordings] for id_ in (task_id, other)] == [[f"{task_id}/bo/1"], [f"{other}/al/1"]]
    assert [r.speaker for r in await harness.reading.recordings(task_id)] == ["bo"]
    assert [row.id for row in await harness.reading.unreadable()] == [f"{task_id}/al/1"]


@pytest.mark.parametrize("bus", buses.NAMES)
async def test_a_result_that_breaks_its_schema_stops_no_other(
    harness: decider_harness.Harness, database: engines.Database, bus: str
) -> None:
    """The last uploads of three sessions end at one moment. The row of the second one has an end reason that no result may have:
    its event becomes a dead letter with the reason, the others have their results, and after a repair it has its own."""
    tasks = [await _captured(harness, room, "al") for room in (1, 2, 3)]
    for task_id in tasks:
        await harness.transcode(f"{task_id}/al/1")
    ((before,),) = await _rows(harness, f"SELECT end_reason FROM sessions WHERE task_id = '{tasks[1]}'")
    await _change(harness, "UPDATE sessions SET end_reason = 'ByHand' WHERE task_id = :id", id=tasks[1])
    stored = {"SizeBytes": 11, "Crc64": "2", "Url": "https://cos/al"}
    ended = [{"TaskId": t, "Speaker": "al", "N": 1, "Epoch": await harness.take(f"{t}/al/1"), **stored} for t in tasks]
    await harness.store.outbox.mark_all_sent([message.seq for message in await harness.store.outbox.unsent(1_000)])
    for data in ended:
        said = codec.make("upload-finished", id=f"done-{data['TaskId']}", time_ms=harness.clock(), data=data)
        await harness.store.outbox.send("event", said, data["TaskId"])
    prefix = rabbit.shared().prefix() if bus == "rabbitmq" else ""
    workshop, hands = buses.Workshop(bus, database, harness.store, harness.clock, prefix), buses.Hands()
    running = workshop.make(harness.decider.decide_from_bus, hands.on_command)
    await running.start()
    try:
        for task_id in (tasks[0], tasks[2]):
            await waiting.until(lambda task_id=task_id: harness.reading.results(task_id), 30, "the result of another session")
        (reason,) = await workshop.parked()
        assert "EndReason" in reason
    finally:
        await running.stop()
    assert (await harness.session(tasks[1])).state == "Closing"
    await _change(harness, "UPDATE sessions SET end_reason = :before WHERE task_id = :id", before=before, id=tasks[1])
    await harness.say("upload-finished", **ended[1])
    assert [(await harness.session(task_id)).state for task_id in tasks] == ["Finished"] * 3


async def test_a_damaged_secret_stops_no_other(harness: decider_harness.Harness) -> None:
    """Repeated starts of three sessions are decided together while secrets of the second one cannot be decrypted: only its own
    start fails."""
    tasks = [await harness.start(RoomId=room, Callback="https://hooks.example.com/") for room in (1, 2, 3)]
    await _change(harness, "UPDATE secrets SET body = 'odd' WHERE task_id = :id", id=tasks[1])
    said = await asyncio.gather(
        *(harness.start(RoomId=room, Callback="https://hooks.example.com/") for room in (1, 2, 3)), return_exceptions=True
    )
    assert said[::2] == tasks[::2]
    assert isinstance(said[1], Exception)


async def test_a_damaged_result_stops_no_reader(harness: decider_harness.Harness) -> None:
    """Readers of all results get those before and after it, page by page."""
    tasks = [await _captured(harness, room) for room in (1, 2, 3)]
    damage = "UPDATE outbox SET body = '{' WHERE channel = 'result' AND type = 'session-finished' AND task_id = :id"
    await _change(harness, damage, id=tasks[1])
    found, after = [], ""
    for _ in range(4):
        page, after = await harness.reading.results_after(after, types=["session-finished"], limit=1)
        found += [result.subject for result in page]
    assert found == [tasks[0], tasks[2]]


async def _rows(harness: decider_harness.Harness, query: str) -> list[tuple[str, ...]]:
    async with harness.store.connections.read() as connection:
        return [tuple(row) for row in (await connection.execute(text(query))).all()]
