"""The schema's revisions: which one a database has, which ones this program knows, and the way to the newest.

Imports nothing of ours. Rule: alembic, which takes longer to load than a start may cost, is loaded only where there is something
to migrate.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every revision in `migrations/versions`, oldest first."""
HEAD = REVISIONS[-1]
_TABLE = "alembic_version"


def current(connection: Connection) -> str:
    """The revision that the database is at; "" for one without tables."""
    if not inspect(connection).has_table(_TABLE):
        return ""
    return str(connection.execute(text(f"SELECT version_num FROM {_TABLE}")).scalar() or "")  # noqa: S608 - a name of ours


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations on an open connection."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
