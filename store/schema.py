"""Schema revisions: the one of a database, those this program knows, the migration to the newest, and the contract after it.

Rule: alembic takes longer to load than a start may cost, so it is loaded only for a migration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import structlog
from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import errors, supervised_task
from store import connections, database_time, side_by_side, sql

log = structlog.get_logger()

REVISIONS = tuple(f"{number:04}" for number in range(1, 24 + 1))
"""Every revision in `migrations/versions`, oldest first."""
HEAD = REVISIONS[-1]
_TABLE = "alembic_version"
LOCK_TIMEOUT_MS = 2_000
TRIES = 30
PAUSE_S = 1.0

Value = TypeVar("Value")


async def migrate(database: connections.Connections) -> str:
    """Migrate to the newest revision and return it; creates the tables of an empty database. Nodes of the version before go on
    working, until `contract`. An empty database and a file, which one process uses, are contracted at once.

    A newer database that allows this program stays as it is. Raises Unavailable for any other newer one."""

    async def change(connection: AsyncConnection) -> str:
        found = await connection.run_sync(_known)
        if found < HEAD:
            await connection.run_sync(upgrade)
        if (not found or not database.on_server) and not await connection.run_sync(side_by_side.contracted):
            await connection.run_sync(side_by_side.contract)
        return max(found, HEAD)

    await database.check_server()
    return await _change(database, change)


async def contract(database: connections.Connections, now_ms: int | None = None) -> None:
    """End the time of two versions: from now on, older nodes decide nothing. `now_ms` is the database's time by default. Raises
    Refused while older nodes live, Unavailable before the migration. Idempotent."""
    from store import nodes  # which knows this module's HEAD

    async def change(connection: AsyncConnection) -> None:
        if await connection.run_sync(side_by_side.contracted):
            return
        time_ms = (await connection.execute(select(database_time.NOW_MS), {"now_ms": now_ms})).scalar_one()
        if older := await nodes.older(connection, time_ms):
            raise errors.Refused(
                f"Nodes of an older version work: {', '.join(older)}. Replace them, wait {side_by_side.ALIVE_MS // 1000} s, and"
                " try again."
            )
        await connection.run_sync(side_by_side.contract)

    await check(database)
    await _change(database, change)


async def _change(database: connections.Connections, change: Callable[[AsyncConnection], Awaitable[Value]]) -> Value:
    """Change the schema in one transaction. Beside living nodes it gives up its locks rather than hold up their decisions, and
    tries again."""
    for tries in range(1, TRIES + 1):
        try:
            async with database.write(limited=False) as connection:
                await connections.hold_lock(connection, connections.MIGRATION)
                if database.on_server:
                    await connection.execute(text(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}"))
                return await change(connection)
        except (errors.Conflict, DBAPIError) as error:
            locked = isinstance(error, errors.Conflict) or getattr(error.orig, "sqlstate", None) == sql.LOCKED
            if not locked or tries == TRIES:
                raise
            log.info("schema.change_waits", tries=tries)
        await asyncio.sleep(supervised_task.jittered_s(PAUSE_S))
    raise AssertionError("the last try returns or raises")


async def check(database: connections.Connections) -> None:
    """Raise Unavailable, with the remedy, unless this program may use the schema: its own, or a newer one that allows it."""
    await database.check_server()
    async with database.read() as connection:
        found = await connection.run_sync(_known)
    if found < HEAD:
        at = f"at revision {found}" if found else "empty"
        raise errors.Unavailable(
            f"The database is {at}, and this service needs {HEAD}: run `recorder migrate`, then start again."
        )


async def contract_is_due(database: connections.Connections) -> bool:
    """Whether a migration waits for its contract."""
    async with database.read() as connection:
        return not await connection.run_sync(side_by_side.contracted)


def current(connection: Connection) -> str:
    """The revision of the database; "" for one without tables."""
    if not inspect(connection).has_table(_TABLE):
        return ""
    return str(connection.execute(text(f"SELECT version_num FROM {_TABLE}")).scalar() or "")  # noqa: S608 - a constant


def allowed(connection: Connection, found: str) -> bool:
    """Whether this program may use a database at the revision `found`: one that it knows, or a newer one that allows it."""
    if found in REVISIONS and found < side_by_side.OLDEST:
        return True
    if not inspect(connection).has_table("schema_range"):
        return False
    return str(connection.execute(text("SELECT oldest FROM schema_range")).scalar_one()) <= HEAD


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations on an open connection."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _known(connection: Connection) -> str:
    """The revision of the database. Raises Unavailable for one that this program may not use."""
    found = current(connection)
    if found and not allowed(connection, found):
        raise errors.Unavailable(
            f"The database is at revision {found}, which this service (up to {HEAD}) does not know: the service is older than"
            " its data. Start the newer service, or restore a backup from before the migration."
        )
    return found
