"""Opening a database and bringing its schema up to date. Imports `machine`.

Rule for SQLite: WAL, synchronous=FULL, every write begins with BEGIN IMMEDIATE, and one writer at a time in this process, so that
nobody waits for a lock that a neighbour holds. The file must not lie on a network file system.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

BUSY_TIMEOUT_MS = 10_000
WRITE = "recorder_write"


def open_engine(url: str) -> AsyncEngine:
    """An engine for `url`: `sqlite+aiosqlite:///path`."""
    # Parameters may be secrets: an error of the database must not repeat them.
    engine = create_async_engine(url, pool_size=5, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        _tame_sqlite(engine)
    return engine


async def migrate(engine: AsyncEngine) -> None:
    """Bring the schema to the newest revision; creates the tables of an empty database."""
    async with engine.execution_options(**{WRITE: True}).begin() as connection:
        await connection.run_sync(upgrade)


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations on an open connection."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


async def ping(engine: AsyncEngine, timeout_s: float = 2.0) -> None:
    """Ask the database for anything at all. Raises TimeoutError or the driver's error."""
    async with asyncio.timeout(timeout_s), engine.connect() as connection:
        await connection.execute(text("SELECT 1"))


def _tame_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(dbapi_connection: Any, _: object) -> None:
        # The driver's own transaction handling begins late and never IMMEDIATE: we say BEGIN ourselves.
        dbapi_connection.isolation_level = None
        cursor = dbapi_connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", f"busy_timeout={BUSY_TIMEOUT_MS}", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Connection) -> None:
        write = connection.get_execution_options().get(WRITE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
