"""Metrics of decisions, and the backlog in the database, on each engine."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from sqlalchemy import event

from machine import backlog, errors
from store import backlog as backlogs
from store import store as stores
from tests import decider_harness, engines, scrapes

ALIVE_MS = 60_000
# Tables without an index of unfinished rows, because they are small.
SMALL = ("nodes",)


async def recorded(harness: decider_harness.Harness) -> str:
    """A session with one recording that becomes Done; returns its TaskId."""
    task_id = await harness.start()
    await harness.publish()
    owner = f"{task_id}/al/1"
    epoch = await harness.take(owner)
    await harness.outcome("capture-started", owner, epoch, FirstPacketMs=harness.clock())
    harness.clock.advance(5_000)
    await harness.say("stop", "e-stop", TaskId=task_id)
    last = {"MediaMs": 5_000, "SizeBytes": 9, "LastPacketMs": harness.clock()}
    await harness.outcome("ffmpeg-exit", owner, epoch, Job="capture", Reason="stopped", **last)
    harness.clock.advance(1_500)
    gaps = decider_harness.OUTPUT | {"Gaps": [{"AtMs": 1_000, "DurationMs": 700}]}
    await harness.outcome("ffmpeg-exit", owner, await harness.take(owner), Job="transcode", Reason="ok", Output=gaps)
    await harness.upload(owner)
    return task_id


async def test_a_session_is_counted(harness: decider_harness.Harness) -> None:
    """Each step of a session counts once: the session, the recording, its gap, and the time from stop to Done."""
    before = scrapes.of_this_process()
    await recorded(harness)
    grown = scrapes.grown(before)
    assert grown["recorder_sessions_opened_total"] == 1
    assert grown['recorder_sessions_finished_total{reason="Stopped"}'] == 1
    assert grown['recorder_recordings_ended_total{code="Success"}'] == 1
    assert (grown["recorder_gaps_total"], round(grown["recorder_gap_seconds_total"], 3)) == (1, 0.7)
    assert grown["recorder_stop_to_done_seconds_count"] == 1
    assert grown['recorder_events_total{outcome="decided",type="ffmpeg-exit"}'] == 2
    assert grown['recorder_event_age_seconds_count{type="upload-finished"}'] == 1
    seconds = "recorder_stop_to_done_seconds_sum"
    assert scrapes.of_this_process()[seconds] - before[seconds] == pytest.approx(1.5)


async def test_a_repeated_event_changes_no_count_of_sessions(harness: decider_harness.Harness) -> None:
    """A repeat is an event that was decided, and nothing else."""
    task_id = await recorded(harness)
    before = scrapes.of_this_process()
    await harness.say("stop", "e-stop", TaskId=task_id)
    assert {name.partition("{")[0] for name in scrapes.grown(before)} == {
        "recorder_events_total",
        "recorder_event_duration_seconds_count",
    }


async def test_a_refused_event_is_counted_as_refused(harness: decider_harness.Harness) -> None:
    """A request about an unknown session counts as refused, and as nothing else."""
    before = scrapes.of_this_process()
    with pytest.raises(errors.NotFound):
        await harness.say("stop", TaskId="01JBX5Q9V7T3M8K2C4D6F8H0ZW")
    assert scrapes.grown(before) == {'recorder_events_total{outcome="refused",type="stop"}': 1}


async def test_a_delivery_is_counted(harness: decider_harness.Harness) -> None:
    """The delivery of a result counts once it has ended."""
    await harness.start(Callback="https://receiver.example/results")
    task_id = (await harness.messages("result"))[0].subject
    await harness.say("stop", TaskId=task_id)
    before = scrapes.of_this_process()
    (delivery,) = await harness.deliveries(task_id)
    await harness.say("callback-finished", TaskId=task_id, Revision=delivery.revision, Epoch=delivery.epoch)
    assert scrapes.grown(before)['recorder_deliveries_ended_total{outcome="delivered"}'] == 1


def query(store: stores.Store, clock: engines.Clock) -> backlogs.BacklogQuery:
    return backlogs.BacklogQuery(store.connections, clock=clock, alive_ms=ALIVE_MS)


async def test_the_backlog_counts_what_is_unfinished(harness: decider_harness.Harness, database: engines.Database) -> None:
    """Unfinished sessions, recordings, jobs and messages are counted, finished ones are not."""
    await recorded(harness)
    task_id = await harness.start(RoomId=99)
    await harness.publish(RoomId=99)
    await harness.publish("bo", RoomId=99)
    await harness.take(f"{task_id}/bo/1")
    queued_ms = harness.clock()
    harness.clock.advance(2_000)
    found = await query(harness.store, harness.clock).read()
    assert (found.sessions, found.recordings) == ({"Open": 1}, {"Joining": 2})
    assert (found.queued, found.leased) == ({"capture": backlog.Waiting(count=1, since_ms=queued_ms)}, {"capture": 1})
    assert (found.deliveries, found.parked, found.workers) == ({}, 0, 0)
    assert found.outbox["command"].count == len(await harness.messages("command"))
    assert found.unsent.count == sum(each.count for each in found.outbox.values()) > found.outbox["command"].count
    assert found.unsent.since_ms == min(each.since_ms or 0 for each in found.outbox.values())


@pytest.fixture
def statements(harness: decider_harness.Harness) -> Iterator[list[tuple[str, object]]]:
    """The statements of the store from now on, with their parameters."""
    found: list[tuple[str, object]] = []

    def note(_c: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        found.append((statement, parameters))

    engine = harness.store.connections.engine.sync_engine
    event.listen(engine, "before_cursor_execute", note)
    yield found
    event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_the_backlog_reads_no_finished_rows(harness: decider_harness.Harness, statements: list[tuple[str, object]]) -> None:
    """By SQLite's plans, each count of the backlog reads an index of unfinished rows, or a small table."""
    await query(harness.store, harness.clock).read()
    selects = [(words, values) for words, values in statements if words.startswith("SELECT")]
    assert len(selects) == 8
    async with harness.store.connections.read() as connection:
        plans = []
        for words, values in selects:
            rows = (await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {words}", values)).all()
            plans += [str(row[-1]) for row in rows]
    whole = [step for step in plans if re.fullmatch(r"SCAN \w+", step) and step.removeprefix("SCAN ") not in (*SMALL, "anon_1")]
    assert whole == []
