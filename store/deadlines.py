"""Deadlines that have passed. Decisions arm and disarm them (store.transaction)."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import bindparam, select

from machine import due_work, job_key
from store import connections, tables

_DUE = (
    select(tables.deadlines)
    .where(tables.deadlines.c.at_ms <= bindparam("now_ms"))
    .order_by(tables.deadlines.c.at_ms)
    .limit(bindparam("limit"))
)


class Deadlines:
    """The deadlines of one database."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock

    async def due(self, limit: int = 100) -> list[due_work.Deadline]:
        """Deadlines that have passed, oldest first."""
        async with self._database.read() as connection:
            rows = (await connection.execute(_DUE, {"now_ms": self._clock(), "limit": limit})).all()
        return [due_work.Deadline(owner=job_key.parse(r.owner), kind=r.kind, serial=r.serial) for r in rows]
