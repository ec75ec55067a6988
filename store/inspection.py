"""Looking at a database from outside, as `recorder doctor` does: can it be written, and does its schema fit this program?

Imports `machine`. Rule: nothing is made and nothing is changed; a file that is not there is not made either.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import exc, select
from sqlalchemy.engine import make_url

from machine import errors
from store import connections, encrypted_rows, schema, tables


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The schema's revision, "" for a database without tables or none at all; the revision that this program brings; and whether
    it knows the former."""

    current: str
    newest: str
    known: bool = True


def look(url: str) -> Schema:
    """The schema of the database at `url`. Takes SQLite's write lock for a moment. Raises errors.Unavailable. Blocking."""
    place = make_url(url)
    if place.get_backend_name() == "sqlite" and not Path(place.database or "").exists():
        return Schema(current="", newest=schema.HEAD)
    try:
        current = asyncio.run(_revision(url))
    except (exc.SQLAlchemyError, OSError, TimeoutError) as error:
        reason = str(getattr(error, "orig", None) or type(error).__name__)
        raise errors.Unavailable(f"The database {place.database} cannot be used: {reason}.") from error
    return Schema(current=current, newest=schema.HEAD, known=not current or current in schema.REVISIONS)


def key_ids(url: str) -> set[str]:
    """The ids of the keys that secrets of the database at `url` are sealed under; none where there is no database, or one of
    another schema or out of reach: `look` tells those. Blocking."""
    place = make_url(url)
    if place.get_backend_name() == "sqlite" and not Path(place.database or "").exists():
        return set()
    try:
        return asyncio.run(_key_ids(url)) - {encrypted_rows.PLAIN}
    except (exc.SQLAlchemyError, OSError, TimeoutError):
        return set()


async def _key_ids(url: str) -> set[str]:
    database = connections.open_database(url)
    try:
        async with database.read() as connection:
            return set((await connection.execute(select(tables.secrets.c.key_id).distinct())).scalars())
    finally:
        await database.close()


async def _revision(url: str) -> str:
    database = connections.open_database(url)
    try:
        # A write transaction, rolled back: it shows whether the database can be written.
        async with database.write() as connection:
            revision = await connection.run_sync(schema.current)
            await connection.rollback()
        return revision
    finally:
        await database.close()
