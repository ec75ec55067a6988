"""How often each message was tried, over restarts and on all nodes. Imports nothing of ours beside this room.

Rule: each call is a transaction of its own, committed when it returns.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from store import tables

Connecting = Callable[[], AbstractAsyncContextManager[AsyncConnection]]


class Attempts:
    """The counts of one database, by the messages' names (at most 64 characters)."""

    def __init__(self, *, reading: Connecting, writing: Connecting, clock: Callable[[], int]) -> None:
        self._reading = reading
        self._writing = writing
        self._clock = clock

    async def count(self, message: str) -> int:
        """How many tries are counted."""
        table = tables.attempts
        async with self._reading() as connection:
            row = (await connection.execute(select(table.c.tries).where(table.c.message == message))).first()
        return int(row.tries) if row else 0

    async def add(self, message: str) -> int:
        """Count one more; returns how many it makes."""
        table, now_ms = tables.attempts, self._clock()
        more = {"tries": table.c.tries + 1, "at_ms": now_ms}
        async with self._writing() as connection:
            begun = sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
            first = begun.values(message=message, tries=1, at_ms=now_ms)
            counted = first.on_conflict_do_update(index_elements=["message"], set_=more).returning(table.c.tries)
            return int((await connection.execute(counted)).scalar_one())

    async def take_back(self, message: str) -> None:
        """Count one less: it was no fault of the message."""
        table = tables.attempts
        async with self._writing() as connection:
            where = (table.c.message == message, table.c.tries > 0)
            await connection.execute(update(table).where(*where).values(tries=table.c.tries - 1))

    async def forget(self, message: str) -> None:
        """Forget them all."""
        async with self._writing() as connection:
            await connection.execute(delete(tables.attempts).where(tables.attempts.c.message == message))
