"""Schema revisions: the one of a database, those this program knows, and the migration to the newest.

Rule: alembic takes longer to load than a start may cost, so it is loaded only for a migration.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from machine import errors
from store import connections

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009", "0010", "0011")
"""Every revision in `migrations/versions`, oldest first."""
HEAD = REVISIONS[-1]
_TABLE = "alembic_version"


async def migrate(database: connections.Connections) -> None:
    """Migrate to the newest revision; creates the tables of an empty database. Raises Unavailable for a schema that is newer
    than this program."""
    async with database.write() as connection:
        await connections.hold_lock(connection, connections.MIGRATION)
        if await connection.run_sync(_known) != HEAD:
            await connection.run_sync(upgrade)


async def check(database: connections.Connections) -> None:
    """Raise Unavailable, with the remedy, unless the schema is exactly the one this program needs."""
    async with database.read() as connection:
        found = await connection.run_sync(_known)
    if found != HEAD:
        at = f"at revision {found}" if found else "empty"
        raise errors.Unavailable(
            f"The database is {at}, and this service needs {HEAD}: run `recorder migrate`, then start again."
        )


def current(connection: Connection) -> str:
    """The revision of the database; "" for one without tables."""
    if not inspect(connection).has_table(_TABLE):
        return ""
    return str(connection.execute(text(f"SELECT version_num FROM {_TABLE}")).scalar() or "")  # noqa: S608 - a constant


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations on an open connection."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _known(connection: Connection) -> str:
    """The revision of the database. Raises Unavailable for one that this program does not know."""
    found = current(connection)
    if found and found not in REVISIONS:
        raise errors.Unavailable(
            f"The database is at revision {found}, which this service (up to {HEAD}) does not know: the service is older than"
            " its data. Start the newer service, or restore a backup from before the migration."
        )
    return found
