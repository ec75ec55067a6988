"""The contract of every store: delete whole sessions once nothing of them is needed, and not before."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from events import requests
from machine import job_key, model
from store import queries, tables
from store import store as stores
from tests import engines, examples, transactions

LATER_MS = 10 * model.HOUR
OWNER = job_key.RecordingKey(examples.TASK, "al", 1)
HEARD = {"audio": True, "audio_ms": 1, "video": False, "video_ms": 0, "left_ms": 0}
ENDED: dict[str, Any] = {"state": "Done", "code": "Success", "ended_ms": engines.START_MS, "job": None}


async def _finished(store: stores.Store, **recording: Any) -> None:
    """A finished session with a row in every table that has session rows."""
    await examples.opened(store, examples.recording(files_removed=True))
    assert await store.leases.take(OWNER, 1, "n", examples.LEASE_MS)
    await store.uploads.save(OWNER, 1, "n", {"upload_id": "u"})
    async with transactions.opened(store) as tx:
        delivery = model.Delivery(task_id=examples.TASK, revision=1, url="http://a", body="{}", state="delivered")
        tx.add_result(examples.TASK, 1, "{}")
        tx.add_delivery(dataclasses.replace(delivery, epoch=1, job=model.Job(kind="callback", state="queued")))
        tx.arm(job_key.SessionKey(examples.TASK), "idle", engines.START_MS)
        tx.journal(OWNER, examples.event())
        tx.send("result", examples.event(), examples.TASK)
        session = await tx.session(examples.TASK)
        assert session is not None
        tx.save_session(session, dataclasses.replace(session, state="Finished", finished_ms=engines.START_MS))
    await examples.moved(store, OWNER, **(ENDED | recording))
    await store.outbox.mark_all_sent([m.seq for m in await store.outbox.unsent()])


def _rows(database: engines.Database) -> dict[str, int]:
    """The non-empty tables with rows of sessions, and their row counts."""
    names = [table.name for table in tables.metadata.sorted_tables if table is not tables.schema_range]
    counted = {name: int(database.ask(f"SELECT count(*) FROM {name}")[0][0]) for name in names}
    return {name: count for name, count in counted.items() if count}


async def test_a_session_is_forgotten_whole(store: stores.Store, database: engines.Database, clock: engines.Clock) -> None:
    """A finished session older than the limit leaves no row in any table; a younger one stays."""
    await _finished(store)
    before = _rows(database)
    assert await store.retention.delete_sessions(engines.START_MS) == 0
    assert _rows(database) == before
    clock.advance(LATER_MS)
    assert await store.retention.delete_sessions(engines.START_MS + 1) == 1
    assert _rows(database) == {}
    assert await store.retention.delete_sessions(engines.START_MS + 1) == 0


@pytest.mark.parametrize("wanted", [{"files_removed": False}, {"output_node": "away"}], ids=["files-kept", "file-on-a-node"])
async def test_what_is_kept_keeps_its_session(store: stores.Store, wanted: dict[str, Any]) -> None:
    """As long as a file is on a spool the session can be read and replayed, however old it is."""
    await _finished(store, **wanted)
    assert await store.retention.delete_sessions(engines.START_MS + LATER_MS) == 0


async def test_segments_and_deliveries_keep_their_session(store: stores.Store) -> None:
    """A segment that no node has deleted yet, and an undelivered result, keep the session, too."""
    await _finished(store)
    await store.segments.register(OWNER, 1, "n")
    assert await store.retention.delete_sessions(engines.START_MS + LATER_MS) == 0
    files = await store.spool_files.of_recording(OWNER, "")
    assert files is not None
    assert files.segments == (1,)
    await store.spool_files.forget(OWNER, "", [1])
    async with transactions.opened(store) as tx:
        delivery = await tx.read("delivery", job_key.DeliveryKey(examples.TASK, 1))
        tx.save_delivery(delivery, dataclasses.replace(delivery, state="pending"))
    assert await store.retention.delete_sessions(engines.START_MS + LATER_MS) == 0


async def test_readers_of_results_go_on_after_results_are_forgotten(store: stores.Store, clock: engines.Clock) -> None:
    """An earlier cursor stays valid: results after the deleted ones are read once."""
    await _finished(store)
    reader = queries.SessionQueries(store.connections)
    read, cursor = await reader.results_after("")
    assert len(read) == 1
    clock.advance(LATER_MS)
    assert await store.retention.delete_sessions(clock()) == 1
    assert await reader.results_after(cursor) == ([], cursor)
    await store.outbox.send("result", examples.event("e2"), examples.OTHER)
    read, later = await reader.results_after(cursor)
    assert [r.id for r in read] == ["e2"]
    assert await reader.results_after(later) == ([], later)


async def test_what_belongs_to_no_session_is_forgotten(
    store: stores.Store, database: engines.Database, clock: engines.Clock
) -> None:
    """Expired presence, nodes that are long gone and hold nothing, and answers to refused starts are deleted; the living
    stay."""
    room = requests.Room(sdk_app_id=1, room_id=2)
    async with transactions.opened(store) as tx:
        tx.put_presence(room, "old", HEARD)
    await store.nodes.heartbeat("gone")
    await store.nodes.heartbeat("holds")
    await store.segments.register(OWNER, 1, "holds")
    await store.outbox.send("result", examples.event("refused"))
    await store.outbox.mark_all_sent([m.seq for m in await store.outbox.unsent()])
    clock.advance(25 * model.HOUR)
    await store.nodes.heartbeat("alive")
    async with transactions.opened(store) as tx:
        tx.put_presence(room, "new", HEARD)
    await store.retention.delete_sessions(clock() - model.HOUR, clock() - model.HOUR)
    assert sorted(node for (node,) in database.ask("SELECT node FROM nodes")) == ["alive", "holds"]
    assert database.ask("SELECT user_id FROM presence") == [("new",)]
    assert database.ask("SELECT count(*) FROM outbox") == [(0,)]
