"""Connections to one database: opening, the one-writer rule, and the contexts in which the package reads and writes.

SQLite: WAL, synchronous=FULL, every write begins with BEGIN IMMEDIATE, and this process has one writer at a time, so that no
write waits for a lock that another one holds. The file must not be on a network file system.
PostgreSQL: READ COMMITTED, locks in the order room, segment, session, recording, job, deadline. A deadlock or a lost connection
is an error that callers retry, never a wrong result.

An error of the database itself becomes DatabaseUnavailable (store/outages.py). A server that refuses writes loses all its
connections: after a failover the same address may lead to another server.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite
from sqlalchemy import URL, Connection, event, exc, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from events import requests
from machine import errors
from store import file_connections, group_commit, outages, server_access, server_connections, side_by_side, sql

Value = TypeVar("Value")
BUSY_TIMEOUT_MS = 10_000
POOL_SIZE = 8
# Connections to SQLite's file that stay open.
FILE_POOL_SIZE = 5
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0
PING_TIMEOUT_S = 2.0
# A node whose SQLite file answers no write for this long is not ready. A commit on a slow disk is faster.
NOT_READY_AFTER_S = 5.0
# Pings that come sooner after a failed probe get its answer again.
PROBE_EVERY_S = 0.4
PRAGMAS = (
    # Wiped secrets leave the file, not only the table; SQLite builds differ in their default.
    "secure_delete=ON",
    "journal_mode=WAL",
    "synchronous=FULL",
    f"busy_timeout={BUSY_TIMEOUT_MS}",
    "foreign_keys=ON",
)
# Advisory locks: nodes migrate one after the other; downtime is added once; nodes are cordoned one after the other; results are
# numbered in one order; one node deletes old rows.
MIGRATION = 0x7265636F
RESUME = 0x61776179
CORDON = 0x6E6F6465
PLACES = 0x706C6163
RETENTION = 0x72657465


class Connections:
    """The connections of one process to one database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        # PostgreSQL orders its writers by row locks.
        self._file: file_connections.FileConnections | None = None
        self._group: group_commit.GroupCommit | None = None
        if engine.dialect.name == "sqlite":
            self._file = file_connections.FileConnections(engine)
            self._group = group_commit.GroupCommit(str(engine.url.database), PRAGMAS, self._file.writer)
        self._servers = server_connections.ServerConnections(engine)
        # The last outage, until a ping has written a row again; and when that may be tried (the loop's time).
        self._outage: errors.DatabaseUnavailable | None = None
        self._probe_s = 0.0
        # Connections of the engine that were made before (monotonic) are replaced.
        self._replace_before_s = 0.0
        if self.on_server:
            _replacing(engine, lambda: self._replace_before_s)

    @property
    def on_server(self) -> bool:
        """Whether each statement is a round trip to a server."""
        return self._group is None

    async def run(self, steps: Callable[[], sql.Steps[Value]]) -> Value:
        """Run steps in one transaction: commits at their end, rolls back on any error. On SQLite, transactions that wait together
        share one commit. Raises Conflict and DatabaseUnavailable. `steps` may be called again."""
        try:
            if self._group is not None:
                value: Value = await self._group.run(steps)
                return value
            return await self._servers.run(steps)
        except Exception as error:
            outage = await self._noted(error)
            if outage is None or outage is error:
                raise
            raise outage from error

    async def fetch(self, statement: sql.Statement, parameters: sql.Row) -> Sequence[sql.Row]:
        """Run one statement in a transaction of its own."""
        if self._group is None:
            async with self._noting():
                rows: Sequence[sql.Row] = await self._servers.fetch(statement, parameters)
            return rows

        def steps() -> sql.Steps[Sequence[sql.Row]]:
            return (yield sql.Step(statement, [parameters]))

        return await self.run(steps)

    async def together(self, statement: sql.Statement, parameters: sql.Row) -> Sequence[sql.Row]:
        """Like `fetch`, in a transaction that is shared with those that wait at the same moment, on both engines. The statement
        must not wait for a lock. It returns at most one row, of columns that its parameters name."""
        if self._group is None:
            async with self._noting():
                rows: Sequence[sql.Row] = await self._servers.together(statement, parameters)
            return rows
        return await self.fetch(statement, parameters)

    @asynccontextmanager
    async def read(self, *, limited: bool = True) -> AsyncIterator[AsyncConnection]:
        """A connection that only reads; what it saw is released at the end of the block. On SQLite a `limited` one ends after
        group_commit.SILENT_S. Raises DatabaseUnavailable."""
        opened = self._file.read(limited=limited) if self._file is not None else self.engine.connect()
        async with self._noting(), opened as connection:
            yield connection

    @asynccontextmanager
    async def write(self, *, limited: bool = True) -> AsyncIterator[AsyncConnection]:
        """One transaction: commits at the end of the block, rolls back on any error. `limited` as in `read`. Raises Conflict for
        a lost deadlock, and DatabaseUnavailable."""
        begun = self._file.write(limited=limited) if self._file is not None else self.engine.begin()
        try:
            async with self._noting(), begun as connection:
                yield connection
        except exc.DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) in sql.CONFLICTS:
                raise errors.Conflict("PostgreSQL rolled this transaction back in favor of a concurrent one") from error
            raise

    async def check_server(self) -> None:
        """Raise Unavailable for a PostgreSQL that cannot serve the recorder."""
        if self.on_server:
            async with self.read() as connection:
                await server_access.check(connection)

    async def ping(self) -> None:
        """Check that the database does what the work needs: it answers, and it accepts writes. After an outage one row is
        written, because a full disk refuses only what needs space. Raises DatabaseUnavailable."""
        last, now_s = self._outage, asyncio.get_running_loop().time()
        if last is not None and now_s < self._probe_s:
            raise last.with_traceback(None)  # a traceback grows with each raise
        try:
            async with asyncio.timeout(PING_TIMEOUT_S):
                await self._check_writable()
                if last is not None:
                    await self._write_probe()
        except TimeoutError as error:
            outage = last or errors.DatabaseUnavailable(f"The database does not answer within {PING_TIMEOUT_S:g} s.")
            self._outage, self._probe_s = outage, now_s + PING_TIMEOUT_S + PROBE_EVERY_S
            raise outage.with_traceback(None) from error
        except errors.DatabaseUnavailable as outage:
            self._outage, self._probe_s = outage, now_s + PROBE_EVERY_S
            raise
        self._outage = None

    async def _check_writable(self) -> None:
        group = self._group
        if group is not None and (group.hangs or group.silent_s > NOT_READY_AFTER_S):
            raise outages.Hanging(group.silent_s)
        async with self.read() as connection:
            if self._group is not None:
                await connection.execute(text("SELECT 1"))
            elif (await connection.execute(text("SELECT current_setting('transaction_read_only')"))).scalar() == "on":
                raise outages.ReadOnly

    async def _write_probe(self) -> None:
        # Two transactions: SQLite writes no page that is allocated and freed in one.
        id_ = f"probe.{secrets.token_hex(8)}"
        await self.run(lambda: outages.insert_probe(id_))
        await self.run(lambda: outages.delete_probe(id_))

    @asynccontextmanager
    async def _noting(self) -> AsyncIterator[None]:
        try:
            yield
        except Exception as error:
            outage = await self._noted(error)
            if outage is None or outage is error:
                raise
            raise outage from error

    async def _noted(self, error: Exception) -> errors.DatabaseUnavailable | None:
        """Note the outage behind an error, if there is one. The connections to a read-only server are replaced."""
        outage = outages.outage(error)
        if outage is not None:
            self._outage = outage
            if isinstance(outage, outages.ReadOnly):
                self._replace_before_s = time.monotonic()
                await self._servers.drop_free()
        return outage

    @property
    def hangs(self) -> bool:
        """Whether a call on SQLite's file does not return, also after `close`."""
        return self._file is not None and self._group is not None and (self._file.hangs or self._group.hangs)

    async def close(self) -> None:
        """Close them; safe to call twice."""
        if self._group is not None:
            await self._group.close()
        await self._servers.close()
        await (self.engine.dispose() if self._file is None else self._file.close())


def file_of(url: str) -> Path | None:
    """The file of a SQLite database, whatever characters its path has; None for a server."""
    scheme, slashes, path = url.partition(":///")
    return Path(path) if slashes and scheme.startswith("sqlite") else None


def open_database(url: str, pool_size: int = POOL_SIZE, connect_timeout_s: float = CONNECT_TIMEOUT_S) -> Connections:
    """Connections for `url`: `sqlite+aiosqlite:///path`, or at most `pool_size` for `postgresql+asyncpg://user@host/name`, with
    several hosts and the parameters of libpq that asyncpg knows. Connects on first use."""
    file = file_of(url)
    # Parameters may be secrets: a database error must not repeat them.
    if file is not None:
        more = file_connections.MOST - FILE_POOL_SIZE
        place = URL.create("sqlite+aiosqlite", database=str(file))
        engine = create_async_engine(
            place,
            pool_size=FILE_POOL_SIZE, max_overflow=more, hide_parameters=True, connect_args={"async_creator_fn": _open_file},
        )  # fmt: skip
        _configure_sqlite(engine)
        return Connections(engine)
    dialect, _, place_on_server = url.partition("://")
    arguments = {
        "async_creator_fn": server_access.connect,
        # The driver reads the address: SQLAlchemy does not know libpq's parameters.
        "dsn": f"postgresql://{place_on_server}",
        "timeout": connect_timeout_s,
        "command_timeout": COMMAND_TIMEOUT_S,
        "server_settings": {"application_name": side_by_side.APPLICATION_NAME},
    }
    return Connections(
        create_async_engine(
            f"{dialect}://", pool_size=pool_size, max_overflow=0, pool_pre_ping=True, hide_parameters=True, connect_args=arguments
        )
    )


def _replacing(engine: AsyncEngine, before_s: Callable[[], float]) -> None:
    """Have the pool replace connections that were made before a time (monotonic)."""

    @event.listens_for(engine.sync_engine, "connect")
    def connected(_: Any, record: Any) -> None:
        record.info["made_s"] = time.monotonic()

    @event.listens_for(engine.sync_engine, "checkout")
    def checked_out(_: Any, record: Any, __: Any) -> None:
        if record.info["made_s"] <= before_s():
            raise exc.DisconnectionError("the server refused writes; a new connection may lead to another one")


async def _open_file(*arguments: Any, **named: Any) -> aiosqlite.Connection:
    connection = aiosqlite.connect(*arguments, **named)
    connection._thread.daemon = True  # as SQLAlchemy's own connections
    try:
        return await connection
    except sqlite3.Error:
        # Its thread still answers once: to a closed event loop, if the program ends with this error.
        await asyncio.to_thread(connection._thread.join, BUSY_TIMEOUT_MS / 1000)
        raise


def _configure_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(dbapi_connection: Any, _: object) -> None:
        # The driver begins transactions late and never IMMEDIATE, so `begun` sends BEGIN instead.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in PRAGMAS:
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Connection) -> None:
        write = connection.get_execution_options().get(file_connections.WRITE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


async def hold_lock(connection: AsyncConnection, lock: int) -> None:
    """Take an advisory lock of PostgreSQL (a signed 64-bit number) until the transaction ends, before the rows that it guards
    are read. SQLite needs none: it has one writer at a time."""
    if connection.dialect.name == "postgresql":
        await connection.execute(select(func.pg_advisory_xact_lock(lock)))


async def try_lock(connection: AsyncConnection, lock: int) -> bool:
    """Like `hold_lock`, but False at once while another transaction holds it."""
    if connection.dialect.name != "postgresql":
        return True
    return bool((await connection.execute(select(func.pg_try_advisory_xact_lock(lock)))).scalar())


def room_lock(room: requests.Room) -> int:
    """The lock of a room, which guards its presence and its Open sessions. Rooms with one number only wait for each other."""
    name = f"{room.sdk_app_id}/{room.kind}/{room.name}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big", signed=True)
