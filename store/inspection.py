"""Looking at a database from outside, as `recorder doctor` does: can it be written, and does its schema fit this program?

Imports `machine`. Rule: nothing is made and nothing is changed; a file that is not there is not made either.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, exc
from sqlalchemy.engine import make_url

from machine import errors
from store import engine as engines


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The schema's revision, "" for a database without tables or none at all, and the revision that this program brings."""

    current: str
    newest: str
    known: bool = True


def look(url: str) -> Schema:
    """The schema of the database at `url`. Takes the write lock for a moment. Raises errors.Unavailable."""
    scripts = ScriptDirectory.from_config(_config())
    newest = scripts.get_current_head() or ""
    name = make_url(url).database or ""
    if not Path(name).exists():
        return Schema(current="", newest=newest)
    try:
        current = asyncio.run(_revision(url))
    except (exc.SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error)
        raise errors.Unavailable(f"The database {name} cannot be written: {reason}.") from error
    known = not current or current in {script.revision for script in scripts.walk_revisions()}
    return Schema(current=current, newest=newest, known=known)


async def _revision(url: str) -> str:
    engine = engines.open_engine(url)
    try:
        # A write transaction, rolled back: whether the lock is to be had is half of the question.
        async with engine.execution_options(**{engines.WRITE: True}).connect() as connection:
            return await connection.run_sync(_read)
    finally:
        await engine.dispose()


def _read(connection: Connection) -> str:
    return MigrationContext.configure(connection).get_current_revision() or ""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    return config
