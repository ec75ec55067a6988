"""Two versions on one database: which of them may write, and that rows stay right while release 0.1.0 writes too."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from machine import errors
from store import connections, schema, side_by_side
from store import store as stores
from tests import decider_harness, engines, postgres, waiting

TASK = "01" + "T" * 24
RELEASE = "0006"


async def change(database: engines.Database, statement: str) -> None:
    """Write without the store."""
    opened = connections.open_database(database.url)
    async with opened.write() as connection:
        await connection.exec_driver_sql(statement)
    await opened.close()


async def at(engine: str, folder: Path, revision: str) -> tuple[engines.Database, connections.Connections]:
    """A database as the migrations up to a revision leave it, without a contract, and connections to it."""
    path = folder / "recorder.db"
    url = postgres.shared().create() if engine == "postgresql" else f"sqlite+aiosqlite:///{path}"
    opened = connections.open_database(url)
    async with opened.write() as connection:
        await connection.run_sync(schema.upgrade, revision)
    return engines.Database(engine=engine, url=url, path=path), opened


@contextlib.asynccontextmanager
async def former(database: engines.Database) -> AsyncIterator[asyncpg.Connection]:
    """A connection as release 0.1.0 makes it: without a name."""
    connection = await asyncpg.connect(database.url.replace("+asyncpg", ""))
    try:
        yield connection
    finally:
        await connection.close()


def row(table: str, **values: Any) -> str:
    """An insert of release 0.1.0: without the columns that came later."""
    return f"INSERT INTO {table} ({', '.join(values)}) VALUES ({', '.join(map(_literal, values.values()))})"


def _literal(value: Any) -> str:
    return repr(value) if isinstance(value, str) else "NULL" if value is None else str(value).lower()


def session(task_id: str = TASK) -> str:
    """A session, as release 0.1.0 opens it."""
    who = {"task_id": task_id, "sdk_app_id": 1, "room_kind": "string", "room": task_id, "user_id": "rec", "request": "{}"}
    times = {"opened_ms": 1, "idle_from_ms": 1, "revision": 0, "version": 1}
    return row("sessions", **who, **times, state="Open", end_reason="", published=False, warnings="[]")


def recording(speaker: str, state: str, present: bool | None = None, task_id: str = TASK) -> str:
    """A recording, as release 0.1.0 adds it."""
    who = {"id": f"{task_id}/{speaker}/1", "task_id": task_id, "speaker": speaker, "n": 1, "mode": "02", "state": state}
    flags = dict.fromkeys(("stop_requested", "awaited", "last_pull", "called", "partial", "files_removed"), False)
    numbers = dict.fromkeys(("version", "epoch", "attempt"), 1) | dict.fromkeys(("tries", "media_ms"), 0)
    times = dict.fromkeys(("idle_from_ms", "step_from_ms", "opened_ms"), 1)
    texts = dict.fromkeys(("code", "detail", "output_node", "url"), "")
    return row("recordings", **who, **flags, **numbers, **times, **texts, present=present)


@pytest.mark.parametrize("oldest", ["1000", "9999"])
async def test_a_program_that_is_too_old_decides_nothing(
    harness: decider_harness.Harness, database: engines.Database, oldest: str
) -> None:
    """Once the database allows only newer programs, a decision and a heartbeat fail with the reason and write nothing; a program
    that is allowed again goes on."""
    await change(database, f"UPDATE schema_range SET oldest = '{oldest}'")
    with pytest.raises(errors.Outdated, match=f"revision {schema.HEAD}.*since revision {oldest}.*install the newer version"):
        await harness.start()
    with pytest.raises(errors.Outdated):
        await harness.store.nodes.heartbeat("n1")
    found = [database.ask(f"SELECT count(*) FROM {name}") for name in ("inbox", "sessions", "outbox", "nodes")]
    assert found == [[(0,)]] * 4
    await change(database, f"UPDATE schema_range SET oldest = '{schema.HEAD}'")
    assert await harness.start()


async def test_the_range_costs_no_statement(
    harness: decider_harness.Harness, database: engines.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim of the event's id reads the range: no other statement of a decision does."""
    from store import sql, statements

    ran: list[sql.Statement] = []
    made = sql.Step.__new__
    monkeypatch.setattr(sql.Step, "__new__", lambda kind, statement, rows: ran.append(statement) or made(kind, statement, rows))
    await harness.start()
    assert [s for s in ran if "schema_range" in s.on(database.engine)[0]] == [statements.CLAIM]


@pytest.mark.parametrize("engine", engines.NAMES)
async def test_the_contract_waits_for_older_nodes(engine: str, tmp_path: Path, clock: engines.Clock) -> None:
    """The contract is refused while an older node lives, and names it; not for a node of this version, nor for one whose
    heartbeats have ended. Done twice, it changes nothing more."""
    database, opened = await at(engine, tmp_path, "head")
    store = stores.Store(opened, clock=clock, keyring=engines.keyring(), pinned=True)
    assert await schema.contract_is_due(opened)
    await store.nodes.heartbeat("today")
    assert not store.nodes.older_alive
    await change(database, row("nodes", node="former", url="", seen_ms=clock()))
    await store.nodes.heartbeat("today")
    assert store.nodes.older_alive
    with pytest.raises(errors.Refused, match=r"older version work: former\. Replace"):
        await schema.contract(opened, clock())
    assert await schema.contract_is_due(opened)
    clock.advance(side_by_side.ALIVE_MS)
    await store.nodes.heartbeat("today")
    assert not store.nodes.older_alive
    for _ in range(2):
        await schema.contract(opened, clock())
        assert database.ask("SELECT oldest FROM schema_range") == [(side_by_side.OLDEST,)]
    await store.nodes.heartbeat("today")
    await store.stop()


@pytest.mark.parametrize("engine", engines.NAMES)
async def test_which_databases_are_contracted_at_once(engine: str, tmp_path: Path) -> None:
    """Nobody else can use an empty database, or a file: the migration contracts it. A server's older one waits."""
    for name, revision in (("empty", ""), ("older", RELEASE)):
        (folder := tmp_path / name).mkdir()
        if revision:
            _, opened = await at(engine, folder, revision)
        else:
            url = postgres.shared().create() if engine == "postgresql" else f"sqlite+aiosqlite:///{folder / 'recorder.db'}"
            opened = connections.open_database(url)
        assert await schema.migrate(opened) == schema.HEAD
        assert await schema.contract_is_due(opened) is (revision != "" and engine == "postgresql")
        await opened.close()


async def test_postgresql_keeps_counts_beside_release_010(tmp_path: Path) -> None:
    """On PostgreSQL, while release 0.1.0 writes, the counts of sessions, the session of segments, the key of sessions and the
    publication of deadlines stay what this version would have written."""
    database, opened = await at("postgresql", tmp_path, RELEASE)
    async with former(database) as old:
        await old.execute(session())
        await old.execute(recording("before", "Uploading", True))
        await schema.migrate(opened)
        assert await old.fetchval("SELECT (live, uploading, present)::text FROM sessions") == "(1,1,1)"
        for speaker, state, present in (("al", "Joining", None), ("bo", "Recording", True), ("ci", "Done", None)):
            await old.execute(recording(speaker, state, present))
        await _counts(old, 3, 1, 2)
        await old.execute("UPDATE recordings SET present = true WHERE speaker = 'al'")
        await _counts(old, 3, 1, 3)
        await old.execute(
            "UPDATE recordings SET state = 'Uploading', present = false, version = version + 1 WHERE speaker = 'bo'"
        )
        await _counts(old, 3, 2, 2)
        await old.execute("UPDATE recordings SET state = 'Failed' WHERE speaker IN ('bo', 'before')")
        await _counts(old, 1, 0, 1)
        await old.execute("UPDATE recordings SET state = 'Transcoding' WHERE speaker = 'bo'")
        await _counts(old, 2, 0, 1)
        # This version counts by itself.
        await change(database, "UPDATE recordings SET state = 'Done'")
        await _counts(old, 2, 0, 1)
        times = {"node": "n1", "registered_ms": 1, "media_ms": 0, "size_bytes": 0, "reason": ""}
        await old.execute(row("segments", recording_id=f"{TASK}/al/1", epoch=1, **times))
        assert await old.fetchval("SELECT task_id FROM segments") == TASK
        noted = {"at_ms": 1, "who": "app", "key_id": "k1", "subject": TASK, "outcome": "ok"}
        await old.execute(row("audit", action="stop", **noted))
        assert await old.fetchval("SELECT key_id FROM sessions") == ""
        await old.execute(row("audit", action="start", **noted))
        assert await old.fetchval("SELECT key_id FROM sessions") == "k1"
        await change(database, row("deadlines", owner=TASK, kind="idle", at_ms=1, serial="s1", again_ms=9))
        rearm = "ON CONFLICT (owner, kind) DO UPDATE SET at_ms = excluded.at_ms, serial = excluded.serial"
        await old.execute(f"{row('deadlines', owner=TASK, kind='idle', at_ms=5, serial='s2')} {rearm}")
        assert await old.fetchval("SELECT again_ms FROM deadlines") is None
    await opened.close()


async def _counts(connection: asyncpg.Connection, live: int, uploading: int, present: int) -> None:
    found = await connection.fetchrow("SELECT live, uploading, present FROM sessions")
    assert tuple(found) == (live, uploading, present)


async def test_postgresql_refuses_release_010_after_the_contract(tmp_path: Path, clock: engines.Clock) -> None:
    """A node of release 0.1.0 that PostgreSQL finds after the contract, such as one that stood still, decides nothing, and cannot
    count a failed attempt either, so it parks no message; this version goes on."""
    database, opened = await at("postgresql", tmp_path, RELEASE)
    await schema.migrate(opened)
    await schema.contract(opened, clock())
    async with former(database) as old:
        for values in (
            {"table": "inbox", "event_id": "e1", "at_ms": 1, "answer": ""},
            {"table": "attempts", "message": "m", "tries": 1, "at_ms": 1},
        ):
            with pytest.raises(asyncpg.RaiseError, match="older than its database: install the newer version"):
                await old.execute(row(**values))
    store = stores.Store(opened, clock=clock, keyring=engines.keyring(), pinned=True)
    assert await decider_harness.connect(store, clock).start()
    assert await store.attempts.add("m") == 1
    await store.stop()


async def test_postgresql_migrates_beside_a_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that waits for rows of a living node gives up its locks in between, so that others on PostgreSQL go on, and
    succeeds after that transaction."""
    monkeypatch.setattr(schema, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(schema, "PAUSE_S", 0.01)
    monkeypatch.setattr(schema, "TRIES", 1_000)
    database, opened = await at("postgresql", tmp_path, RELEASE)
    async with former(database) as old, former(database) as other:
        async with old.transaction():
            await old.execute(session())
            migration = asyncio.create_task(schema.migrate(opened))
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            await waiting.until(lambda: other.fetchval(waits), what="the migration to wait")
            await other.execute(session("01" + "U" * 24))
            assert not migration.done()
        assert await migration == schema.HEAD
    await opened.close()
