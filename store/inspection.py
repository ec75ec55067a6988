"""Inspection of a database from outside, as `recorder doctor` does it: can it be written, and does its schema fit this program?

Rule: nothing is created and nothing is changed, not even a missing file.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from sqlalchemy import exc, func, select, text

from machine import attention as attentions
from machine import database_clock, errors
from store import (
    attention,
    connections,
    database_time,
    encrypted_rows,
    nodes,
    schema,
    server_access,
    side_by_side,
    tables,
)

# A person waits for the answer, and doctor for 2 s.
CONNECT_S = 1.5
# This connection ends, so it counts as free.
_FREE = text(
    "SELECT current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int + 1"
    " - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
)

_CALLBACKS = tables.callbacks.c
# As many failures as open the circuit of a receiver; a literal condition, so that the partial index fits.
_FAILING = (
    select(_CALLBACKS.url, func.count())
    .where(text(tables.UNDELIVERED), _CALLBACKS.state == "pending", _CALLBACKS.tries >= 5)
    .group_by(_CALLBACKS.url)
    .order_by(func.count().desc(), _CALLBACKS.url)
    .limit(100)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaState:
    """The revision of a database ("": no tables, or no database), the revision of this program, and whether the former allows
    this program. `contract_is_due`: a migration waits for its last step. `free` is the number of connections that the server
    still allows; None for SQLite. `clock_warnings` say that this machine's clock is not the database's."""

    current: str
    newest: str
    known: bool = True
    contract_is_due: bool = False
    free: int | None = None
    clock_warnings: tuple[str, ...] = ()


def schema_state(url: str) -> SchemaState:
    """The schema of the database at `url`. Takes SQLite's write lock for a moment. Raises errors.Unavailable. Blocking."""
    if _missing(url):
        return SchemaState(current="", newest=schema.HEAD)
    try:
        return asyncio.run(_state(url))
    except (exc.SQLAlchemyError, OSError, TimeoutError) as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__)
        raise errors.Unavailable(f"The database cannot be used: {reason}.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """What runs on a database: its nodes, the database's time (Unix ms), the finding about dead letters of the outbox, and the
    receivers whose newest posts failed, each with the number of its waiting results."""

    nodes: tuple[attentions.NodeView, ...]
    now_ms: int
    parked: tuple[attentions.Attention, ...]
    receivers: tuple[tuple[str, int], ...]


def overview(url: str) -> Overview | None:
    """What runs on the database at `url`; None without a database or tables. Raises errors.Unavailable. Blocking."""
    if _missing(url):
        return None
    try:
        return asyncio.run(_overview(url))
    except (exc.SQLAlchemyError, OSError, TimeoutError) as error:
        raise errors.Unavailable("The database cannot be read.") from error


async def _overview(url: str) -> Overview | None:
    database = connections.open_database(url, connect_timeout_s=CONNECT_S)
    try:
        async with database.read() as connection:
            if not await connection.run_sync(schema.current):
                return None
            failing = (await connection.execute(_FAILING)).all()
        asked = attention.AttentionQueries(database)
        return Overview(
            nodes=tuple(await asked.nodes()),
            now_ms=await nodes.Nodes(database, time=database_time.DatabaseTime(None)).now_ms(),
            parked=tuple(await asked.parked()),
            receivers=tuple((origin, count) for origin, count in failing),
        )
    finally:
        await database.close()


def key_ids(url: str) -> set[str]:
    """The ids of the keys that encrypt secrets of the database at `url`. Empty without a database, or if it cannot be read:
    `schema_state` reports that. Blocking."""
    if _missing(url):
        return set()
    try:
        return asyncio.run(_key_ids(url)) - {encrypted_rows.PLAIN}
    except (errors.Unavailable, exc.SQLAlchemyError, OSError, TimeoutError):
        return set()


def _missing(url: str) -> bool:
    file = connections.file_of(url)
    return file is not None and not file.exists()


async def _key_ids(url: str) -> set[str]:
    database = connections.open_database(url, connect_timeout_s=CONNECT_S)
    try:
        async with database.read() as connection:
            return set((await connection.execute(select(tables.secrets.c.key_id).distinct())).scalars())
    finally:
        await database.close()


async def _state(url: str) -> SchemaState:
    database, clock = connections.open_database(url, connect_timeout_s=CONNECT_S), database_clock.DatabaseClock()
    try:
        await database.check_server()
        # A write transaction, rolled back: it shows whether the database can be written.
        async with database.write() as connection:
            current = await connection.run_sync(schema.current)
            known = not current or await connection.run_sync(schema.allowed, current)
            due = known and current >= side_by_side.OLDEST and not await connection.run_sync(side_by_side.contracted)
            postgresql = connection.dialect.name == "postgresql"
            if postgresql and current < schema.HEAD:
                await server_access.check_migratable(connection)
            free = int((await connection.execute(_FREE)).scalar_one()) if postgresql else None
            await connection.rollback()
        # Twice: the first answer may wait for a connection.
        for _ in range(2):
            await clock.measure(nodes.Nodes(database, time=database_time.DatabaseTime(None)).now_ms)
        found = SchemaState(current=current, newest=schema.HEAD, known=known, contract_is_due=due, free=free)
        return replace(found, clock_warnings=tuple(clock.warnings()))
    finally:
        await database.close()
