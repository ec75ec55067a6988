"""Access to PostgreSQL: how a connection is opened, and whether the server behind it can serve the recorder.

Rule: what the server or the driver refuses at the connection becomes DatabaseUnavailable, with the setting to correct. The texts
of the server and of the operating system may hold addresses and names, so they are not repeated.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import exc, text
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import errors
from store import outages

# A process that freezes inside a transaction keeps its row locks until the server ends it. The recorder never idles in one.
IDLE_IN_TRANSACTION_MS = 5_000
# A pooler whose other clients come and go may give a connection its server again by chance.
_LOOKS = 3
_RIGHTS = text(
    "SELECT current_setting('transaction_read_only'), current_schema(), has_schema_privilege(current_schema(), 'CREATE')"
)
_FACTS = text("SELECT current_setting('server_encoding'), pg_backend_pid()")


async def connect(*arguments: Any, **named: Any) -> Any:
    """A connection of asyncpg. Raises DatabaseUnavailable, and OSError from the network."""
    import asyncpg  # the embedded engine loads no driver of PostgreSQL

    try:
        connection = await asyncpg.connect(*arguments, **named)
    except asyncpg.TargetServerAttributeNotMatched as error:
        raise outages.ReadOnly from error
    except (asyncpg.InterfaceError, UnicodeError) as error:
        raise errors.DatabaseUnavailable(f"DATABASE_URL cannot be used: {str(error).splitlines()[0]}.") from error
    except asyncpg.PostgresError as error:
        if outages.outage(error) is not None:
            raise
        raise errors.DatabaseUnavailable(
            f"PostgreSQL refuses the connection ({type(error).__name__}, SQLSTATE {error.sqlstate}): correct the parameters of"
            " DATABASE_URL."
        ) from error
    try:
        # Poolers refuse it as a parameter of the start.
        await connection.execute(f"SET idle_in_transaction_session_timeout = {IDLE_IN_TRANSACTION_MS}")
    except BaseException:
        connection.terminate()
        raise
    return connection


async def check(connection: AsyncConnection) -> None:
    """Raise Unavailable for a database whose encoding is not UTF-8, and for a pooler that changes the server between
    transactions. Ends the connection's transaction."""
    encoding, pid = (await connection.execute(_FACTS)).one()
    if encoding != "UTF8":
        raise errors.Unavailable(
            f"The encoding of the database is {encoding}, which cannot hold every name: create one with"
            " CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0, and correct DATABASE_URL."
        )
    driver: Any = (await connection.get_raw_connection()).driver_connection
    # A pooler gives a number of its own to the client. Behind one for sessions, a connection keeps its server.
    if driver.get_server_pid() != pid and await _changes_servers(connection, pid):
        raise errors.DatabaseUnavailable(outages.POOLED)


async def check_migratable(connection: AsyncConnection) -> None:
    """Raise DatabaseUnavailable if this role cannot create tables."""
    read_only, schema, creates = (await connection.execute(_RIGHTS)).one()
    if read_only == "on":
        raise outages.ReadOnly
    if schema is None:
        raise errors.DatabaseUnavailable(outages.REFUSALS["3F000"])
    if not creates:
        raise errors.DatabaseUnavailable(outages.REFUSALS["42501"])


async def _changes_servers(connection: AsyncConnection, pid: int) -> bool:
    try:
        for _ in range(_LOOKS):
            await connection.rollback()
            async with connection.engine.connect() as other:
                if (await other.execute(_FACTS)).one()[1] == pid or (await connection.execute(_FACTS)).one()[1] != pid:
                    return True
        return False
    except exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) in outages.UNPREPARED:
            return True
        raise
