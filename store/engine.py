"""Opening a database and bringing its schema up to date, for both engines. Imports `machine`.

Rule for SQLite: WAL, synchronous=FULL, every write begins with BEGIN IMMEDIATE, and one writer at a time in this process, so that
nobody waits for a lock that a neighbour holds. The file must not lie on a network file system.
Rule for PostgreSQL: READ COMMITTED, locks in the order room, segment, session, recording, job, deadline; a deadlock or a lost
connection is an error that is tried again, never a wrong answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from machine import errors
from store import locks, schema

BUSY_TIMEOUT_MS = 10_000
POOL_SIZE = 8
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0
# A process that stands still in a transaction holds its rows' locks until the server ends it. Ours never idle in one.
IDLE_IN_TRANSACTION_MS = 5_000
WRITE = "recorder_write"


def open_engine(url: str) -> AsyncEngine:
    """An engine for `url`: `sqlite+aiosqlite:///path` or `postgresql+asyncpg://user@host/name`. Connects to nothing yet."""
    # Parameters may be secrets: an error of the database must not repeat them.
    if not url.startswith("postgresql"):
        engine = create_async_engine(url, pool_size=5, hide_parameters=True)
        _tame_sqlite(engine)
        return engine
    idle = {"idle_in_transaction_session_timeout": str(IDLE_IN_TRANSACTION_MS)}
    limits = {"timeout": CONNECT_TIMEOUT_S, "command_timeout": COMMAND_TIMEOUT_S, "server_settings": idle}
    return create_async_engine(
        url, pool_size=POOL_SIZE, max_overflow=0, pool_pre_ping=True, hide_parameters=True, connect_args=limits
    )


async def migrate(engine: AsyncEngine) -> None:
    """Bring the schema to the newest revision; creates the tables of an empty database. Raises Unavailable for a schema that is
    newer than this program."""
    async with engine.execution_options(**{WRITE: True}).begin() as connection:
        await locks.hold(connection, locks.MIGRATION)
        if await connection.run_sync(_revision) != schema.HEAD:
            await connection.run_sync(schema.upgrade)


async def check_schema(engine: AsyncEngine) -> None:
    """Raise Unavailable, with what to do, unless the schema is exactly the one this program was written for."""
    async with engine.connect() as connection:
        found = await connection.run_sync(_revision)
    if found != schema.HEAD:
        at = f"at revision {found}" if found else "empty"
        raise errors.Unavailable(
            f"The database is {at}, and this service needs {schema.HEAD}: run `recorder migrate`, then start again."
        )


def _revision(connection: Connection) -> str:
    found = schema.current(connection)
    if found and found not in schema.REVISIONS:
        raise errors.Unavailable(
            f"The database is at revision {found}, which this service (up to {schema.HEAD}) does not know: it is older than its "
            "data. Start the newer service, or restore a copy of before the migration."
        )
    return found


async def ping(engine: AsyncEngine, timeout_s: float = 2.0) -> None:
    """Ask the database for anything at all. Raises Unavailable."""
    try:
        async with asyncio.timeout(timeout_s), engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
    except Exception as error:
        raise errors.Unavailable(f"The database does not answer: {type(error).__name__}.") from error


def _tame_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(dbapi_connection: Any, _: object) -> None:
        # The driver's own transaction handling begins late and never IMMEDIATE: we say BEGIN ourselves.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        # secure_delete: wiped secrets leave the file, not only the table; SQLite's builds differ in their default.
        for pragma in (
            "secure_delete=ON",
            "journal_mode=WAL",
            "synchronous=FULL",
            f"busy_timeout={BUSY_TIMEOUT_MS}",
            "foreign_keys=ON",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Connection) -> None:
        write = connection.get_execution_options().get(WRITE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
