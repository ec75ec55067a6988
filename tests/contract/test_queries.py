"""Queries of the API, on every engine: filters, counts, jobs with their times, segments, and results by cursor."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from events import codec, requests
from machine import changes, delivery, errors, job_key, model, session_view, states
from store import connections, inspection, queries, saving, session_list, sql, tables
from store import store as stores
from tests import engines, transactions, waiting

MAYBE_STUCK = session_view.SessionFilter(maybe_stuck=True)
IDS = tuple(f"01JBX5Q9V7T3M8K2C4D6F8H0Z{letter}" for letter in "ABCD")


@pytest.fixture
def views(store: stores.Store) -> queries.SessionQueries:
    """The views of the same database."""
    return queries.SessionQueries(store.connections)


def session(index: int, **more: Any) -> model.Session:
    """The session IDS[index], in a room of its own."""
    room = requests.Room(sdk_app_id=1 + index % 2, room_id=100 + index)
    request = requests.StartRequest(room=room, user_id="rec", region="r", bucket="b-1000", path="/")
    return model.Session(task_id=IDS[index], request=request, opened_ms=engines.START_MS + index, **more)


async def add(store: stores.Store, value: model.Session, *recordings: model.Recording) -> None:
    async with transactions.opened(store) as tx:
        tx.add_session(value, requests.Secrets())
        for recording in recordings:
            tx.add_recording(recording)


def recording(index: int, n: int = 1, **more: Any) -> model.Recording:
    return model.Recording(task_id=IDS[index], speaker="a/b", n=n, **more)


def said(number: int, type_: str = "session-refused") -> codec.Event:
    body = {"Code": "InvalidParameter", "Message": str(number), "RequestId": "r"}
    return codec.make(type_, id=f"r{number}", time_ms=engines.START_MS, data=body)


async def test_sessions_are_filtered(store: stores.Store, views: queries.SessionQueries) -> None:
    """Each filter works alone and together with all others; newest first."""
    for index in range(4):
        await add(store, session(index, state=states.OPEN if index else states.FINISHED))
    filters: dict[str, Any]
    for filters, found in (
        ({}, (3, 2, 1, 0)),
        ({"state": states.OPEN}, (3, 2, 1)),
        ({"sdk_app_id": 2}, (3, 1)),
        ({"room": "102"}, (2,)),
        ({"since_ms": engines.START_MS + 2}, (3, 2)),
        ({"before": IDS[2]}, (1, 0)),
        ({"limit": 1}, (3,)),
        ({"maybe_stuck": True}, (3, 2, 1)),
        ({"state": states.OPEN, "sdk_app_id": 2, "before": IDS[3], "maybe_stuck": True}, (1,)),
        ({"user_id": "rec", "sdk_app_id": 1}, (2, 0)),
        ({"user_id": "nobody"}, ()),
        ({"until_ms": engines.START_MS + 2}, (1, 0)),
        ({"since_ms": engines.START_MS + 1, "until_ms": engines.START_MS + 3}, (2, 1)),
    ):
        page = {name: filters.pop(name) for name in ("before", "limit") if name in filters}
        wanted = session_view.SessionFilter(**filters)
        listed, _ = await views.sessions(wanted, **page)
        assert [s.task_id for s in listed] == [IDS[i] for i in found], (filters, page)


async def test_sessions_are_found_by_their_recordings(
    store: stores.Store, views: queries.SessionQueries, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The speaker and the code are those of one recording, the node holds a job now. Filters of both kinds work together, and a
    page that looked at its candidates for too long is short and goes on."""
    job = model.Job(kind=states.UPLOAD, state=states.QUEUED)
    for index in range(4):
        code = states.FAILED_COS_WRITE if index % 2 else states.SUCCESS
        await add(store, session(index), recording(index, epoch=1, job=job, code=code), recording(index, 2))
    assert await store.leases.take(job_key.RecordingKey(IDS[2], "a/b", 1), 1, "node-1", 30_000)
    of = session_view.SessionFilter
    for wanted, found in (
        (of(speaker="a/b"), (3, 2, 1, 0)),
        (of(speaker="a"), ()),
        (of(code=states.FAILED_COS_WRITE), (3, 1)),
        (of(code=states.SUCCESS, speaker="a/b"), (2, 0)),
        (of(node="node-1"), (2,)),
        (of(node="node-1", code=states.FAILED_COS_WRITE), ()),
        (of(node="node-2"), ()),
        (of(speaker="a/b", sdk_app_id=2), (3, 1)),
        (of(speaker="a/b", room="100"), (0,)),
    ):
        listed, after = await views.sessions(wanted)
        assert ([s.task_id for s in listed], after) == ([IDS[i] for i in found], ""), wanted
    monkeypatch.setattr(session_list, "CANDIDATES", 1)
    monkeypatch.setattr(session_list, "ROUNDS", 2)
    assert await views.sessions(of(speaker="a/b", room="100")) == ([], IDS[2])
    (last,), after = await views.sessions(of(speaker="a/b", room="100"), before=IDS[2])
    assert (last.task_id, after) == (IDS[0], IDS[0])
    assert await views.sessions(of(speaker="a/b"), before=after) == ([], "")


async def test_the_net_for_what_is_stuck(store: stores.Store, views: queries.SessionQueries) -> None:
    """Stuck finished sessions have a failure with files, a live recording, or an undelivered result."""
    done = recording(0, state=states.DONE)
    await add(store, session(0, state=states.FINISHED), done)
    await add(store, session(1, state=states.FINISHED), replace(done, task_id=IDS[1], state=states.FAILED, ended_ms=1))
    await add(store, session(2, state=states.FINISHED), replace(done, task_id=IDS[2], state=states.UPLOADING))
    await add(store, session(3, state=states.FINISHED))
    async with transactions.opened(store) as tx:
        for index, state in ((0, delivery.DELIVERED), (3, delivery.FAILED)):
            tx.add_delivery(model.Delivery(task_id=IDS[index], revision=1, url="u", body="{}", state=state))
    assert [s.task_id for s in (await views.sessions(MAYBE_STUCK))[0]] == [IDS[3], IDS[2], IDS[1]]
    assert await store.spool_files.give_up(job_key.RecordingKey(IDS[1], "a/b", 1), failed_before_ms=2)
    assert [s.task_id for s in (await views.sessions(MAYBE_STUCK))[0]] == [IDS[3], IDS[2]]


async def test_counts_and_evidence(store: stores.Store, views: queries.SessionQueries, clock: engines.Clock) -> None:
    """One query covers several sessions: recordings by state without never-seen ones, jobs with their times, deliveries."""
    job = model.Job(kind=states.CAPTURE, state=states.QUEUED)
    queued = recording(0, epoch=1, job=job)
    await add(store, session(0), queued, recording(0, 2, state=states.DONE), recording(0, 3, never_seen=True))
    await add(store, session(1), recording(1, epoch=1, job=job))
    event = said(0)
    async with transactions.opened(store) as tx:
        tx.journal(queued.key, event, "", "Joining", "a recording opens")
        sent = model.Delivery(task_id=IDS[1], revision=1, url="u", body="{}", epoch=1, job=replace(job, kind=states.DELIVERY))
        tx.add_delivery(sent)
        tx.add_result(IDS[1], 1, "{}")
    clock.advance(5_000)
    async with transactions.opened(store) as tx:
        tx.journal(queued.key, event, "Joining", "Joining", "ignored: the speaker came back")
    assert await store.leases.take(job_key.RecordingKey(IDS[1], "a/b", 1), 1, "node-1", 30_000)
    assert await views.counts(IDS[:3]) == {IDS[0]: {"Joining": 1, "Done": 1}, IDS[1]: {"Joining": 1}, IDS[2]: {}}
    found = await views.parts(IDS[:3])
    assert [(r.n, r.capture) for r in found[IDS[0]].recordings] == [(1, "queued"), (2, "none"), (3, "none")]
    assert found[IDS[0]].jobs[queued.key].since_ms == engines.START_MS
    lease = found[IDS[1]].jobs[job_key.RecordingKey(IDS[1], "a/b", 1)]
    assert (lease.state, lease.node, lease.lease_until_ms) == ("leased", "node-1", engines.START_MS + 35_000)
    assert [str(c.key) for c in found[IDS[1]].deliveries] == [f"{IDS[1]}#1"]
    assert found[IDS[1]].jobs[job_key.DeliveryKey(IDS[1], 1)].since_ms == engines.START_MS
    assert found[IDS[2]] == session_view.SessionParts()


async def test_segments_of_a_session(store: stores.Store, views: queries.SessionQueries) -> None:
    """Segments of all its recordings and of no other's come in the order of their epochs."""
    await add(store, session(0), recording(0), recording(0, 2))
    await add(store, session(1), recording(1))
    for index, n, epoch in ((0, 1, 10), (0, 1, 9), (0, 2, 1), (1, 1, 1)):
        await store.segments.register(job_key.RecordingKey(IDS[index], "a/b", n), epoch, "node-1")
    found = [(s.recording, s.epoch, s.reason) for s in await views.segments(IDS[0])]
    assert found == [
        (job_key.RecordingKey(IDS[0], "a/b", 1), 9, ""),
        (job_key.RecordingKey(IDS[0], "a/b", 1), 10, ""),
        (job_key.RecordingKey(IDS[0], "a/b", 2), 1, ""),
    ]


async def test_results_by_cursor(store: stores.Store, views: queries.SessionQueries) -> None:
    """Only results come, in order, from any returned cursor on; events and commands between them do not count."""
    for number in range(5):
        await store.outbox.send("result" if number % 2 == 0 else "event", said(number))
    found, end = await views.results_after("")
    assert [r.id for r in found] == ["r0", "r2", "r4"]
    assert (await views.results_after(end))[0] == []
    assert [r.id for r in (await views.results_after(found[0].cursor, limit=1))[0]] == ["r2"]
    assert (await views.results_after("", types=["session-finished"])) == ([], end)
    assert (await views.results_after("now")) == ([], end)
    await store.outbox.send("result", said(5))
    assert [r.id for r in (await views.results_after(end))[0]] == ["r5"]
    for cursor in ("0", "s", "s-1", "s1 ", "S1", "s" + "9" * 30):
        with pytest.raises(errors.InvalidParameter, match="after"):
            await views.results_after(cursor)


async def test_the_schema_seen_from_outside(database: engines.Database) -> None:
    """The current schema is known and up to date; a database that does not answer is an error without its password."""
    found = await asyncio.to_thread(inspection.schema_state, database.url)
    assert found.known
    assert found.current == found.newest != ""
    with pytest.raises(errors.Unavailable) as caught:
        await asyncio.to_thread(inspection.schema_state, "postgresql+asyncpg://u:PLANTED@127.0.0.1:9/recorder")
    assert "PLANTED" not in str(caught.value)


async def test_no_result_is_passed_over(store: stores.Store, views: queries.SessionQueries, database: engines.Database) -> None:
    """Of two transactions the one with the lower number commits later, if the engine allows it: a reader that follows its cursors
    sees both once. So do concurrent readers, all in the same order."""
    seen: list[str] = []
    written, commit = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        async with store.connections.write(limited=False) as connection:
            row = saving.message_row(changes.OutgoingMessage("result", said(1)), 0)
            await connection.execute(insert(tables.outbox).values(**row))
            written.set()
            await commit.wait()

    async def read_on(after: str) -> str:
        found, cursor = await views.results_after(after)
        seen.extend(r.id for r in found)
        return cursor

    slowly = asyncio.create_task(slow())
    await written.wait()
    quickly = asyncio.create_task(store.outbox.send("result", said(2)))
    if database.engine == "postgresql":
        await quickly
    cursor = await read_on("")
    assert seen == (["r2"] if database.engine == "postgresql" else [])
    commit.set()
    await asyncio.gather(slowly, quickly)
    cursor = await read_on(cursor)
    assert sorted(seen) == ["r1", "r2"]
    assert await read_on(cursor) == cursor
    await asyncio.gather(*(store.outbox.send("result", said(number)) for number in range(3, 20)))
    at_once = await asyncio.gather(*(views.results_after("") for _ in range(4)))
    assert all([r.id for r in found] == [r.id for r in at_once[0][0]] for found, _ in at_once)
    assert sorted(r.id for r in at_once[0][0]) == sorted(f"r{number}" for number in range(1, 20))


async def test_reading_on_while_others_write(store: stores.Store, views: queries.SessionQueries) -> None:
    """A reader that goes on page by page while results are written and marked sent sees each of them exactly once."""
    numbers = range(60)
    writing = asyncio.gather(*(store.outbox.send("result", said(number)) for number in numbers))
    seen: list[str] = []
    cursor = ""
    async with waiting.at_most(20):
        while len(seen) < len(numbers):
            found, cursor = await views.results_after(cursor, limit=7)
            seen += [r.id for r in found]
            await store.outbox.mark_all_sent([m.seq for m in await store.outbox.claim(5, 1_000)])
    await writing
    assert sorted(seen) == sorted(f"r{number}" for number in numbers)
    assert (await views.results_after(cursor))[0] == []


async def test_a_small_pool_serves_all_paths(database: engines.Database) -> None:
    """After a moment of much work, the connections that are kept leave some for everything else."""
    opened = connections.open_database(database.url, pool_size=3)
    try:
        statement = sql.Statement(select(tables.nodes.c.node))
        async with waiting.at_most(15):
            await asyncio.gather(*(opened.fetch(statement, {}) for _ in range(12)))
            async with opened.read() as one, opened.read() as other:
                assert (await one.execute(select(1))).scalar() == (await other.execute(select(1))).scalar()
    finally:
        await opened.close()


@pytest.mark.parametrize("since", [0, 3])
async def test_a_cursor_of_a_later_database_is_refused(
    store: stores.Store, views: queries.SessionQueries, clock: engines.Clock, since: int
) -> None:
    """After an older database came back, a reader's cursor names a result that is gone, or another one in its place. It is
    refused with the newest valid cursor, also without the time that older versions left out."""
    for number in range(6):
        clock.advance(1_000)
        await store.outbox.send("result", said(number))
    found, ahead = await views.results_after("")
    kept = found[2].cursor
    async with store.connections.write(limited=False) as connection:
        last = [int(row[0]) for row in await connection.execute(text("SELECT seq FROM outbox ORDER BY seq"))][2]
        await connection.execute(text("DELETE FROM outbox WHERE seq > :last"), {"last": last})
        if store.connections.on_server:
            await connection.execute(text("SELECT setval(pg_get_serial_sequence('outbox', 'seq'), :last)"), {"last": last})
        else:
            await connection.execute(text("UPDATE sqlite_sequence SET seq = :last WHERE name = 'outbox'"), {"last": last})
    for number in range(since):
        clock.advance(500)
        await store.outbox.send("result", said(10 + number))
    _, newest = await views.results_after("now")
    lost = [ahead] if since else [ahead, ahead.partition("-")[0], found[4].cursor]
    for cursor in lost:
        with pytest.raises(errors.CursorLost) as refused:
            await views.results_after(cursor)
        assert refused.value.details == {"Newest": newest}
        assert newest in refused.value.message
    assert [r.id for r in (await views.results_after(kept))[0]] == [f"r{10 + number}" for number in range(since)]
    assert (await views.results_after(newest))[0] == []
    assert [r.id for r in (await views.results_after(kept.partition("-")[0]))[0]] == [
        f"r{10 + number}" for number in range(since)
    ]
