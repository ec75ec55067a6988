"""Heartbeats of nodes, with the URL of their files and their spare capacity.

Rules: a node writes its own row and no other's. The first heartbeat after a time without any extends the join, idle and linger
deadlines by that time, once. A node that is older than the database allows sends none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import and_, bindparam, exists, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from machine import model, states
from store import connections, schema, side_by_side, statements, tables

_SPARE_COLUMNS = ("free_bytes", "needed_bytes", "busy")
_LAST_SEEN = select(tables.nodes.c.seen_ms).order_by(tables.nodes.c.seen_ms.desc()).limit(1)
_SAVE = statements.updating(tables.nodes, "node")
_OLDER = and_(tables.nodes.c.revision < side_by_side.OLDEST, tables.nodes.c.seen_ms > bindparam("since_ms"))
_SIDES = select(tables.schema_range.c.oldest, exists().where(_OLDER).label("older")).where(tables.schema_range.c.id == 1)


class Nodes:
    """The nodes of one database."""

    def __init__(self, database: connections.Connections, *, clock: Callable[[], int]) -> None:
        self._database = database
        self._clock = clock
        self.older_alive = False
        """Whether nodes of release 0.1.0 are alive too, by the last heartbeat."""

    async def heartbeat(
        self, node: str, url: str = "", spare: model.SpareCapacity | None = None, *, over_ms: int | None = None
    ) -> int:
        """Record that this node is alive, where other nodes fetch its files ("": nowhere), and a worker's spare capacity.

        If no node sent a heartbeat for longer than `over_ms` (None: no limit), that downtime extends deadlines, once, however
        many nodes come back. Returns the downtime in ms, otherwise 0. Raises Outdated."""
        now_ms = self._clock()
        async with self._database.write() as connection:
            sides = (await connection.execute(_SIDES, {"since_ms": now_ms - side_by_side.ALIVE_MS})).one()
            side_by_side.check(sides.oldest, schema.HEAD)
            self.older_alive = bool(sides.older)
            downtime_ms = 0 if over_ms is None else await _downtime_ms(connection, now_ms, over_ms)
            if downtime_ms and over_ms is not None:
                # Nodes that return together would each extend by the same time; every other heartbeat waits for no lock.
                await connections.hold_lock(connection, connections.RESUME)
                downtime_ms = await _downtime_ms(connection, now_ms, over_ms)
            if downtime_ms:
                await _extend_deadlines(connection, downtime_ms)
            await _save(connection, node, now_ms, url, spare)
        return downtime_ms

    async def url(self, node: str, alive_since_ms: int) -> str:
        """Where the files of a node can be fetched; "" if it sent no heartbeat since then (Unix ms), or offers none."""
        table = tables.nodes
        async with self._database.read() as connection:
            found = select(table.c.url).where(table.c.node == node, table.c.seen_ms >= alive_since_ms)
            row = (await connection.execute(found)).first()
        return str(row.url) if row else ""

    async def spare_capacities(self, alive_since_ms: int) -> list[model.SpareCapacity]:
        """The spare capacities of workers that sent a heartbeat since then (Unix ms), in the order of their names."""
        table = tables.nodes
        alive = select(table).where(table.c.seen_ms >= alive_since_ms, table.c.needed_bytes.is_not(None)).order_by(table.c.node)
        async with self._database.read() as connection:
            rows = (await connection.execute(alive)).all()
        return [model.SpareCapacity(**{name: getattr(row, name) for name in _SPARE_COLUMNS}) for row in rows]


async def older(connection: AsyncConnection, now_ms: int) -> list[str]:
    """The living nodes that are older than a contract allows."""
    found = select(tables.nodes.c.node).where(_OLDER).order_by(tables.nodes.c.node)
    return list((await connection.execute(found, {"since_ms": now_ms - side_by_side.ALIVE_MS})).scalars())


async def _save(connection: AsyncConnection, node: str, now_ms: int, url: str, spare: model.SpareCapacity | None) -> None:
    capacity: dict[str, Any] = {name: getattr(spare, name) if spare is not None else None for name in _SPARE_COLUMNS}
    values = {"seen_ms": now_ms, "url": url, "revision": schema.HEAD} | capacity
    if not (await connection.execute(_SAVE, {"at_node": node} | values)).rowcount:
        await connection.execute(statements.INSERT[tables.nodes], {"node": node} | values)


async def _extend_deadlines(connection: AsyncConnection, downtime_ms: int) -> None:
    """Move join, idle and linger deadlines, and the times from which idleness counts."""
    for rows, active in ((tables.sessions, tables.ACTIVE), (tables.recordings, tables.UNFINISHED)):
        live = and_(text(active), rows.c.state.in_((states.OPEN, *states.CAPTURING)))
        (key,) = rows.primary_key
        if connection.dialect.name == "postgresql":
            # Nodes decide meanwhile: rows are locked in the order in which decisions lock them.
            await connection.execute(select(key).where(live).order_by(key).with_for_update())
        await connection.execute(update(rows).where(live).values(idle_from_ms=rows.c.idle_from_ms + downtime_ms))
    table = tables.deadlines
    await connection.execute(
        update(table).where(table.c.kind.in_(model.EXTENDED_BY_DOWNTIME)).values(at_ms=table.c.at_ms + downtime_ms)
    )


async def _downtime_ms(connection: AsyncConnection, now_ms: int, over_ms: int) -> int:
    """The time since the last heartbeat of any node; 0 if it is not longer than `over_ms`."""
    seen_ms = (await connection.execute(_LAST_SEEN)).scalar()
    return now_ms - int(seen_ms) if seen_ms is not None and now_ms > seen_ms + over_ms else 0
