"""Attempt counts of messages, over restarts and across all nodes.

Rule: each call is a transaction of its own, committed when it returns.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite

from store import connections, tables


class Attempts:
    """The counts of one database, by message name (at most 64 characters)."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def count(self, message: str) -> int:
        """The attempts counted so far."""
        table = tables.attempts
        async with self._database.read() as connection:
            row = (await connection.execute(select(table.c.tries).where(table.c.message == message))).first()
        return int(row.tries) if row else 0

    async def add(self, message: str) -> int:
        """Count one more attempt; returns the new count."""
        table, now_ms = tables.attempts, self._clock()
        more = {"tries": table.c.tries + 1, "at_ms": now_ms}
        async with self._database.write() as connection:
            begun = sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
            first = begun.values(message=message, tries=1, at_ms=now_ms)
            counted = first.on_conflict_do_update(index_elements=["message"], set_=more).returning(table.c.tries)
            return int((await connection.execute(counted)).scalar_one())

    async def take_back(self, message: str) -> None:
        """Count one attempt less: the failure was not the message's fault."""
        table = tables.attempts
        async with self._database.write() as connection:
            where = (table.c.message == message, table.c.tries > 0)
            await connection.execute(update(table).where(*where).values(tries=table.c.tries - 1))

    async def forget(self, message: str) -> None:
        """Delete the count of a message."""
        async with self._database.write() as connection:
            await connection.execute(delete(tables.attempts).where(tables.attempts.c.message == message))
