"""Queries of what needs attention beyond single sessions: heartbeats, dead letters, rows that cannot be read.

Rule: bounded statements on indexes, because every node asks them again and again.
"""

from __future__ import annotations

from sqlalchemy import select, text

from machine import attention
from store import connections, queries, tables

# Nodes that are looked at; more are not alive at a time.
NODES = 500
# Dead letters that are counted.
COUNTED = 1_000


class AttentionQueries:
    """Read-only views of one database."""

    def __init__(self, database: connections.Connections) -> None:
        self._database = database
        self._sessions = queries.SessionQueries(database)

    async def nodes(self) -> list[attention.NodeView]:
        """The nodes with the newest heartbeats."""
        table = tables.nodes
        async with self._database.read() as connection:
            found = (await connection.execute(select(table).order_by(table.c.seen_ms.desc()).limit(NODES))).mappings().all()
        names = ("node", "seen_ms", "free_bytes", "needed_bytes", "skew_ms")
        return [attention.NodeView(**{name: row[name] for name in names}) for row in found]

    async def parked(self) -> list[attention.Attention]:
        """The finding about dead letters of the outbox."""
        table = tables.outbox
        # A literal condition: with a parameter, no partial index fits.
        query = select(table.c.sent_ms).where(text(tables.PARKED)).order_by(table.c.seq).limit(COUNTED + 1)
        async with self._database.read() as connection:
            times = (await connection.execute(query)).scalars().all()
        since_ms = times[0] or 0 if times else 0
        return attention.of_parked(attention.IN_DATABASE, min(len(times), COUNTED), since_ms, more=len(times) > COUNTED)

    async def unreadable(self) -> list[attention.Attention]:
        """The findings about rows of unfinished sessions that cannot be read."""
        return [attention.of_row(row.table, row.id) for row in await self._sessions.unreadable()]
