"""History in bulk: copies of the rows of a finished session, and earlier rows of a live one, made by the database.

Rule: one statement for each table, however many rows, so that a database as after years is there within seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import Table, text
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import job_key, model
from store import store as stores
from store import tables

_SERIES = "WITH RECURSIVE n(i) AS (SELECT CAST(:first AS BIGINT) UNION ALL SELECT i + 1 FROM n WHERE i < :last)"
# The TaskId of copy i: 26 characters, older than any id that the tests or the service make.
_TASK_ID = "('0000000000000' || substr(CAST(10000000000000 + n.i AS VARCHAR), 2))"
_OWNED: dict[Table, tuple[str, ...]] = {
    tables.sessions: ("task_id",),
    tables.recordings: ("task_id", "id"),
    tables.jobs: ("owner",),
    tables.segments: ("task_id", "recording_id"),
    tables.secrets: ("task_id",),
    tables.callbacks: ("task_id",),
    tables.results: ("task_id",),
    tables.outbox: ("task_id",),
    tables.journal: ("task_id", "owner"),
    tables.audit: ("subject",),
}
"""Tables with rows of sessions, and their columns that begin with the TaskId."""
# Bodies cost disk space and are read by nobody.
_EMPTIED = {"body": "'{}'"}


async def copy_session(store: stores.Store, task_id: str, last: int, first: int = 1) -> None:
    """Copy a session that has ended, as numbers `first` to `last`: one row of it in each table. Sent messages only."""
    async with store.connections.write(limited=False) as connection:
        await connection.execute(text(f"UPDATE outbox SET sent_ms = created_ms WHERE task_id = '{task_id}'"))
        for table, owned in _OWNED.items():
            columns = {name: f"replace(one.{name}, '{task_id}', {_TASK_ID})" for name in owned}
            if "body" in table.c and table is not tables.secrets:
                columns |= _EMPTIED
            await _multiply(connection, table, f"{owned[0]} LIKE '{task_id}%'", columns, first, last)
        numbered = "|| '-' || CAST(n.i AS VARCHAR)"
        await _multiply(connection, tables.inbox, "1 = 1", {"event_id": f"one.event_id {numbered}"}, first, last)
        attempt = {"message": f"'m' {numbered}", "tries": "1", "at_ms": "one.at_ms"}
        await _multiply(connection, tables.attempts, "1 = 1", attempt, first, last, source="inbox")


async def copy_open_session(store: stores.Store, task_id: str, last: int, first: int = 1) -> None:
    """Copy a session that has just begun, for other users of the same room, with its deadlines."""
    async with store.connections.write(limited=False) as connection:
        which = f"task_id = '{task_id}'"
        numbered = {"task_id": _TASK_ID, "user_id": "one.user_id || '-' || CAST(n.i AS VARCHAR)"}
        await _multiply(connection, tables.sessions, which, numbered, first, last)
        for kind in ("idle", "join", "max-duration"):
            armed = {"owner": _TASK_ID, "serial": "one.serial || '-' || CAST(n.i AS VARCHAR)"}
            await _multiply(connection, tables.deadlines, f"owner = '{task_id}' AND kind = '{kind}'", armed, first, last)


async def add_users(
    store: stores.Store, at_ms: int, last: int, first: int = 1, *, room: str = "88", publishing: bool = True
) -> None:
    """Users who publish audio in a room, or who left it."""
    there = "TRUE" if publishing else "FALSE"
    row = {name: f"'{value}'" for name, value in (("room_kind", "integer"), ("room", room))}
    row |= {"sdk_app_id": "1400000001", "user_id": "'user' || substr(CAST(10000000 + n.i AS VARCHAR), 2)", "audio": there}
    row |= {"video": "FALSE"} | dict.fromkeys(("audio_ms", "video_ms", "updated_ms"), str(at_ms)) | {"left_ms": "0"}
    async with store.connections.write(limited=False) as connection:
        await _insert(connection, tables.presence, row, "n", first, last)


async def add_pulls(store: stores.Store, key: job_key.RecordingKey, count: int, *, media_ms: int) -> None:
    """Earlier pulls of a live recording that capture has just begun, a minute apart, with their jobs and journal lines."""
    async with store.connections.write(limited=False) as connection:
        owner = {"owner": key.text}
        for table, column in ((tables.recordings, "id"), (tables.jobs, "owner"), (tables.segments, "recording_id")):
            # The present epoch is the newest.
            changed = f"UPDATE {table.name} SET epoch = epoch + :count WHERE {column} = :owner"
            await connection.execute(text(changed), owner | {"count": count})
        pull = {"epoch": "n.i", "media_ms": str(media_ms), "size_bytes": str(media_ms), "reason": "'eof'"}
        pull["registered_ms"] = f"one.registered_ms - {model.MINUTE} * (1 + {count} - n.i)"
        here = f"recording_id = '{key.text}'"
        await _multiply(connection, tables.segments, here, pull, 1, count)
        await _multiply(connection, tables.jobs, f"owner = '{key.text}'", {"epoch": "n.i", "state": "'ended'"}, 1, count)
        await _multiply(connection, tables.journal, f"owner = '{key.text}'", {}, 1, count)


async def add_single_pulls(store: stores.Store, count: int) -> None:
    """One pull of each of many other recordings, which has ended."""
    job = {"owner": f"{_TASK_ID} || '/single/1'", "epoch": "1", "kind": "'capture'", "state": "'ended'", "node": "'n1'"}
    segment = {"recording_id": job["owner"], "task_id": _TASK_ID, "epoch": "1", "node": "'n1'", "reason": "'eof'"}
    segment |= dict.fromkeys(("registered_ms", "media_ms", "size_bytes"), "1")
    async with store.connections.write(limited=False) as connection:
        await _insert(connection, tables.jobs, job | {"lease_until_ms": "0"}, "n", 1, count)
        await _insert(connection, tables.segments, segment, "n", 1, count)


async def analyze(store: stores.Store) -> None:
    """Let the planner know the sizes, as autovacuum does."""
    async with store.connections.write(limited=False) as connection:
        await connection.execute(text("ANALYZE"))


async def _multiply(
    connection: AsyncConnection,
    table: Table,
    which: str,
    columns: Mapping[str, str],
    first: int,
    last: int,
    *,
    source: str = "",
) -> None:
    """Copy one row of a table, with other values in `columns`."""
    kept = {c.name: f"one.{c.name}" for c in table.c if c.name not in ("seq", "place")}
    one = f"(SELECT * FROM {source or table.name} WHERE {which} LIMIT 1) AS one"
    await _insert(connection, table, kept | columns, f"{one}, n", first, last)


async def _insert(
    connection: AsyncConnection, table: Table, columns: Mapping[str, str], source: str, first: int, last: int
) -> None:
    names: Sequence[str] = list(columns)
    # The series comes first for SQLite and PostgreSQL alike; both allow it before INSERT.
    made = f"{_SERIES} INSERT INTO {table.name} ({', '.join(names)}) SELECT {', '.join(columns.values())} FROM {source}"
    await connection.execute(text(made), {"first": first, "last": last})
