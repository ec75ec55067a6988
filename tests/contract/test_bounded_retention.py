"""Cleanup of a large database: bounded transactions, indexes, and one node at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text

from machine import model
from store import connections, retention, tables
from store import store as stores
from tests import engines, examples

ROWS = 2 * retention.BATCH + 100
OLD_MS = engines.START_MS - 100 * 24 * model.HOUR
SPEAKERS = [f"s{n}" for n in range(300)]


@dataclass(slots=True)
class Statements:
    """What a database was asked: queries and deletions with their parameters, and the rows that each transaction deleted."""

    asked: list[tuple[str, Any]] = field(default_factory=list)
    deleted: list[int] = field(default_factory=list)
    _open: int = 0

    def note(self, _: Any, cursor: Any, statement: str, parameters: Any, __: Any, many: bool) -> None:
        """A statement ran."""
        if statement.startswith("DELETE"):
            self._open += len(parameters) if many else cursor.rowcount
        if statement.startswith(("DELETE", "SELECT")) and "pg_" not in statement:
            self.asked.append((statement, parameters[0] if many else parameters))

    def commit(self, _: Connection) -> None:
        """A transaction ended."""
        if self._open:
            self.deleted.append(self._open)
        self._open = 0


@contextlib.contextmanager
def watched(store: stores.Store) -> Iterator[Statements]:
    """The statements of a store."""
    seen, engine = Statements(), store.connections.engine.sync_engine
    event.listen(engine, "after_cursor_execute", seen.note)
    event.listen(engine, "commit", seen.commit)
    yield seen
    event.remove(engine, "after_cursor_execute", seen.note)
    event.remove(engine, "commit", seen.commit)


def _outbox(channel: str, task_id: str) -> dict[str, Any]:
    row = {"channel": channel, "type": "t", "task_id": task_id, "node": "", "body": "{}", "created_ms": OLD_MS}
    return row | {"claimed_until_ms": 0, "sent_ms": OLD_MS, "parked": ""}


def _rows() -> dict[Any, list[dict[str, Any]]]:
    """Old rows of every kind, more than one batch of each."""
    numbers = range(ROWS)
    line = {"event_id": "e", "event_type": "t", "from_state": "", "to_state": "", "note": ""}
    heard = {"audio": True, "audio_ms": 1, "video": False, "video_ms": 0, "left_ms": 0}
    by_owner = [f"{examples.TASK}/{speaker}/1" for speaker in SPEAKERS]
    ended = {"kind": "capture", "state": "ended", "node": "", "lease_until_ms": 0}
    return {
        tables.inbox: [{"event_id": f"e{n}", "at_ms": OLD_MS, "answer": ""} for n in numbers],
        tables.attempts: [{"message": f"m{n}", "tries": 1, "at_ms": OLD_MS} for n in numbers],
        tables.outbox: [
            _outbox(*kind) for kind in (("command", "x"), ("result", ""), ("result", examples.TASK)) for _ in numbers
        ],
        tables.audit: [
            {"at_ms": OLD_MS, "who": "w", "key_id": "", "action": "a", "subject": "s", "outcome": "ok"} for _ in numbers
        ],
        tables.presence: [
            {"sdk_app_id": n, "room_kind": "int", "room": "1", "user_id": "u", "updated_ms": OLD_MS, **heard} for n in numbers
        ],
        tables.journal: [{"task_id": examples.TASK, "owner": examples.TASK, "at_ms": OLD_MS, **line} for _ in numbers],
        tables.jobs: [{"owner": owner, "epoch": epoch, **ended} for owner in by_owner for epoch in range(2, 6)],
    }


async def _fill(store: stores.Store) -> None:
    """A finished session with many speakers, a long timeline and many jobs, and as many rows that belong to no session."""
    await examples.opened(store, *(examples.recording(speaker=speaker, job=None, files_removed=True) for speaker in SPEAKERS))
    async with store.connections.write(limited=False) as connection:
        for table, rows in _rows().items():
            await connection.execute(insert(table), rows)
        await connection.execute(text(f"UPDATE sessions SET state = 'Finished', finished_ms = {OLD_MS}"))


async def _delete(store: stores.Store, clock: engines.Clock) -> None:
    if await store.retention.delete_messages(clock() - model.HOUR):
        await store.retention.delete_sessions(clock() - model.HOUR, clock() - model.HOUR)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses that end at once."""
    monkeypatch.setattr(retention, "PAUSE_RATIO", 0)


async def test_no_transaction_deletes_more_than_a_batch(
    store: stores.Store, database: engines.Database, clock: engines.Clock
) -> None:
    """However many rows are old, and however large one session is, all of them go in bounded steps."""
    await _fill(store)
    with watched(store) as seen:
        await _delete(store, clock)
    assert len(seen.deleted) >= 7 * (ROWS // retention.BATCH)
    assert max(seen.deleted) <= retention.BATCH
    left = {table.name: database.ask(f"SELECT count(*) FROM {table.name}")[0][0] for table in _rows()}
    assert set(left.values()) == {0}, left
    assert database.ask("SELECT count(*) FROM sessions") == [(0,)]


async def test_other_writers_proceed_between_batches(store: stores.Store, clock: engines.Clock) -> None:
    """A writer is not kept waiting until all is deleted."""
    await _fill(store)
    with watched(store) as seen:
        deleting = asyncio.create_task(_delete(store, clock))
        batches = []
        for number in range(5):
            await store.outbox.send("event", examples.event(f"n{number}"))
            batches.append(len(seen.deleted))
        assert not deleting.done()
        await deleting
    assert batches[-1] < len(seen.deleted)


async def test_old_rows_are_found_by_an_index(store: stores.Store, database: engines.Database, clock: engines.Clock) -> None:
    """No statement of the cleanup reads a whole table, except that of the few nodes, which looks for files that are kept."""
    await _fill(store)
    with watched(store) as seen:
        await _delete(store, clock)
    postgresql = database.engine == "postgresql"
    async with store.connections.read() as connection:
        if postgresql:
            await connection.execute(text("SET enable_seqscan = off"))  # a table scan remains only where no index serves
        for statement, parameters in {statement: (statement, parameters) for statement, parameters in seen.asked}.values():
            explain = "EXPLAIN " if postgresql else "EXPLAIN QUERY PLAN "
            plan = (await connection.exec_driver_sql(explain + statement, parameters)).all()
            steps = [str(row[-1]) for row in plan]
            scans = [step for step in steps if "Seq Scan" in step or step.startswith("SCAN")]
            assert not scans or "FROM nodes" in statement, (statement, steps)


async def test_one_node_deletes_at_a_time(store: stores.Store, database: engines.Database, clock: engines.Clock) -> None:
    """Two nodes that begin together delete each row once. On PostgreSQL a node leaves the work to the one that is at it."""
    await _fill(store)
    other = database.open(clock)
    try:
        await asyncio.gather(_delete(store, clock), _delete(other, clock))
        assert database.ask("SELECT count(*) FROM inbox") == [(0,)]
        await store.attempts.add("late")
        if database.engine == "postgresql":
            async with other.connections.write(limited=False) as connection:
                await connections.hold_lock(connection, connections.RETENTION)
                assert not await store.retention.delete_messages(clock() + 1)
                assert await store.attempts.count("late") == 1
        assert await store.retention.delete_messages(clock() + 1)
        assert await store.attempts.count("late") == 0
    finally:
        await other.stop()
