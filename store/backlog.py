"""Query of the backlog, for metrics and the console.

Rule: every count reads an index of unfinished rows only, and at most MOST of them, however long the history is.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import ColumnElement, Select, func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.schema import Column

from machine import backlog
from store import connections, tables

MOST = 20_000


class BacklogQuery:
    """Reads the backlog of one database. A worker whose last heartbeat is at most `alive_ms` old is alive."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int], alive_ms: int) -> None:
        self._database = database
        self._clock = clock
        self._alive_ms = alive_ms

    async def read(self) -> backlog.Backlog:
        """The counts now. Raises DatabaseUnavailable."""
        outbox, jobs, nodes = tables.outbox, tables.jobs, tables.nodes
        unsent = select(outbox.c.channel, outbox.c.created_ms).where(outbox.c.sent_ms.is_(None)).order_by(outbox.c.seq)
        alive = select(func.count()).where(nodes.c.seen_ms >= self._clock() - self._alive_ms, nodes.c.needed_bytes.is_not(None))
        parked = select(outbox.c.seq).where(text(tables.PARKED)).limit(backlog.MOST_MESSAGES).subquery()
        async with self._database.read() as connection:
            return backlog.Backlog(
                sessions=await _counts(connection, tables.sessions.c.state, tables.ACTIVE),
                recordings=await _counts(
                    connection, tables.recordings.c.state, tables.UNFINISHED, tables.recordings.c.awaited.is_(False)
                ),
                queued=await _waiting(connection, select(jobs.c.kind, jobs.c.queued_ms).where(text(tables.QUEUED)).limit(MOST)),
                leased=await _counts(connection, jobs.c.kind, tables.LEASED),
                outbox=await _waiting(connection, unsent.limit(backlog.MOST_MESSAGES)),
                deliveries=await _counts(connection, tables.callbacks.c.state, tables.UNDELIVERED),
                parked=int((await connection.execute(select(func.count()).select_from(parked))).scalar() or 0),
                workers=int((await connection.execute(alive)).scalar() or 0),
            )


async def _counts(connection: AsyncConnection, column: Column[str], which: str, *more: ColumnElement[bool]) -> dict[str, int]:
    """The number of rows by `column`, of those that a partial index holds. Its condition is literal: SQLite compares words."""
    some = select(column.label("name")).where(text(which), *more).limit(MOST).subquery()
    rows = (await connection.execute(select(some.c.name, func.count()).group_by(some.c.name))).all()
    return {name: int(count) for name, count in rows}


async def _waiting(connection: AsyncConnection, wanted: Select[tuple[str, int | None]]) -> dict[str, backlog.Waiting]:
    """The number and the oldest time of rows that have a name and a time, by name."""
    some = wanted.subquery()
    name, since_ms = some.c
    rows = (await connection.execute(select(name, func.count(), func.min(since_ms)).group_by(name))).all()
    return {name: backlog.Waiting(count=int(count), since_ms=oldest) for name, count, oldest in rows}
